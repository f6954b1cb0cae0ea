//! Distils students from a teacher's logits and explanation maps.
//!
//! ```text
//! settings ---> config ---> run: one run on disk           grid: many of them
//!                            |                              evaluate, explain, report, bench
//!                            v
//!                           distill: terms, teacher, optimizer, step
//!                            |
//!                            v
//!                           nn: a model on a device  <---  models: architectures  <---  checkpoint
//!                            |
//!                            v
//!                           kernels (CPU), candle (elsewhere), cams (maps)      data: images, views, batches
//! ```
//!
//! The data path of a step is drawn in [`distill`]. Nothing below calls what is above it.
//!
//! To distil a candle model of your own, implement [`nn::Model`] and [`cams::CamModel`] and call [`distill::Learner::step`]:
//! `examples/own_model.rs`. Maps alone need only the crate [`cams`]: `examples/explain.rs`.
#![forbid(unsafe_code)]
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod distill;
pub mod error;
pub mod evaluate;
pub mod explain;
pub mod files;
pub mod grid;
pub mod models;
pub mod nn;
pub mod random;
pub mod report;
pub mod run;
pub mod terminal;
