use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::interrupt;
use crate::cli::{AblateArgs, Done, Global};
use crate::grid::runner::{self, Options, Status};
use crate::grid::{Choice, Grid, cost, parse_seeds};
use crate::teacher::prepare::{Prepared, prepare};

/// `trainer ablate`.
pub fn run(args: &AblateArgs, global: &Global) -> Result<Done> {
    let mut seeds = args.seeds.as_deref().map(parse_seeds).transpose()?;
    if let (None, Some(seed)) = (&seeds, global.seed) {
        seeds = Some(vec![seed]);
    }
    let choice = Choice {
        profile: args.profile.map(|p| p.name().into()),
        seeds,
        blocks: args.block.clone(),
        set: args.set.clone(),
    };
    let grid = Grid::read(&args.grid, &choice)?;
    let out = args.out.clone().unwrap_or_else(|| grid.folder());
    let device = global.device()?;
    if args.dry_run {
        return dry_run(&grid, &cost::estimate(&grid, &device)?, &out.display().to_string());
    }
    let minutes = |m: f64| {
        Duration::try_from_secs_f64(m * 60.0)
            .with_context(|| format!("--max-minutes {m}: expected a number of at least 0"))
    };
    let limit = args.max_minutes.map(minutes).transpose()?;
    let interrupted = interrupt::flag()?;
    if args.prepare {
        let configs: Vec<_> = grid.cells.iter().filter_map(|cell| cell.config().ok()).collect();
        let stop = || interrupted.load(Ordering::Relaxed);
        let done = prepare(&configs.iter().collect::<Vec<_>>(), &device, &stop, &mut |line| {
            if !global.quiet {
                eprintln!("{line}");
            }
        })?;
        let value = json!({ "out": out, "cells_done": 0, "cells_total": grid.cells.len() });
        return Ok(match done {
            Prepared::Done => Done::Result("the teachers' caches are full\n".into(), value),
            Prepared::Interrupted => Done::Interrupted("interrupted; the views that are whole are kept".into()),
        });
    }
    let jobs = args.jobs as usize;
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
    for (cell, status) in grid.cells.iter().zip(&summary.statuses) {
        if let Status::Failed(why) | Status::Diverged(why) = status {
            text += &format!("  {}: {why}\n", cell.id());
        }
    }
    if summary.stopped {
        return Ok(Done::Interrupted(format!("{text}The same command goes on where this was left.")));
    }
    let value = json!({
        "out": out, "cells_done": done, "cells_total": total, "cells_diverged": diverged, "cells_failed": failed,
    });
    Ok(Done::Result(text, value))
}

fn dry_run(grid: &Grid, cost: &cost::Cost, out: &str) -> Result<Done> {
    let width = cost.rows.iter().map(|r| r.name.len()).max().unwrap_or(4);
    let mut text = format!("{:width$} {:>5} {:>7} {:>8} {:>7}\n", "cell", "runs", "epochs", "PFLOP", "hours");
    for row in &cost.rows {
        text += &match &row.error {
            None => format!(
                "{:width$} {:5} {:7} {:8.2} {:7.2}\n",
                row.name,
                row.runs,
                row.epochs,
                row.flops / 1e15,
                row.hours
            ),
            Some(error) => format!("{:width$} {:5} cannot run: {error}\n", row.name, row.runs),
        };
    }
    let runs: usize = cost.rows.iter().map(|r| r.runs).sum();
    let sum = |f: fn(&cost::Row) -> f64| cost.rows.iter().map(f).sum::<f64>();
    let hours = sum(|r| r.hours) + cost.cache_hours;
    text += &format!("{:width$} {runs:5} {:>7} {:8.2} {hours:7.2}\n", "all", "", sum(|r| r.flops) / 1e15);
    text += &format!(
        "hours: steps measured here on {} threads, one run after another; evaluation comes on top.\n\
         Teachers' caches: {} MB on disk, {:.2} h to fill, once. Profile {}, folder {out}.\n",
        rayon::current_num_threads(),
        cost.cache_mb,
        cost.cache_hours,
        grid.profile
    );
    let rows: Vec<_> = cost
        .rows
        .iter()
        .map(|r| {
            json!({
                "cell": r.name, "runs": r.runs, "epochs": r.epochs, "flops": r.flops, "hours": r.hours, "error": r.error,
            })
        })
        .collect();
    let value = json!({
        "out": out, "cells_done": 0, "cells_total": runs, "rows": rows, "hours": hours, "cache_mb": cost.cache_mb,
        "cache_hours": cost.cache_hours, "threads": rayon::current_num_threads(),
    });
    Ok(Done::Result(text, value))
}
