//! A grid at a glance: a row per cell, a column per seed; plain lines where there is no terminal.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::Grid;
use super::runner::Status;
use crate::terminal::say;

/// Time between two looks at the running ones' measurements.
const LOOK: Duration = Duration::from_secs(2);

/// See the module.
pub struct Board {
    /// Rows, and which runs are theirs.
    rows: Vec<(String, Vec<usize>)>,
    lines: Vec<ProgressBar>,
    all: MultiProgress,
    head: ProgressBar,
    plain: bool,
    looked: Option<Instant>,
}

impl Board {
    /// Of a grid's runs.
    pub fn new(grid: &Grid, quiet: bool) -> Board {
        let mut rows: Vec<(String, Vec<usize>)> = vec![];
        for (at, run) in grid.runs.iter().enumerate() {
            match rows.iter_mut().find(|(name, _)| *name == run.cell()) {
                Some((_, runs)) => runs.push(at),
                None => rows.push((run.cell(), vec![at])),
            }
        }
        let plain = !quiet && !std::io::stderr().is_terminal();
        let target = if quiet || plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(2) };
        let all = MultiProgress::with_draw_target(target);
        let style = || ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let line = || all.add(ProgressBar::new_spinner().with_style(style()));
        let head = line();
        let lines = rows.iter().map(|_| line()).collect();
        Board { rows, lines, head, all, plain, looked: None }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        if self.plain {
            say(line);
        } else {
            let _ = self.all.println(line);
        }
    }

    /// Draws the rows anew, now and then.
    pub fn show(&mut self, statuses: &[Status], dirs: &[&Path], eta: Option<Duration>) {
        if self.head.is_hidden() || self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let over = statuses.iter().filter(|s| s.is_over()).count();
        let eta = eta.map_or(String::new(), |eta| format!(", about {} to go", time(eta)));
        self.head.set_message(format!("{over} of {} runs{eta}", statuses.len()));
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).min(36);
        for ((name, runs), line) in self.rows.iter().zip(&self.lines) {
            let of = |at: &usize| match &statuses[*at] {
                Status::Done { error, .. } => format!("{error:6.2}"),
                Status::Running | Status::Elsewhere => latest(dirs[*at]).unwrap_or_else(|| "  ...".into()),
                Status::Diverged(_) => " diverg".into(),
                Status::Failed(_) => " failed".into(),
                Status::Stopped => " paused".into(),
                Status::Waiting => "     .".into(),
            };
            line.set_message(format!("{name:width$} {}", runs.iter().map(of).collect::<Vec<_>>().join(" ")));
        }
    }

    /// Removes the rows.
    pub fn finish(self) {
        let _ = self.all.clear();
    }
}

/// Hours and minutes.
pub fn time(duration: Duration) -> String {
    let minutes = duration.as_secs().div_ceil(60);
    if minutes >= 60 { format!("{} h {:02} min", minutes / 60, minutes % 60) } else { format!("{minutes} min") }
}

/// The epoch that a run is in, and the last error that it has measured: `e12 8.3`.
fn latest(dir: &Path) -> Option<String> {
    // Enough for the lines of several epochs: not each is measured.
    const TAIL: u64 = 1 << 16;
    let mut file = File::open(dir.join("metrics.jsonl")).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok()).next()?;
    let epoch = last["epoch"].as_u64()?;
    let epochs = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let error =
        epochs.filter(|v| v["kind"] == "epoch").find_map(|v| v["test_error"].as_f64().or(v["val_error"].as_f64()));
    Some(error.map_or_else(|| format!("e{epoch} ..."), |e| format!("e{epoch} {e:.1}")))
}
