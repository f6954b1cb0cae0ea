//! `trainer evaluate ... --jobs N`: N processes with a share of the images and of the threads each. Two that compute by
//! themselves are faster than one whose threads wait for each other at every small tensor.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use anyhow::{Context, Result, bail, ensure};
use trainer::evaluate::record::Record;

use super::{Bar, EvaluateArgs};
use crate::cli::Global;

/// Lets `args.jobs` processes measure what the record at `path` does not hold yet, and adds it there. `what` is the
/// command's name, and its table's in the configuration.
pub(super) fn deal(what: &str, args: &EvaluateArgs, global: &Global, path: &Path, bar: &Bar) -> Result<()> {
    let jobs = usize::from(args.jobs);
    let parts: Vec<PathBuf> = (0..jobs).map(|i| PathBuf::from(format!("{}.{i}-of-{jobs}", path.display()))).collect();
    // What earlier processes had measured when they were killed.
    Record::merge(path, &parts)?;
    let mut children = vec![];
    let (tell, hear) = channel();
    for (i, part) in parts.iter().enumerate() {
        if path.exists() {
            fs::copy(path, part).with_context(|| format!("writing {}", part.display()))?;
        }
        let mut child = start(what, args, global, part, i)?;
        let (tell, out) = (tell.clone(), child.stdout.take().context("a job's output")?);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut numbers = line.split(' ').filter_map(|word| word.parse::<usize>().ok());
                if let (Some(done), Some(of)) = (numbers.next(), numbers.next()) {
                    let _ = tell.send((i, done, of));
                }
            }
        });
        children.push(child);
    }
    drop(tell);
    let mut progress = vec![(0, 0); jobs];
    while let Ok((i, done, of)) = hear.recv() {
        progress[i] = (done, of);
        let (done, of) = progress.iter().fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        bar.show(done, of);
    }
    let failed = children.iter_mut().map(ended).filter_map(Result::err).next();
    Record::merge(path, &parts)?;
    if let Some(why) = failed {
        return Err(why);
    }
    for part in parts.iter().filter(|part| part.exists()) {
        fs::remove_file(part).with_context(|| format!("removing {}", part.display()))?;
    }
    Ok(())
}

/// One process, which says on its output how far it is.
fn start(what: &str, args: &EvaluateArgs, global: &Global, part: &Path, i: usize) -> Result<Child> {
    let jobs = usize::from(args.jobs);
    let cores = global.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let mut command = Command::new(std::env::current_exe().context("the program's own file")?);
    command.args(["evaluate", what]).args(&args.configs);
    args.set.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    let Some(part) = part.to_str() else { bail!("{} is no text", part.display()) };
    ensure!(!part.contains(['"', '\\']), "the record's name has characters that TOML reads otherwise: {part}");
    command.arg("--set").arg(format!("{what}.record=\"{part}\"")).arg("--share").arg(format!("{i}/{jobs}"));
    command.args(["--device", &global.device, "--threads", &(cores / jobs).max(1).to_string(), "--quiet"]);
    if let Some(seed) = global.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("starting a job")
}

/// Waits; what a job that failed had to say.
fn ended(child: &mut Child) -> Result<()> {
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut said).context("a job's errors")?;
    }
    let status = child.wait().context("waiting for a job")?;
    ensure!(status.success(), "{}", said.trim().trim_start_matches("Error: "));
    Ok(())
}
