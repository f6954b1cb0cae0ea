//! What is shown of results.

pub mod page;
pub mod plot;
pub mod statistics;
pub mod table;
