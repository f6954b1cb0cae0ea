//! Checkpoints: our own files of tensors, and PyTorch's.

mod file;
pub mod pth;

pub use file::*;
