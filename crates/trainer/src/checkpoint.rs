//! Checkpoints: our own files of tensors, and PyTorch's.

mod file;
mod network;
pub mod pth;

pub use file::*;
pub use network::*;
