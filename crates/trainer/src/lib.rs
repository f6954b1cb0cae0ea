//! Distils students from a teacher's logits and explanation maps.
//!
//! ```text
//! args -> Config -> Images -> Batch { pixels, labels, ids }
//!                      |-> Teacher::signal ------------> Signal { logits, class_maps, map, attention }
//!                      '-> Network::pass --------------> Pass { layers, logits }
//!                            '-> Interpreter::signed --> map
//!        objective::losses -> Losses { ce, kd, explanation, attention }
//!        Network::gradient(total) -> Sgd::step -> Recorder; at an epoch's end: evaluate, State::save
//! ```
#![forbid(unsafe_code)]

pub mod bench;
pub mod checkpoint;
pub mod claim;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod gallery;
pub mod grid;
pub mod loss;
pub mod models;
pub mod nn;
pub mod objective;
pub mod optim;
pub mod pth;
pub mod random;
pub mod record;
pub mod report;
pub mod schedule;
pub mod seeds;
pub mod state;
pub mod stats;
pub mod teacher;
pub mod train;
