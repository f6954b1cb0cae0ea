//! Lines for whoever watches.

use std::fmt::Display;
use std::io::Write;

/// Writes a line to standard error. That nobody reads there any more, or that its disk is full, is no reason to stop what is being
/// worked at, as `eprintln!` would.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
