//! What is shown of results.

pub mod plot;
pub mod statistics;
pub mod table;
