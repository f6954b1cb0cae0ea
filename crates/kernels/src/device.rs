//! A network's step on a device: the kernels of `cuda/`, and candle's matrix products between them.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@card`] | a card, as this program uses it |
//! | `launch` | a kernel, by name, on tensors |
//! | [`ops`] | one function a kernel: windows as rows, BatchNorm, pooling, SGD |
//! | [`convolution`] | a matrix product of windows |
//! | [`known`] | a result computed before the op that hands it back |
//! | [`trunk`] | a graph forward and backward, as one candle op |
//!
//! On a card the kernels are nvcc's (feature `cuda`). With the feature `cuda-on-host` the same source, compiled as C, runs
//! on tensors of the CPU: slowly, one item after another, so that a machine without a card can check them.

pub mod card;
pub mod convolution;
pub mod known;
mod launch;
pub mod ops;
pub mod trunk;

pub use card::card;
pub use trunk::{Batch, Trunk};

use candle_core::Device;

/// Whether the kernels run there in this build.
pub fn serves(device: &Device) -> bool {
    match device {
        Device::Cpu => cfg!(feature = "cuda-on-host"),
        Device::Cuda(_) => cfg!(feature = "cuda"),
        Device::Metal(_) => false,
    }
}
