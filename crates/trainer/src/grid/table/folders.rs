//! The runs of a grid as they lie in their folders, and that they belong together.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use super::arithmetic;
use crate::config::{Config, typed};
use crate::report::statistics;
use crate::run::{JudgedBy, Report};

/// A finished run.
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) report: Report,
    pub(super) config: Value,
}

impl Run {
    fn holds_out(&self) -> bool {
        let count = self.config.get("data").and_then(|d| d.get("validation")).and_then(Value::as_integer);
        count.is_some_and(|n| n > 0)
    }

    /// The images that its curve is of.
    pub(super) fn curve_of(&self) -> JudgedBy {
        if self.holds_out() { JudgedBy::HeldOutImages } else { JudgedBy::TestImages }
    }
}

/// The runs of a cell, by seed.
pub(super) struct Cell {
    pub(super) block: String,
    pub(super) name: String,
    pub(super) runs: Vec<Run>,
    pub(super) diverged: Vec<u64>,
    pub(super) judged_by: JudgedBy,
}

impl Cell {
    pub(super) fn error(&self, run: &Run) -> f64 {
        run.report.error(self.judged_by)
    }

    pub(super) fn errors(&self) -> Vec<f64> {
        self.runs.iter().map(|run| self.error(run)).collect()
    }

    pub(super) fn id(&self) -> String {
        id(&self.block, &self.name)
    }

    /// The mean of a figure over the runs that have it.
    pub(super) fn mean(&self, figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        let all: Vec<f64> = self.runs.iter().filter_map(figure).collect();
        (!all.is_empty()).then(|| statistics::mean(&all))
    }

    /// A setting that all its runs share, as text.
    pub(super) fn setting(&self, path: &str) -> String {
        let config = self.runs.first().map(|r| &r.config);
        let found = config.and_then(|c| path.split('.').try_fold(c, |v, key| v.get(key)));
        found.map_or(String::new(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
    }
}

/// `block/cell`, or the cell alone outside a grid.
pub(super) fn id(block: &str, cell: &str) -> String {
    if block.is_empty() { cell.into() } else { format!("{block}/{cell}") }
}

/// Adds the runs below `dir` to their cells.
pub(super) fn walk(root: &Path, dir: &Path, cells: &mut Vec<Cell>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading the folder {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let (report, diverged) = (dir.join("report.json"), dir.join("diverged.json"));
    if report.is_file() || diverged.is_file() {
        let parts: Vec<String> = dir
            .strip_prefix(root)
            .map(|p| p.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        // block/cell/sN in a grid; elsewhere runs whose names differ in their seeds alone: name-sN.
        let last = parts.last().cloned().unwrap_or_default();
        let (stem, of_seed) = last.rsplit_once('-').map_or(("", last.as_str()), |(stem, seed)| (stem, seed));
        let seed = of_seed.strip_prefix('s').and_then(|n| n.parse::<u64>().ok());
        let stem = if seed.is_some() { stem } else { last.as_str() };
        let mut names: Vec<String> = parts[..parts.len().saturating_sub(1)].to_vec();
        names.extend((!stem.is_empty()).then(|| stem.to_string()));
        let name = names.pop().unwrap_or_else(|| "run".into());
        let block = names.join("/");
        let at = cells.iter().position(|c| c.block == block && c.name == name).unwrap_or_else(|| {
            cells.push(Cell { block, name, runs: vec![], diverged: vec![], judged_by: JudgedBy::default() });
            cells.len() - 1
        });
        let found = report.is_file().then(|| finished(dir)).transpose()?.flatten();
        match found {
            Some(run) => cells[at].runs.push(run),
            None if diverged.is_file() => cells[at].diverged.push(seed.or_else(|| configured_seed(dir)).unwrap_or(0)),
            None => {}
        }
        return Ok(());
    }
    let hidden = |p: &Path| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    paths.iter().filter(|p| p.is_dir() && !hidden(p)).try_for_each(|p| walk(root, p, cells))
}

/// The seed that a run's settings name, where its folder's name does not.
fn configured_seed(dir: &Path) -> Option<u64> {
    let settings: Table = fs::read_to_string(dir.join("config.toml")).ok()?.parse().ok()?;
    settings.get("train")?.get("seed")?.as_integer()?.try_into().ok()
}

/// The run of a folder with a report; None if that is the report of a shorter run that is being made longer.
fn finished(dir: &Path) -> Result<Option<Run>> {
    let (report, config) = (dir.join("report.json"), dir.join("config.toml"));
    let bytes = fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
    let found: Report = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", report.display()))?;
    let text = fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    let config: Table = text.parse().with_context(|| format!("{} is damaged", config.display()))?;
    let epochs = config.get("train").and_then(|t| t.get("epochs")).and_then(Value::as_integer);
    let own = epochs.is_none_or(|n| n == found.epochs as i64);
    Ok(own.then(|| Run { seed: found.seed, report: found, config: complete(config) }))
}

/// A run's settings with those that its program did not have yet, at what they are unless somebody asks for another.
fn complete(config: Table) -> Value {
    let complete = typed::<Config>(config.clone()).ok().and_then(|config| Value::try_from(config).ok());
    complete.unwrap_or(Value::Table(config))
}

/// Refuses to put together what does not belong together.
pub(super) fn check(cells: &[Cell]) -> Result<()> {
    arithmetic::check(cells)?;
    let mut profile: Option<(&str, String)> = None;
    for cell in cells {
        for run in &cell.runs {
            ensure!(
                cell.judged_by == JudgedBy::TestImages
                    || (run.holds_out() && run.report.error(cell.judged_by).is_finite()),
                "table.toml asks for the error of held-out images in the block {}, but {} seed {} held none out (data.validation)",
                cell.block,
                cell.name,
                run.seed
            );
            let own = run.report.profile.as_str();
            let (first, by) = profile.get_or_insert((own, cell.id()));
            ensure!(
                *first == own,
                "{by} is of profile {first}, {} of profile {own}: a table has one profile",
                cell.id()
            );
        }
        let seeds: BTreeSet<u64> = cell.runs.iter().map(|r| r.seed).collect();
        ensure!(seeds.len() == cell.runs.len(), "{} holds two runs of one seed", cell.id());
        let Some(first) = cell.runs.first() else { continue };
        for run in &cell.runs {
            let seed_of_data = |r: &Run| r.config.get("data").and_then(|d| d.get("seed")).cloned();
            let names: BTreeSet<&String> = first.report.inputs.keys().chain(run.report.inputs.keys()).collect();
            for what in names {
                // With a seed of its own a run may hold out other images, or draw them.
                let moves = what.ends_with("images") && seed_of_data(run) != seed_of_data(first);
                ensure!(
                    moves || run.report.inputs.get(what) == first.report.inputs.get(what),
                    "{}: seeds {} and {} were made with different {what}: a cell has one",
                    cell.id(),
                    first.seed,
                    run.seed
                );
            }
            ensure!(
                run.report.device == first.report.device,
                "{}: seeds {} and {} were computed on different devices ({}, {}): a cell has one",
                cell.id(),
                first.seed,
                run.seed,
                first.report.device,
                run.report.device
            );
            ensure!(
                without_seed(&run.config) == without_seed(&first.config),
                "{}: seeds {} and {} have different settings (see their config.toml): a cell has one configuration",
                cell.id(),
                first.seed,
                run.seed
            );
        }
    }
    Ok(())
}

/// A configuration without its seeds (the run's, its methods', ...) and paths.
fn without_seed(config: &Value) -> Value {
    fn remove_seeds(value: &mut Value) {
        if let Some(table) = value.as_table_mut() {
            table.remove("seed");
            table.iter_mut().for_each(|(_, inner)| remove_seeds(inner));
        }
    }
    let mut config = config.clone();
    remove_seeds(&mut config);
    for (section, keys) in [
        ("train", &["max_minutes", "log_every", "save_every", "evaluate_every"][..]),
        ("data", &["dir"]),
        ("teacher", &["checkpoint", "cache", "cache_limit_mb"]),
        ("student", &["checkpoint"]),
    ] {
        if let Some(table) = config.get_mut(section).and_then(Value::as_table_mut) {
            keys.iter().for_each(|key| drop(table.remove(*key)));
        }
    }
    config
}
