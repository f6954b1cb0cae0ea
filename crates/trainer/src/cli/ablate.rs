use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use trainer::config::profiles;
use trainer::grid::runner::{self, Options, Status};
use trainer::grid::{Grid, Selection, cost, parse_seeds, slurm};
use trainer::report::table::{Entry, Table, column};
use trainer::run::prepare::{Prepared, prepare};
use trainer::terminal::say;

use super::{Done, Global, interrupt};

/// Arguments of `trainer ablate`.
#[derive(Args)]
pub(super) struct AblateArgs {
    /// The grid: a TOML file.
    #[arg(value_name = "GRID.toml")]
    pub(super) grid: PathBuf,
    /// Of every run (default: the grid's own).
    #[arg(long, value_name = "NAME", value_parser = profiles::NAMES)]
    pub(super) profile: Option<String>,
    /// The seeds from A to B - 1 (default: the grid's own).
    #[arg(long, value_name = "A..B")]
    pub(super) seeds: Option<String>,
    /// These blocks only.
    #[arg(long, value_name = "NAME[,NAME...]", value_delimiter = ',')]
    pub(super) block: Vec<String>,
    /// These runs only.
    #[arg(long, value_name = "BLOCK/CELL/sN")]
    pub(super) run: Vec<String>,
    /// Who works through it: this process, or jobs that it submits.
    #[arg(long, value_enum, default_value_t = Launcher::Here, conflicts_with_all = ["prepare", "max_minutes"])]
    pub(super) launcher: Launcher,
    /// An option of sbatch for every job, as in --sbatch=--partition=gpu.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(super) sbatch: Vec<String>,
    /// A setting on top of every cell.
    #[arg(long, value_name = "A.B=V")]
    pub(super) set: Vec<String>,
    /// The grid's folder (default: runs/<grid>, with the profile where it is not fast).
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Go on with what is there. It is what happens anyway: what is done is not done again.
    #[arg(long)]
    pub(super) resume: bool,
    /// Print cells and estimated cost, and run nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Fill the teachers' caches, and run nothing.
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) prepare: bool,
    /// Runs side by side (default: 1); the threads are divided among them. On a cluster: tasks at a time (default: no limit),
    /// each with all threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) jobs: Option<u16>,
    /// Stop after this long, and start nothing that would not be done by then.
    #[arg(long, value_name = "M")]
    pub(super) max_minutes: Option<f64>,
}

/// Who works through a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Launcher {
    /// This process.
    Here,
    /// A job array of Slurm's, a task a run.
    Slurm,
}

/// `trainer ablate`.
pub(super) fn run(args: &AblateArgs, global: &Global) -> Result<Done> {
    let seeds = match (&args.seeds, global.seed) {
        (Some(_), Some(_)) => bail!("--seeds and --seed name the same thing: give one of them"),
        (Some(seeds), None) => Some(parse_seeds(seeds)?),
        (None, seed) => seed.map(|seed| vec![seed]),
    };
    let selection = Selection {
        profile: args.profile.clone(),
        seeds,
        blocks: args.block.clone(),
        runs: args.run.clone(),
        set: args.set.clone(),
    };
    let grid = Grid::read(&args.grid, &selection)?;
    let out = args.out.clone().unwrap_or_else(|| grid.folder());
    let device = global.device()?;
    if args.dry_run {
        return dry_run(&grid, &cost::estimate(&grid, &device)?, &out);
    }
    let minutes = |m: f64| {
        Duration::try_from_secs_f64(m * 60.0)
            .with_context(|| format!("--max-minutes {m}: expected a number of at least 0"))
    };
    let limit = args.max_minutes.map(minutes).transpose()?;
    let interrupted = interrupt::flag()?;
    if args.prepare {
        let configs: Vec<_> = grid.runs.iter().filter_map(|run| run.config().ok()).collect();
        let stop = || interrupted.load(Ordering::Relaxed);
        let done = prepare(&configs.iter().collect::<Vec<_>>(), &device, &stop, &mut |line| {
            if !global.quiet {
                say(line);
            }
        })?;
        let value = json!({
            "out": out.display().to_string(), "cells_done": with_report(&grid, &out), "cells_total": grid.runs.len(),
        });
        return Ok(match done {
            Prepared::Done => Done::Result("the teachers' caches are full\n".into(), value),
            Prepared::Interrupted => Done::Interrupted("interrupted; the views that are whole are kept".into()),
        });
    }
    if grid.put_about(&out)? && !global.quiet {
        say(format!("{} is not the grid's [table] and stays as it is", out.join("table.toml").display()));
    }
    let jobs = args.jobs.unwrap_or(1) as usize;
    let options = Options {
        out: out.clone(),
        jobs,
        threads: (rayon::current_num_threads() / jobs).max(1),
        device: global.device.clone(),
        compute: device,
        limit,
        quiet: global.quiet,
        interrupted: &interrupted,
    };
    if args.launcher == Launcher::Slurm {
        return submit(args, global, &grid, &options);
    }
    let summary = runner::run(&grid, &options)?;
    let count = |f: fn(&Status) -> bool| summary.statuses.iter().filter(|s| f(s)).count();
    let done = count(|s| matches!(s, Status::Done { .. }));
    let diverged = count(|s| matches!(s, Status::Diverged(_)));
    let failed = count(|s| matches!(s, Status::Failed(_)));
    let total = summary.statuses.len();
    let mut text = format!("{done} of {total} runs are done");
    for (count, what) in [(diverged, "diverged"), (failed, "could not run")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text += &format!("; in {}\n", out.display());
    for (run, status) in grid.runs.iter().zip(&summary.statuses) {
        if let Status::Failed(why) | Status::Diverged(why) = status {
            text += &format!("  {}: {why}\n", run.id());
        }
    }
    if summary.stopped {
        return Ok(Done::Interrupted(format!("{text}The same command goes on where this was left.")));
    }
    // One cell's mistake is that cell's; a grid of which nothing could run, or the one run of a cluster's task, has failed.
    if failed == total {
        return Ok(Done::Told(1, text.trim_end().into()));
    }
    let value = json!({
        "out": out.display().to_string(), "cells_done": done, "cells_total": total, "cells_diverged": diverged, "cells_failed": failed,
    });
    Ok(Done::Result(text, value))
}

/// Hands the grid to Slurm.
fn submit(args: &AblateArgs, global: &Global, grid: &Grid, options: &Options) -> Result<Done> {
    let statuses = runner::look(grid, options)?;
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("finding {}", path.display()));
    let out = absolute(&options.out)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut arguments = vec!["ablate".into(), text(&absolute(&args.grid)?), "--out".into(), text(&out)];
    let mut add = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
    args.profile.iter().for_each(|profile| add("--profile", profile));
    args.seeds.iter().for_each(|seeds| add("--seeds", seeds));
    args.set.iter().for_each(|set| add("--set", set));
    args.block.iter().for_each(|block| add("--block", block));
    global.seed.iter().for_each(|seed| add("--seed", &seed.to_string()));
    add("--device", &global.device);
    let threads = rayon::current_num_threads();
    add("--threads", &threads.to_string());
    let submission = slurm::Submission {
        grid,
        out: &out,
        program: std::env::current_exe().context("finding the program itself")?,
        arguments,
        threads,
        at_once: args.jobs.map(usize::from),
        options: args.sbatch.clone(),
    };
    let jobs = slurm::submit(&submission, &statuses)?;
    let (done, total) = (statuses.iter().filter(|s| s.is_over()).count(), statuses.len());
    let (text, value) = match jobs {
        None => (format!("all {total} runs are over; in {}\n", out.display()), json!(null)),
        Some(jobs) => (
            format!(
                "{} of {total} runs submitted: job {} fills the teachers' caches, array {} runs, job {} prints the table.\n\
                 What they say is in {}. The same command submits what is missing then.\n",
                total - done,
                jobs.caches,
                jobs.runs,
                jobs.table,
                out.join("slurm").display()
            ),
            json!({ "caches": jobs.caches, "runs": jobs.runs, "table": jobs.table }),
        ),
    };
    Ok(Done::Result(
        text,
        json!({ "out": out.display().to_string(), "cells_done": done, "cells_total": total, "jobs": value }),
    ))
}

/// Runs that have a report; whether it is of this very configuration is looked at when the grid is run.
fn with_report(grid: &Grid, out: &Path) -> usize {
    grid.runs.iter().filter(|run| out.join(run.id()).join("report.json").is_file()).count()
}

fn dry_run(grid: &Grid, cost: &cost::Cost, out: &Path) -> Result<Done> {
    let mut table = Table::new(vec![
        column("cell", "cell", 0),
        column("runs", "runs", 0),
        column("epochs", "epochs", 0),
        column("pflop", "PFLOP", 2),
        column("hours", "hours", 2),
    ]);
    let mut failed = String::new();
    for cell in &cost.cells {
        let [epochs, pflop, hours] = match &cell.error {
            None => [cell.epochs.into(), (cell.flops / 1e15).into(), cell.hours.into()],
            Some(error) => {
                failed += &format!("{} cannot run: {error}\n", cell.name);
                [Entry::Nothing, Entry::Nothing, Entry::Nothing]
            }
        };
        table.rows.push(vec![cell.name.clone().into(), cell.runs.into(), epochs, pflop, hours]);
    }
    let runs: usize = cost.cells.iter().map(|c| c.runs).sum();
    let sum = |f: fn(&cost::CellCost) -> f64| cost.cells.iter().map(f).sum::<f64>();
    let hours = sum(|c| c.hours) + cost.cache_hours;
    let pflop = sum(|c| c.flops) / 1e15;
    table.rows.push(vec!["all".into(), runs.into(), Entry::Nothing, pflop.into(), hours.into()]);
    let (threads, done) = (rayon::current_num_threads(), with_report(grid, out));
    let text = format!(
        "{}{failed}hours: steps and evaluations measured here on {threads} threads, one run\n\
         after another; each run's report comes on top.\n\
         Teachers' caches: {} MB on disk, {:.2} h to fill, once.\n\
         Profile {}, folder {}, {done} of {runs} runs have a report.\n",
        table.text(),
        cost.cache_mb,
        cost.cache_hours,
        grid.profile,
        out.display()
    );
    let cells = cost.cells.iter().map(|c| {
        json!({
            "cell": c.name, "runs": c.runs, "epochs": c.epochs, "flops": c.flops, "hours": c.hours, "error": c.error,
        })
    });
    let value = json!({
        "out": out.display().to_string(), "cells_done": done, "cells_total": runs, "rows": cells.collect::<Vec<_>>(), "hours": hours,
        "cache_mb": cost.cache_mb, "cache_hours": cost.cache_hours, "threads": threads,
    });
    Ok(Done::Result(text, value))
}
