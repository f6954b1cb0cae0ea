//! One run of a grid as a process of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};

use super::Options;
use crate::files::{host, write_atomically};
use crate::grid::GridRun;

pub(super) struct Process {
    pub at: usize,
    pub child: Child,
    /// Kept open: a run whose standard input ends saves its state and stops, so that none outlives a launcher that was
    /// killed.
    lifeline: Option<ChildStdin>,
    pub began: Instant,
    /// The same on the clock that files have.
    pub since: SystemTime,
    /// What it says.
    log: PathBuf,
}

impl Process {
    /// Starts run number `at` in folder `dir`.
    pub fn spawn(at: usize, run: &GridRun, dir: &Path, o: &Options) -> Result<Process> {
        let config = o.out.join("cells").join(&run.block).join(format!("{}-s{}.toml", run.name, run.seed));
        // Another launcher's has a file of its own.
        let name = format!("{}-s{}-{}-{}.log", run.name, run.seed, host(), std::process::id());
        let log = o.out.join("logs").join(&run.block).join(name);
        for file in [&config, &log] {
            let dir = file.parent().context("a file without a folder")?;
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        write_atomically(&config, toml::to_string(&run.table)?.as_bytes())?;
        let errors = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(this_program()?);
        command.arg("train").arg(&config).arg("--run").arg(dir).args(["--resume", "--supervised", "--device"]);
        command.arg(&o.device).arg("--threads").arg(o.threads.to_string());
        // What --threads would otherwise have the program start itself again for.
        let threads = o.threads.to_string();
        command.env("RAYON_NUM_THREADS", &threads).env("CANDLE_NUM_THREADS", &threads);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors);
        let since = SystemTime::now();
        let mut child = command.spawn().context("starting a run")?;
        let lifeline = child.stdin.take();
        Ok(Process { at, child, lifeline, began: Instant::now(), since, log })
    }

    /// Has it save its state and end.
    pub fn ask_to_stop(&mut self) {
        drop(self.lifeline.take());
    }

    /// The last line that a failed run has said.
    pub fn last_words(&self, code: Option<i32>) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let told = text.lines().rev().find(|l| l.starts_with("Error: "));
        let last = told.or_else(|| text.lines().rev().find(|l| !l.trim().is_empty())).unwrap_or_default();
        match (last.strip_prefix("Error: "), code) {
            (Some(error), _) => error.to_string(),
            (None, Some(code)) => format!("ended with code {code}: {last}"),
            (None, None) => format!("killed: {last}"),
        }
    }
}

/// This very program, though it may have been built anew since it was started: all runs of a grid are one program's.
fn this_program() -> Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Ok(running) } else { std::env::current_exe().context("finding the program itself") }
}
