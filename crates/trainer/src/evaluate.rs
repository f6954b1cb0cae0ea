//! Judging models and explanations.

pub mod agreement;
mod error;
pub mod seeds;

pub use error::{Evaluation, evaluate, evaluate_quickly};
