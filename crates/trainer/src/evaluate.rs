//! Judging models and explanations.

pub mod agreement;
mod error;
pub mod faithfulness;
pub mod judge;
pub mod localization;
mod pictures;
pub mod record;
pub mod sanity;
pub mod seeds;
pub mod subject;

pub use error::{Evaluation, evaluate, evaluate_quickly, evaluate_with};
