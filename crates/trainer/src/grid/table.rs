//! The table of a grid, from its run folders alone: what each cell came to, what the differences are worth, and what that says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Value;

use crate::report::table::{Entry, Table, column};
use crate::stats::{self, Difference, Pooled};
use crate::train::{Report, bits};

/// What a `table.toml` beside the runs may add: the published values, the margin, and what is compared with what.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct About {
    /// Points within which two cells count as equal.
    margin: f64,
    /// `block/cell` and the error that somebody has published for it.
    published: BTreeMap<String, f64>,
    /// `block/cell` and the cell of its block that it is compared with, where that is not `...-none`.
    against: BTreeMap<String, String>,
}

impl Default for About {
    fn default() -> Self {
        About { margin: 0.2, published: BTreeMap::new(), against: BTreeMap::new() }
    }
}

/// A finished run.
struct Run {
    seed: u64,
    report: Report,
    config: Value,
}

/// The runs of a cell, by seed.
struct Cell {
    block: String,
    name: String,
    runs: Vec<Run>,
    diverged: Vec<u64>,
}

impl Cell {
    fn errors(&self) -> Vec<f64> {
        self.runs.iter().map(|r| r.report.test_error).collect()
    }

    fn id(&self) -> String {
        if self.block.is_empty() { self.name.clone() } else { format!("{}/{}", self.block, self.name) }
    }

    /// The mean of a figure over the runs that have it.
    fn mean(&self, figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        let all: Vec<f64> = self.runs.iter().filter_map(figure).collect();
        (!all.is_empty()).then(|| stats::mean(&all))
    }

    /// A setting that all its runs share, as text.
    fn setting(&self, path: &str) -> String {
        let config = self.runs.first().map(|r| &r.config);
        let found = config.and_then(|c| path.split('.').try_fold(c, |v, key| v.get(key)));
        found.map_or(String::new(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
    }
}

/// What a cell's difference to another is worth.
pub struct Comparison {
    /// The other's name.
    pub against: String,
    /// This cell's mean error less the other's.
    pub difference: Difference,
    /// Its probability, corrected by Holm over the block.
    pub holm: f64,
    /// p of the two one-sided tests of a difference of at least the margin; not corrected.
    pub equivalence: f64,
    /// The same difference by pairs of one seed, and how the pairs correlate.
    pub paired: Option<(Difference, Option<f64>)>,
    /// Images on which only this cell's run is wrong, only the other's, for each seed that both have. The images are the same each time:
    /// the counts of several seeds are no larger sample of images.
    pub discordant: Vec<(u64, u64)>,
    /// Runs a side that would show a difference of this size.
    pub needed: Option<usize>,
}

/// A cell's figures.
pub struct Row {
    /// `block/cell`.
    pub cell: String,
    /// Finished runs.
    pub n: usize,
    /// Runs that diverged.
    pub diverged: usize,
    /// Mean test error in percent.
    pub error: f64,
    /// Half of its 95 % interval, with the block's standard deviation.
    pub half_width: Option<f64>,
    /// Standard deviation over its own seeds.
    pub sd: Option<f64>,
    /// What has been published for it.
    pub published: Option<f64>,
    /// Against its reference, if it has one.
    pub comparison: Option<Comparison>,
    /// Mean negative log-likelihood on the test images.
    pub nll: Option<f64>,
    /// Test images on which student and teacher name the same class, in percent.
    pub same_class: Option<f64>,
    /// KL(teacher || student) on the test images.
    pub kl: Option<f64>,
    /// Of the maps of its own interpreter, or of Grad-CAM: Pearson correlation, cosine, overlap of the highest fifth.
    pub maps: [Option<f64>; 3],
    /// The explanation term's share of the gradient's length: weight times norm, over that of the whole.
    pub share: Option<f64>,
    /// Every run's error, by seed.
    pub runs: Vec<(u64, f64)>,
}

/// Everything that is said of a grid.
pub struct Summary {
    /// A row a cell, block by block.
    pub rows: Vec<Row>,
    /// The margin of equivalence.
    pub margin: f64,
    /// The blocks' shared standard deviations.
    pub pooled: BTreeMap<String, Pooled>,
    /// The runs' profile.
    pub profile: String,
    /// Commits of the programs.
    pub commits: BTreeSet<String>,
    /// Processors.
    pub machines: BTreeSet<String>,
}

/// Reads the runs below `dir`.
pub fn read(dir: &Path) -> Result<Summary> {
    let about = dir.join("table.toml");
    let about: About = match fs::read_to_string(&about) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => About::default(),
        text => {
            let context = || format!("reading {}", about.display());
            toml::from_str(&text.with_context(context)?).with_context(context)?
        }
    };
    ensure!(
        about.margin > 0.0 && about.margin.is_finite(),
        "table.toml: margin is {}; it must be a positive number of points",
        about.margin
    );
    let mut cells: Vec<Cell> = vec![];
    walk(dir, dir, &mut cells)?;
    ensure!(!cells.is_empty(), "there are no finished runs (folders with a report.json) below {}", dir.display());
    check(&cells)?;
    // Within a block a cell without the term comes first.
    cells.sort_by_key(|c| (c.block.clone(), stem(&c.name).to_string(), !c.name.ends_with("none"), c.name.clone()));
    let mut summary = Summary {
        rows: vec![],
        margin: about.margin,
        pooled: BTreeMap::new(),
        profile: cells.iter().find_map(|c| Some(c.runs.first()?.report.profile.clone())).unwrap_or_default(),
        commits: BTreeSet::new(),
        machines: BTreeSet::new(),
    };
    for run in cells.iter().flat_map(|c| &c.runs) {
        summary.commits.extend(run.report.commits.iter().cloned().chain([run.report.commit.clone()]));
        summary.machines.insert(run.report.machine.clone());
    }
    let blocks: BTreeSet<String> = cells.iter().map(|c| c.block.clone()).collect();
    for block in blocks {
        let of_block: Vec<&Cell> = cells.iter().filter(|c| c.block == block).collect();
        let errors: Vec<Vec<f64>> = of_block.iter().map(|c| c.errors()).collect();
        let pooled = stats::pooled(errors.iter().map(Vec::as_slice));
        let mut rows = of_block.iter().map(|cell| row(cell, pooled, &about)).collect::<Vec<_>>();
        let mut compared = Vec::new();
        for (at, cell) in of_block.iter().enumerate() {
            if let (Some(pooled), Some(reference)) = (pooled, reference(cell, &of_block, &about)?) {
                rows[at].comparison = compare(cell, reference, pooled, about.margin)?;
                compared.extend(rows[at].comparison.is_some().then_some(at));
            }
        }
        let p: Vec<f64> = compared.iter().filter_map(|at| Some(rows[*at].comparison.as_ref()?.difference.p)).collect();
        for (at, holm) in compared.into_iter().zip(stats::holm(&p)) {
            if let Some(comparison) = &mut rows[at].comparison {
                comparison.holm = holm;
            }
        }
        summary.rows.extend(rows);
        summary.pooled.extend(pooled.map(|p| (block, p)));
    }
    Ok(summary)
}

fn walk(root: &Path, dir: &Path, cells: &mut Vec<Cell>) -> Result<()> {
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
            cells.push(Cell { block, name, runs: vec![], diverged: vec![] });
            cells.len() - 1
        });
        let found = report.is_file().then(|| finished(dir)).transpose()?.flatten();
        match found {
            Some(run) => cells[at].runs.push(run),
            None if diverged.is_file() => cells[at].diverged.push(seed.unwrap_or(0)),
            None => {}
        }
        return Ok(());
    }
    let hidden = |p: &Path| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    paths.iter().filter(|p| p.is_dir() && !hidden(p)).try_for_each(|p| walk(root, p, cells))
}

/// The run of a folder with a report; None if that is the report of a shorter run that is being made longer.
fn finished(dir: &Path) -> Result<Option<Run>> {
    let (report, config) = (dir.join("report.json"), dir.join("config.toml"));
    let bytes = fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
    let found: Report = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", report.display()))?;
    let text = fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    let config = Value::Table(text.parse().with_context(|| format!("{} is damaged", config.display()))?);
    let epochs = config.get("train").and_then(|t| t.get("epochs")).and_then(Value::as_integer);
    let own = epochs.is_none_or(|n| n == found.epochs as i64);
    Ok(own.then(|| Run { seed: found.seed, report: found, config }))
}

/// Refuses to put together what does not belong together.
fn check(cells: &[Cell]) -> Result<()> {
    let mut profile: Option<(&str, String)> = None;
    for cell in cells {
        for run in &cell.runs {
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
                precision(run) == precision(first) && run.report.device == first.report.device,
                "{}: seeds {} and {} were computed in different precisions or on different devices ({}, {}): a cell has one",
                cell.id(),
                first.seed,
                run.seed,
                first.report.machine,
                run.report.machine
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

/// What a run was computed in: bf16 is f32 on a processor without it.
fn precision(run: &Run) -> (String, bool) {
    let dtype = run.config.get("train").and_then(|t| t.get("dtype")).and_then(Value::as_str).unwrap_or("f32");
    (dtype.to_string(), dtype == "bf16" && run.report.machine.ends_with("Bf16"))
}

/// A configuration without its seeds and paths.
fn without_seed(config: &Value) -> Value {
    let mut config = config.clone();
    for (section, keys) in [
        ("train", &["seed", "max_minutes", "log_every", "save_every"][..]),
        ("data", &["seed", "dir"]),
        ("teacher", &["checkpoint", "cache", "cache_limit_mb"]),
        ("student", &["checkpoint"]),
    ] {
        if let Some(table) = config.get_mut(section).and_then(Value::as_table_mut) {
            keys.iter().for_each(|key| drop(table.remove(*key)));
        }
    }
    config
}

/// A name without its last part: `kd` of `kd-grad_cam`.
fn stem(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(stem, _)| stem)
}

/// The cell that another is compared with: the one that `table.toml` names, or the one without the term, `STEM-none`.
fn reference<'c>(cell: &Cell, block: &[&'c Cell], about: &About) -> Result<Option<&'c Cell>> {
    let find = |name: &str| block.iter().copied().find(|c| c.name == name && c.name != cell.name);
    if let Some(name) = about.against.get(&cell.id()) {
        return match find(name) {
            Some(found) => Ok(Some(found)),
            None => bail!("table.toml compares {} with {name}, which has no finished run in its block", cell.id()),
        };
    }
    Ok(find(&format!("{}-none", stem(&cell.name))))
}

fn row(cell: &Cell, pooled: Option<Pooled>, about: &About) -> Row {
    let errors = cell.errors();
    let interpreter = cell.setting("loss.interpreter");
    let matched = cell.runs.iter().any(|r| r.report.gradient_norms.contains_key("explanation"));
    let alike = |run: &Run| {
        let maps = &run.report.agreement.as_ref()?.maps;
        maps.get(if matched { interpreter.as_str() } else { "grad_cam" }).or_else(|| maps.get("grad_cam")).copied()
    };
    let weight: Option<f64> = cell.setting("loss.weights.explanation").parse().ok();
    let share = |run: &Run| {
        let norms = &run.report.gradient_norms;
        Some(100.0 * weight? * norms.get("explanation")? / norms.get("total")?)
    };
    Row {
        cell: cell.id(),
        n: errors.len(),
        diverged: cell.diverged.len(),
        error: stats::mean(&errors),
        half_width: pooled.filter(|_| !errors.is_empty()).map(|p| stats::half_width(p, errors.len())),
        sd: stats::sd(&errors),
        published: about.published.get(&cell.id()).copied(),
        comparison: None,
        nll: cell.mean(|r| Some(r.report.test_loss)),
        same_class: cell.mean(|r| Some(r.report.agreement.as_ref()?.same_class)),
        kl: cell.mean(|r| Some(r.report.agreement.as_ref()?.kl)),
        maps: [
            cell.mean(|r| Some(alike(r)?.pearson)),
            cell.mean(|r| Some(alike(r)?.cosine)),
            cell.mean(|r| Some(alike(r)?.top20)),
        ],
        share: cell.mean(share),
        runs: cell.runs.iter().map(|r| (r.seed, r.report.test_error)).collect(),
    }
}

fn compare(cell: &Cell, reference: &Cell, pooled: Pooled, margin: f64) -> Result<Option<Comparison>> {
    let input = |c: &Cell, what: &str| c.runs.first().and_then(|r| r.report.inputs.get(what).cloned());
    for what in ["teacher", "test images"] {
        if let (Some(a), Some(b)) = (input(cell, what), input(reference, what)) {
            ensure!(a == b, "{} and {} have different {what}: they cannot be compared", cell.id(), reference.id());
        }
    }
    let Some(difference) = stats::unpaired(&cell.errors(), &reference.errors(), pooled) else { return Ok(None) };
    let pairs: Vec<(&Run, &Run)> =
        cell.runs.iter().filter_map(|a| Some((a, reference.runs.iter().find(|b| b.seed == a.seed)?))).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(a, b)| (a.report.test_error, b.report.test_error)).unzip();
    let discordant = pairs.iter().map(|(a, b)| {
        let (a, b) = (bits(&a.report.test_wrong)?, bits(&b.report.test_wrong)?);
        let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count() as u64;
        (!a.is_empty() && a.len() == b.len()).then(|| (only(&a, &b), only(&b, &a)))
    });
    let discordant: Option<Vec<(u64, u64)>> = discordant.collect();
    Ok(Some(Comparison {
        against: reference.name.clone(),
        holm: difference.p,
        equivalence: difference.equivalence(margin),
        // Two pairs always lie on a line.
        paired: stats::paired(&a, &b).map(|d| (d, cams::metrics::pearson(&a, &b).filter(|_| a.len() > 2))),
        discordant: discordant.unwrap_or_default(),
        needed: stats::runs_needed(difference.mean, pooled.sd),
        difference,
    }))
}

impl Comparison {
    /// McNemar's test of each pair of runs: the median of their p.
    pub fn mcnemar(&self) -> Option<f64> {
        let mut p: Vec<f64> = self.discordant.iter().map(|(b, c)| stats::mcnemar(*b, *c)).collect();
        p.sort_by(f64::total_cmp);
        let middle = |at: usize| p.get(at).copied();
        Some((middle(p.len().checked_sub(1)? / 2)? + middle(p.len() / 2)?) / 2.0)
    }
}

impl Summary {
    /// Errors, seed by seed summarised, beside what was published.
    pub fn errors(&self) -> Table {
        let mut table = Table::new(vec![
            column("cell", "cell", 0),
            column("n", "n", 0),
            column("error", "error % (95 %)", 2),
            column("sd", "sd", 2),
            column("published", "published", 2),
            column("nll", "NLL", 3),
        ]);
        for r in &self.rows {
            let error = r.half_width.map_or_else(|| r.error.into(), |half| Entry::Spread(r.error, half));
            table.rows.push(vec![
                r.cell.clone().into(),
                r.n.into(),
                error,
                r.sd.into(),
                r.published.into(),
                r.nll.into(),
            ]);
        }
        table
    }

    /// What the differences are worth.
    pub fn differences(&self) -> Table {
        let mut table = Table::new(vec![
            column("cell", "cell", 0),
            column("against", "against", 0),
            column("difference", "points (95 %)", 2),
            column("holm", "p (Holm)", 3),
            column("equivalence", format!("p (±{})", self.margin), 3),
            column("correlation", "pairs' r", 2),
            column("mcnemar", "McNemar", 3),
        ]);
        for r in &self.rows {
            let Some(c) = &r.comparison else { continue };
            table.rows.push(vec![
                r.cell.clone().into(),
                c.against.clone().into(),
                Entry::Spread(c.difference.mean, c.difference.half_width()),
                c.holm.into(),
                c.equivalence.into(),
                c.paired.and_then(|(_, r)| r).into(),
                c.mcnemar().into(),
            ]);
        }
        table
    }

    /// What the term does beside the error.
    pub fn effects(&self) -> Table {
        let mut table = Table::new(vec![
            column("cell", "cell", 0),
            column("same_class", "same class %", 2),
            column("kl", "KL", 3),
            column("pearson", "maps' r", 3),
            column("cosine", "cosine", 3),
            column("top20", "top 20 %", 3),
            column("share", "gradient %", 2),
        ]);
        for r in self.rows.iter().filter(|r| r.same_class.is_some()) {
            let [pearson, cosine, top20] = r.maps;
            table.rows.push(vec![
                r.cell.clone().into(),
                r.same_class.into(),
                r.kl.into(),
                pearson.into(),
                cosine.into(),
                top20.into(),
                r.share.into(),
            ]);
        }
        table
    }

    /// Everything, a row a cell: for CSV and JSON.
    pub fn whole(&self) -> Table {
        let names = [
            "cell",
            "n",
            "diverged",
            "error",
            "half_width",
            "sd",
            "published",
            "against",
            "difference",
            "difference_half_width",
            "p",
            "holm",
            "equivalence",
            "paired_difference",
            "paired_p",
            "correlation",
            "only_this_wrong",
            "only_other_wrong",
            "mcnemar",
            "runs_needed",
            "nll",
            "same_class",
            "kl",
            "pearson",
            "cosine",
            "top20",
            "share",
        ];
        let mut table = Table::new(names.map(|name| column(name, name, 4)).into());
        for r in &self.rows {
            let c = r.comparison.as_ref();
            let of = |figure: &dyn Fn(&Comparison) -> Option<f64>| Entry::from(c.and_then(figure));
            let [pearson, cosine, top20] = r.maps;
            let count = |n: Option<u64>| n.map_or(Entry::Nothing, Entry::Count);
            table.rows.push(vec![
                r.cell.clone().into(),
                r.n.into(),
                r.diverged.into(),
                r.error.into(),
                r.half_width.into(),
                r.sd.into(),
                r.published.into(),
                c.map_or(Entry::Nothing, |c| c.against.clone().into()),
                of(&|c| Some(c.difference.mean)),
                of(&|c| Some(c.difference.half_width())),
                of(&|c| Some(c.difference.p)),
                of(&|c| Some(c.holm)),
                of(&|c| Some(c.equivalence)),
                of(&|c| Some(c.paired?.0.mean)),
                of(&|c| Some(c.paired?.0.p)),
                of(&|c| c.paired?.1),
                count(c.map(|c| c.discordant.iter().map(|d| d.0).sum())),
                count(c.map(|c| c.discordant.iter().map(|d| d.1).sum())),
                of(&Comparison::mcnemar),
                count(c.and_then(|c| Some(c.needed? as u64))),
                r.nll.into(),
                r.same_class.into(),
                r.kl.into(),
                pearson.into(),
                cosine.into(),
                top20.into(),
                r.share.into(),
            ]);
        }
        table
    }

    /// A sentence a comparison.
    pub fn sentences(&self) -> Vec<String> {
        let of = |r: &Row| {
            let c = r.comparison.as_ref()?;
            let (mean, half) = (c.difference.mean, c.difference.half_width());
            let found = format!("{mean:+.2} ± {half:.2} points against {}", c.against);
            let verdict = if c.holm < 0.05 {
                format!("{} ({found}, p = {:.3} after Holm)", if mean < 0.0 { "better" } else { "worse" }, c.holm)
            } else if c.equivalence < 0.05 {
                format!("equivalent to within {} points ({found}, p = {:.3})", self.margin, c.equivalence)
            } else {
                let needed = c.needed.map_or("a thousand or more".into(), |n| n.to_string());
                format!("not distinguishable ({found}; a difference of this size would need {needed} seeds a cell)")
            };
            Some(format!("{}: {verdict}", r.cell))
        };
        self.rows.iter().filter_map(of).collect()
    }

    /// What holds for the whole table.
    pub fn notes(&self) -> Vec<String> {
        let sd =
            |(block, p): (&String, &Pooled)| format!("{:.3}{} ({} degrees of freedom)", p.sd, in_block(block), p.df);
        let shared: Vec<String> = self.pooled.iter().map(sd).collect();
        let mut notes = vec![format!("Profile {}, test error after the last epoch.", self.profile)];
        if !shared.is_empty() {
            notes.push(format!(
                "Intervals and tests use the standard deviation over seeds that a block's cells share: {}. Three seeds a cell show differences of {:.2} points, 5 of {:.2}, 12 of {:.2} (80 % of cases, 5 %).",
                shared.join(", "),
                self.seen_by(3),
                self.seen_by(5),
                self.seen_by(12)
            ));
        }
        notes.push(
            "Differences: Holm over the comparisons of a block; the tests of equivalence are not corrected; McNemar: the median of the \
             pairs of runs of one seed."
                .into(),
        );
        let diverged: usize = self.rows.iter().map(|r| r.diverged).sum();
        if diverged > 0 {
            notes.push(format!("{diverged} runs diverged; their cells' means are of the others."));
        }
        notes.push(format!(
            "Commit {}; {}.",
            self.commits.iter().cloned().collect::<Vec<_>>().join(", "),
            self.machines.iter().cloned().collect::<Vec<_>>().join(", ")
        ));
        notes
    }

    /// The difference that `n` runs a cell show, with the largest of the blocks' standard deviations.
    fn seen_by(&self, n: usize) -> f64 {
        stats::visible(n) * self.pooled.values().map(|p| p.sd).fold(0.0, f64::max)
    }
}

fn in_block(block: &str) -> String {
    if block.is_empty() { String::new() } else { format!(" in {block}") }
}
