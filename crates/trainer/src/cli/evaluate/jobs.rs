//! `trainer evaluate ... --jobs N`: N processes with a share of the images and of the threads each. Two that compute by
//! themselves are faster than one whose threads wait for each other at every small tensor.

use std::fs;
use std::io::{BufRead, BufReader};
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
    // What earlier processes, however many, had measured when they were killed.
    gather(path, &left_behind(path)?)?;
    let jobs = usize::from(args.jobs);
    let (tell, hear) = channel();
    let (mut children, mut parts) = (vec![], vec![]);
    for i in 0..jobs {
        let part = PathBuf::from(format!("{}.{i}-of-{jobs}", path.display()));
        if path.exists() {
            fs::copy(path, &part).with_context(|| format!("writing {}", part.display()))?;
        }
        let mut child = start(what, args, global, &part, i)?;
        let (tell, out) = (tell.clone(), child.stdout.take().context("a job's output")?);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tell.send((i, line));
            }
        });
        let err = child.stderr.take().context("a job's errors")?;
        // Read as it comes: a full pipe would stop the job.
        let said = std::thread::spawn(move || std::io::read_to_string(err).unwrap_or_default());
        children.push((child, said));
        parts.push(part);
    }
    drop(tell);
    let mut progress = vec![(0, 0); jobs];
    while let Ok((i, line)) = hear.recv() {
        progress[i] = heard(&line).unwrap_or(progress[i]);
        let (done, of) = progress.iter().fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        bar.show(done, of);
    }
    let mut failed = None;
    for ((mut child, said), part) in children.into_iter().zip(&parts) {
        let (status, said) = (child.wait().context("waiting for a job")?, said.join().unwrap_or_default());
        if !status.success() {
            // By the name that was given: a job's own record will be gone.
            failed.get_or_insert(said.replace(&part.display().to_string(), &path.display().to_string()));
        }
    }
    gather(path, &parts)?;
    match failed {
        Some(why) => bail!("{}", why.trim().trim_start_matches("Error: ")),
        None => Ok(()),
    }
}

/// How a job says how far it is.
pub(super) fn told(done: usize, of: usize) -> String {
    format!("{done} of {of}")
}

/// The reverse of [`told`].
fn heard(line: &str) -> Option<(usize, usize)> {
    let (done, of) = line.split_once(" of ")?;
    Some((done.parse().ok()?, of.parse().ok()?))
}

/// The records of jobs that have left theirs beside `path`.
fn left_behind(path: &Path) -> Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().context("a record has a file name")?.to_string_lossy().into_owned() + ".";
    let is_part = |file: &PathBuf| {
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        let numbers = file.strip_prefix(&name).and_then(|rest| rest.split_once("-of-"));
        numbers.is_some_and(|(i, jobs)| [i, jobs].iter().all(|n| n.parse::<usize>().is_ok()))
    };
    let Ok(entries) = fs::read_dir(folder) else { return Ok(vec![]) };
    let mut parts: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_part).collect();
    parts.sort();
    Ok(parts)
}

/// Adds what parts hold to the record, and removes them.
fn gather(path: &Path, parts: &[PathBuf]) -> Result<()> {
    Record::merge(path, parts)?;
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
