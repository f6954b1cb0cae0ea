//! Maps of many images by many methods: the one loop, its input, and pictures of what comes of it.

pub mod gallery;
pub mod input;
mod maps;

pub use input::Input;
pub use maps::{Class, Explained, Outcome, explain};
