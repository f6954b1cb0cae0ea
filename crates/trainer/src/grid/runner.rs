//! Works through a grid: each run is a process of its own, so that one cannot harm another, and several launchers, on
//! one machine or on several that share a folder, may work on one grid: a run folder is claimed by whoever runs in it.

mod process;
mod timing;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use self::process::Process;
use super::ledger::{self, Event};
use super::progress::{Board, time};
use super::table::arithmetic;
use super::{Grid, GridRun};
use crate::config::{Config, Dtype};
use crate::error::{Diverged, sentence};
use crate::run::claim::Claim;
use crate::run::prepare::{Prepared, prepare};
use crate::run::{self, Inputs, JudgedBy};

/// Exit code of a supervised run whose folder another process works in.
pub const ELSEWHERE: u8 = 75;
/// Exit code of a supervised run that diverged.
pub const DIVERGED: u8 = 65;

/// How to work; none of it changes a result.
pub struct Options<'a> {
    /// The grid's folder.
    pub out: PathBuf,
    /// Runs side by side.
    pub jobs: usize,
    /// Threads of each run.
    pub threads: usize,
    /// `--device` of each run.
    pub device: String,
    /// The same for what this process computes itself.
    pub compute: candle_core::Device,
    /// Start nothing that would not be done after this long, and stop then.
    pub limit: Option<Duration>,
    /// No progress.
    pub quiet: bool,
    /// Set from outside to stop.
    pub interrupted: &'a AtomicBool,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Not begun, or begun and stopped.
    Waiting,
    /// A process of this launcher works on it.
    Running,
    /// Another launcher's does.
    Elsewhere,
    /// It has a report.
    Done {
        /// Of the last epoch's weights, in percent.
        error: f64,
        /// Whoever chooses by images held out does not look at the test set.
        judged_by: JudgedBy,
        /// It took.
        seconds: f64,
    },
    /// It ended early, by its own `train.max_minutes` or a signal, with its state saved.
    Stopped,
    /// A result: it diverged.
    Diverged(String),
    /// It could not run, and why.
    Failed(String),
}

impl Status {
    /// Whether something came of it.
    fn is_a_result(&self) -> bool {
        matches!(self, Status::Done { .. } | Status::Diverged(_))
    }

    /// Whether there is nothing left to do for it.
    pub fn is_over(&self) -> bool {
        matches!(self, Status::Done { .. } | Status::Diverged(_) | Status::Failed(_))
    }
}

/// How the work ended.
#[derive(Debug)]
pub struct Summary {
    /// Every run's status, in the grid's order.
    pub statuses: Vec<Status>,
    /// It was stopped before everything was done.
    pub stopped: bool,
}

/// A run's folder and configuration.
struct Place {
    dir: PathBuf,
    config: Option<Config>,
}

/// Where every run stands, in the grid's order.
pub fn look(grid: &Grid, options: &Options) -> Result<Vec<Status>> {
    Ok(Work::new(grid, options)?.statuses)
}

/// Reads what has been done, then does the rest.
pub fn run(grid: &Grid, options: &Options) -> Result<Summary> {
    let out = &options.out;
    let mut work = Work::new(grid, options)?;
    let mut waiting = work.runs.iter().zip(&work.statuses).filter(|(_, status)| **status == Status::Waiting);
    if waiting.any(|(run, _)| run.config.as_ref().is_some_and(|c| c.train.dtype == Dtype::Bf16)) {
        arithmetic::check_device(out, &options.compute)?;
    }
    if !work.prepare()? {
        return Ok(work.end(true));
    }
    work.board.say(&format!(
        "{}: {} of {} runs are done; {} side by side, {} threads each",
        out.display(),
        work.statuses.iter().filter(|s| s.is_a_result()).count(),
        grid.runs.len(),
        options.jobs,
        options.threads
    ));
    loop {
        work.collect()?;
        let stop = options.interrupted.load(Ordering::Relaxed) || work.left() == Some(Duration::ZERO);
        if stop {
            work.stop()?;
            return Ok(work.end(true));
        }
        while work.processes.len() < options.jobs {
            let Some(next) = work.next() else { break };
            work.start(next)?;
        }
        work.board.show(&work.statuses, &work.runs.iter().map(|r| r.dir.as_path()).collect::<Vec<_>>(), work.eta());
        if work.processes.is_empty() && !work.statuses.contains(&Status::Elsewhere) {
            let left = work.statuses.iter().any(|s| !s.is_over());
            return Ok(work.end(left));
        }
        work.wait(Duration::from_millis(200));
        work.look_elsewhere()?;
    }
}

struct Work<'g> {
    grid: &'g Grid,
    options: &'g Options<'g>,
    runs: Vec<Place>,
    statuses: Vec<Status>,
    /// What runs read, by the settings that say it: reading a data set for every run would take minutes.
    inputs: HashMap<String, Inputs>,
    processes: Vec<Process>,
    began: Instant,
    looked: Instant,
    board: Board,
}

impl<'g> Work<'g> {
    /// Finds out where every run stands.
    fn new(grid: &'g Grid, options: &'g Options<'g>) -> Result<Work<'g>> {
        let out = &options.out;
        fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        let place = |run: &GridRun| Place { dir: out.join(run.id()), config: run.config().ok() };
        let mut work = Work {
            grid,
            options,
            runs: grid.runs.iter().map(place).collect(),
            statuses: vec![Status::Waiting; grid.runs.len()],
            inputs: HashMap::new(),
            processes: vec![],
            began: Instant::now(),
            looked: Instant::now(),
            board: Board::new(grid, options.quiet),
        };
        for at in 0..work.runs.len() {
            work.statuses[at] = work.look(at)?;
        }
        Ok(work)
    }

    /// Looks again, now and then, at what others were working on: whoever it was may have died, and then it is for us.
    fn look_elsewhere(&mut self) -> Result<()> {
        if self.looked.elapsed() < Duration::from_secs(2) {
            return Ok(());
        }
        self.looked = Instant::now();
        for at in 0..self.runs.len() {
            if self.statuses[at] == Status::Elsewhere {
                self.statuses[at] = self.look(at)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, at: usize) -> Result<Status> {
        let (run, dir) = (&self.grid.runs[at], self.runs[at].dir.clone());
        let config = match run.config() {
            Ok(config) => config,
            Err(error) => return self.fail(at, &sentence(&error)),
        };
        if Claim::is_held(&dir) {
            return Ok(Status::Elsewhere);
        }
        if !dir.join("report.json").exists() && !dir.join("diverged.json").exists() {
            return Ok(Status::Waiting);
        }
        let (data, student) = (&config.data, &config.student.checkpoint);
        let teacher = config.teacher.as_ref().map(|t| &t.checkpoint);
        let key = format!("{data:?} {student:?} {teacher:?}");
        let inputs = match self.inputs.get(&key) {
            Some(inputs) => inputs.clone(),
            None => match run::inputs(&config) {
                Ok(inputs) => self.inputs.entry(key).or_insert(inputs).clone(),
                Err(error) => return self.fail(at, &sentence(&error)),
            },
        };
        Ok(match run::finished(&config, &inputs, &dir) {
            Ok(Some(report)) => {
                let judged_by = if config.data.validation > 0 { JudgedBy::HeldOutImages } else { JudgedBy::TestImages };
                Status::Done { error: report.error(judged_by), judged_by, seconds: report.seconds }
            }
            Ok(None) => Status::Waiting,
            Err(error) => match error.downcast_ref::<Diverged>() {
                Some(diverged) => Status::Diverged(diverged.to_string()),
                None => return self.fail(at, &sentence(&error)),
            },
        })
    }

    fn fail(&mut self, at: usize, why: &str) -> Result<Status> {
        let id = self.grid.runs[at].id();
        ledger::append(&self.options.out, &id, Event::Failed, why)?;
        self.board.say(&format!("{id} cannot run: {why}"));
        Ok(Status::Failed(why.into()))
    }

    /// Fills the teachers' caches for what is not done; false if interrupted.
    fn prepare(&mut self) -> Result<bool> {
        let waiting: Vec<&Config> = self
            .runs
            .iter()
            .zip(&self.statuses)
            .filter(|(_, s)| !s.is_over())
            .filter_map(|(r, _)| r.config.as_ref())
            .collect();
        let board = &self.board;
        let over = || self.options.interrupted.load(Ordering::Relaxed) || self.left() == Some(Duration::ZERO);
        let done = prepare(&waiting, &self.options.compute, &over, &mut |line| board.say(line));
        match done {
            Ok(done) => Ok(done == Prepared::Done),
            Err(error) => {
                // Each run that needs it will say so itself; those that do not can go on.
                self.board.say(&format!("the teachers' caches could not be filled: {}", sentence(&error)));
                Ok(true)
            }
        }
    }

    /// The first run that waits, may be worked on, and would be done in time.
    fn next(&self) -> Option<usize> {
        let fits = |at: &usize| match (self.left(), self.expected(*at)) {
            (Some(left), Some(expected)) => expected <= left,
            _ => true,
        };
        (0..self.runs.len()).filter(|at| self.statuses[*at] == Status::Waiting).find(fits)
    }

    fn start(&mut self, at: usize) -> Result<()> {
        // Another launcher may have begun or finished it since.
        let now = self.look(at)?;
        if now != Status::Waiting {
            self.statuses[at] = now;
            return Ok(());
        }
        let id = self.grid.runs[at].id();
        match Process::spawn(at, &self.grid.runs[at], &self.runs[at].dir, self.options) {
            Ok(process) => {
                ledger::append(&self.options.out, &id, Event::Started, "")?;
                self.board.say(&format!("{id} started"));
                self.statuses[at] = Status::Running;
                self.processes.push(process);
            }
            Err(error) => self.statuses[at] = self.fail(at, &sentence(&error))?,
        }
        Ok(())
    }

    /// Takes in the runs that have ended.
    fn collect(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.processes.len() {
            match self.processes[at].child.try_wait().context("waiting for a run")? {
                None => at += 1,
                Some(status) => {
                    let process = self.processes.swap_remove(at);
                    self.ended(&process, status.code())?;
                }
            }
        }
        Ok(())
    }

    /// Whether a run's outcome was written before this moment: another launcher's process did, and has said so.
    fn is_older(&self, at: usize, since: SystemTime) -> bool {
        let written = |file: &str| fs::metadata(self.runs[at].dir.join(file)).and_then(|m| m.modified()).ok();
        ["report.json", "diverged.json"].iter().filter_map(|file| written(file)).all(|written| written < since)
    }

    fn ended(&mut self, process: &Process, code: Option<i32>) -> Result<()> {
        let at = process.at;
        let (id, out) = (self.grid.runs[at].id(), &self.options.out);
        let status = match code.map(|c| u8::try_from(c).unwrap_or(u8::MAX)) {
            Some(0 | DIVERGED) => self.look(at)?,
            Some(ELSEWHERE) => Status::Elsewhere,
            Some(130) => {
                ledger::append(out, &id, Event::Interrupted, "")?;
                self.board.say(&format!("{id} stopped, its state is saved"));
                Status::Stopped
            }
            _ => {
                let why = process.last_words(code);
                return self.fail(at, &why).map(|status| self.statuses[at] = status);
            }
        };
        // Its own time tells more than what was known before of how long the others will take.
        self.statuses[at] = status.clone();
        match &status {
            Status::Done { .. } | Status::Diverged(_) if self.is_older(at, process.since) => {}
            Status::Done { error, judged_by, seconds } => {
                ledger::append(out, &id, Event::Done, "")?;
                let stops = self.options.interrupted.load(Ordering::Relaxed) || self.left() == Some(Duration::ZERO);
                let eta = self.eta().filter(|eta| !eta.is_zero() && !stops);
                let to_go = eta.map_or(String::new(), |eta| format!("; about {} to go", time(eta)));
                let of = judged_by.name();
                self.board.say(&format!("{id} done: {error:.2} % of the {of} wrong, {seconds:.0} s{to_go}"));
            }
            Status::Diverged(what) => {
                ledger::append(out, &id, Event::Diverged, what)?;
                self.board.say(&format!("{id} diverged: {what}"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Has every run save its state and waits for it.
    fn stop(&mut self) -> Result<()> {
        self.processes.iter_mut().for_each(Process::ask_to_stop);
        for mut process in std::mem::take(&mut self.processes) {
            let status = process.child.wait().context("waiting for a run")?;
            self.ended(&process, status.code())?;
        }
        Ok(())
    }

    fn wait(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end && !self.options.interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50).min(duration));
        }
    }

    fn end(self, stopped: bool) -> Summary {
        self.board.finish();
        Summary { statuses: self.statuses, stopped }
    }
}
