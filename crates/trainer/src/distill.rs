//! The algorithm: what a student learns from, one step at a time. It knows no run folder and no file of
//! settings; the one line that it may print says that a file of the teacher's cache is damaged.
//!
//! ```text
//! Batch { pixels, labels, ids } --+--> Teacher::output ---------> TeacherOutput { logits, class maps, a map, ... }
//!                                 '--> Model::forward ----------> Pass { features, logits }
//!         Objective::losses(pass, output, labels) -> Losses { ce, kd, explanation, ... }
//!         gradient(total) -> clip -> Optimizer::step -> Measurements
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`terms`] | the one list of loss terms, their weights over time, and what a term is |
//! | [`objective`] | the terms of one run, built and checked once |
//! | [`output`] | what a teacher is asked for, and how that is made |
//! | [`teacher`] | who answers: a model, or a cache in front of it |
//! | [`cache`] | what a teacher has said, on disk |
//! | [`distance`] | distances of maps |
//! | [`optimizers`] | the one list of optimizers |
//! | [`schedule`] | learning rates |
//! | [`average`] | the moving average of a model |
//! | [`learner`] | the step |

pub mod average;
pub mod cache;
pub mod distance;
pub mod learner;
pub mod objective;
pub mod optimizers;
pub mod output;
pub mod schedule;
pub mod teacher;
pub mod terms;

pub use learner::{Learner, Measurements};
pub use objective::Objective;
pub use output::{MapOf, Part, TeacherOutput};
pub use teacher::Teacher;
