//! Checkpoints: our own files of tensors, PyTorch's, and ONNX's.

mod file;
mod network;
pub mod onnx;
pub mod pth;

pub use file::*;
pub use network::*;
