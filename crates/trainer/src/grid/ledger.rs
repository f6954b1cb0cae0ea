//! What happened to a grid's cells, a line an event. The truth is in the run folders; this is its history, and where
//! the reasons of failures stand.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::files::host;

/// Its file in the grid's folder.
pub const FILE: &str = "ledger.jsonl";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A process works on it.
    Started,
    /// It has a report.
    Done,
    /// Its loss, gradient or weights were no longer finite: a result.
    Diverged,
    /// It could not run: a mistake in its settings, the data or the machine.
    Failed,
    /// Stopped early, with its state saved.
    Interrupted,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Seconds after 1970.
    pub time: u64,
    /// `block/name/sN`.
    pub cell: String,
    /// What happened.
    pub event: Event,
    /// Who says so: machine and process.
    pub by: String,
    /// The reason, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
}

/// Appends a line in one write, which does not mix with other launchers' lines.
pub fn append(dir: &Path, cell: &str, event: Event, what: &str) -> Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let by = format!("{}:{}", host(), std::process::id());
    let line = Line { time, cell: cell.into(), event, by, what: what.into() };
    let path = dir.join(FILE);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    file.write_all((serde_json::to_string(&line)? + "\n").as_bytes())
        .with_context(|| format!("writing {}", path.display()))
}
