//! A grid on a cluster: jobs of Slurm's. One fills the teachers' caches; then an array, a task a run, works through what is
//! missing; then one prints the table.
//!
//! A task is this program's own `ablate --run ID`: it claims the run's folder as any launcher does, so launchers here and there may
//! work on one grid. What the machines need in common is the grid's folder, the program and what the grid names. Slurm sends
//! a task SIGTERM two minutes before its time is up: the run saves its state, and submitting the grid again goes on with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Grid;
use super::runner::Status;
use crate::files::write_atomically;

/// What is submitted.
pub struct Submission<'a> {
    /// The grid.
    pub grid: &'a Grid,
    /// Its folder, absolute.
    pub out: &'a Path,
    /// This program, absolute.
    pub program: PathBuf,
    /// What to call it with, to mean this grid: `ablate`, the file, profile, seeds, settings, folder, device.
    pub arguments: Vec<String>,
    /// Processors of a task.
    pub threads: usize,
    /// Tasks at a time, if that has a limit.
    pub at_once: Option<usize>,
    /// Options of `sbatch` for every job: partition, time, account.
    pub options: Vec<String>,
}

/// The jobs' numbers.
#[derive(Debug, PartialEq)]
pub struct Jobs {
    /// Fills the caches.
    pub caches: String,
    /// The array.
    pub runs: String,
    /// Prints the table.
    pub table: String,
}

/// Submits the runs that are not over; none if all are.
pub fn submit(s: &Submission, statuses: &[Status]) -> Result<Option<Jobs>> {
    let missing = s.grid.runs.iter().zip(statuses).filter(|(_, status)| !status.is_over());
    let missing: Vec<String> = missing.map(|(run, _)| run.id()).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let dir = s.out.join("slurm");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let call = |more: &[&str]| -> String {
        let words = s.arguments.iter().map(String::as_str).chain(more.iter().copied()).map(quoted);
        format!("exec {} {}", quoted(&s.program.to_string_lossy()), words.collect::<Vec<_>>().join(" "))
    };
    // Those of the missing runs alone.
    let of_missing: Vec<&str> = missing.iter().flat_map(|id| ["--run", id]).chain(["--prepare"]).collect();
    let caches = s.job(&dir, "caches", &call(&of_missing), &[])?;
    // A list of its own for each submission: an earlier array may still be reading its one.
    let list = dir.join(format!("runs-{caches}.txt"));
    write_atomically(&list, (missing.join("\n") + "\n").as_bytes())?;
    let one = format!(
        "run=$(sed -n \"$((SLURM_ARRAY_TASK_ID + 1))p\" {})\n{} --run \"$run\"",
        quoted(&list.to_string_lossy()),
        call(&[])
    );
    let limit = s.at_once.map(|n| format!("%{n}")).unwrap_or_default();
    let array = [
        format!("--array=0-{}{limit}", missing.len() - 1),
        format!("--dependency=afterok:{caches}"),
        "--kill-on-invalid-dep=yes".into(),
        "--requeue".into(),
        "--signal=B:TERM@120".into(),
    ];
    let runs = s.job(&dir, "runs", &one, &array)?;
    let words = [&*s.program.to_string_lossy(), "table", &s.out.to_string_lossy()].map(quoted);
    let table = s.job(&dir, "table", &words.join(" "), &[format!("--dependency=afterany:{runs}")])?;
    Ok(Some(Jobs { caches, runs, table }))
}

impl Submission<'_> {
    /// Writes a script and submits it; returns its number.
    fn job(&self, dir: &Path, name: &str, body: &str, more: &[String]) -> Result<String> {
        let script = dir.join(format!("{name}.sh"));
        write_atomically(&script, format!("#!/bin/sh\n{body}\n").as_bytes())?;
        let mut command = Command::new("sbatch");
        command.arg("--parsable").arg(format!("--job-name={}-{name}", self.grid.name));
        command.arg(format!("--cpus-per-task={}", if name == "table" { 1 } else { self.threads }));
        command.arg("--output").arg(dir.join(if name == "runs" { "runs-%A_%a.out" } else { "%x-%j.out" }));
        // What the user says comes last and wins.
        command.arg("--open-mode=append").args(more).args(&self.options).arg(&script);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no sbatch here: --launcher slurm submits jobs from a machine of a Slurm cluster")
            }
            Err(error) => return Err(error).context("starting sbatch"),
        };
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        if !output.status.success() {
            bail!("sbatch would not take the job of {}: {}", script.display(), told(&output.stderr));
        }
        // "number" or "number;cluster".
        let number = told(&output.stdout).split(';').next().unwrap_or_default().to_string();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            bail!("sbatch said \"{}\" where a job's number was expected", told(&output.stdout));
        }
        Ok(number)
    }
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
