//! The table of a grid, from its run folders alone: what each cell came to, what the differences are worth, and what
//! that says.

pub(super) mod arithmetic;
mod folders;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use folders::{Cell, Run, check, id, walk};
use serde::Deserialize;

use crate::report::statistics::{self, Difference, Pooled};
use crate::run::bits;

/// What a `table.toml` beside the runs may add: the published values, the margin, and what is compared with what.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct About {
    /// Points within which two cells count as equal.
    margin: f64,
    /// `block/cell` and the error that somebody has published for it.
    published: BTreeMap<String, f64>,
    /// `block/cell`, or `block` for all its cells, and the cell that it is compared with, where that is not `...-none`: a cell
    /// of its block, or another's `block/cell`.
    against: BTreeMap<String, String>,
    /// Blocks that settings are chosen by: their figure is the error of the images held out, and what their runs' reports say
    /// of the test images is not looked at.
    held_out: BTreeSet<String>,
}

impl Default for About {
    fn default() -> Self {
        About { margin: 0.2, published: BTreeMap::new(), against: BTreeMap::new(), held_out: BTreeSet::new() }
    }
}

/// What a cell's difference to another is worth.
pub struct Comparison {
    /// The other's name, with its block where that is another.
    pub against: String,
    /// This cell's mean error less the other's.
    pub difference: Difference,
    /// Its probability, corrected by Holm over the block.
    pub holm: f64,
    /// p of the two one-sided tests of a difference of at least the margin; not corrected.
    pub equivalence: f64,
    /// The same difference by pairs of one seed, and how the pairs correlate.
    pub paired: Option<(Difference, Option<f64>)>,
    /// Images on which only this cell's run is wrong, only the other's, for each seed that both have. The images are
    /// the same each time: the counts of several seeds are no larger sample of images.
    pub discordant: Vec<(u64, u64)>,
    /// Runs per side that would show a difference of this size.
    pub needed: Option<usize>,
}

/// A cell's figures.
pub struct CellFigures {
    /// Its block's name, empty outside a grid.
    pub block: String,
    /// `block/cell`.
    pub cell: String,
    /// Whether `error` is that of the images held out, not of the test images.
    pub held_out: bool,
    /// Finished runs.
    pub n: usize,
    /// Runs that diverged.
    pub diverged: usize,
    /// Mean error after the last epoch, in percent.
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
    /// Of each cell, block by block.
    pub cells: Vec<CellFigures>,
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
    /// Cells that others are compared with, but that have no finished run.
    pub awaited: BTreeSet<String>,
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
    cells.iter_mut().for_each(|cell| cell.held_out = about.held_out.contains(&cell.block));
    ensure!(!cells.is_empty(), "there are no finished runs (folders with a report.json) below {}", dir.display());
    check(&cells)?;
    // Within a block a cell without the term comes first.
    cells.sort_by_key(|c| (c.block.clone(), stem(&c.name).to_string(), !c.name.ends_with("none"), c.name.clone()));
    let mut summary = Summary {
        cells: vec![],
        margin: about.margin,
        pooled: BTreeMap::new(),
        profile: cells.iter().find_map(|c| Some(c.runs.first()?.report.profile.clone())).unwrap_or_default(),
        commits: BTreeSet::new(),
        machines: BTreeSet::new(),
        awaited: BTreeSet::new(),
    };
    for run in cells.iter().flat_map(|c| &c.runs) {
        summary.commits.extend(run.report.commits.iter().cloned().chain([run.report.commit.clone()]));
        summary.machines.insert(run.report.machine.clone());
    }
    let blocks: BTreeSet<&String> = cells.iter().map(|c| &c.block).collect();
    for block in blocks {
        add_block(&mut summary, block, &cells, &about)?;
    }
    Ok(summary)
}

/// Adds the figures of a block's cells and its family of comparisons.
fn add_block(summary: &mut Summary, block: &str, cells: &[Cell], about: &About) -> Result<()> {
    let own = cells.iter().filter(|c| c.block == block);
    let mut family = vec![];
    for cell in own {
        let reference = match reference(cell, about) {
            Some(Named { block, name, asked }) => {
                let found = cells.iter().find(|c| c.block == block && c.name == name && !c.runs.is_empty());
                summary.awaited.extend((asked && found.is_none()).then(|| id(&block, &name)));
                found
            }
            None => None,
        };
        family.push((cell, reference));
    }
    // The block's cells, and those of other blocks that they are compared with, once each.
    let others: BTreeMap<String, &Cell> =
        family.iter().filter_map(|(_, r)| r.filter(|r| r.block != block)).map(|r| (r.id(), r)).collect();
    let of_one_sd = family.iter().map(|(cell, _)| *cell).chain(others.into_values());
    let errors: Vec<Vec<f64>> = of_one_sd.map(Cell::errors).collect();
    let pooled = statistics::pooled(errors.iter().map(Vec::as_slice));
    let mut rows: Vec<CellFigures> = family.iter().map(|(cell, _)| figures(cell, pooled, about)).collect();
    for (row, (cell, reference)) in rows.iter_mut().zip(&family) {
        if let (Some(pooled), Some(reference)) = (pooled, reference) {
            row.comparison = compare(cell, reference, pooled, about.margin)?;
        }
    }
    let comparisons: Vec<&mut Comparison> = rows.iter_mut().filter_map(|row| row.comparison.as_mut()).collect();
    let p: Vec<f64> = comparisons.iter().map(|c| c.difference.p).collect();
    comparisons.into_iter().zip(statistics::holm(&p)).for_each(|(c, holm)| c.holm = holm);
    summary.cells.extend(rows);
    summary.pooled.extend(pooled.map(|p| (block.to_string(), p)));
    Ok(())
}

/// A name without its last part: `kd` of `kd-grad_cam`.
fn stem(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(stem, _)| stem)
}

/// A cell that another is compared with.
struct Named {
    block: String,
    name: String,
    /// By `table.toml`.
    asked: bool,
}

/// The one that `table.toml` names for the cell or for its block, or the one without the term, `STEM-none`. None is compared
/// with itself.
fn reference(cell: &Cell, about: &About) -> Option<Named> {
    let named = match about.against.get(&cell.id()).or_else(|| about.against.get(&cell.block)) {
        Some(asked) => {
            let (block, name) = asked.rsplit_once('/').unwrap_or((&cell.block, asked));
            Named { block: block.into(), name: name.into(), asked: true }
        }
        None => Named { block: cell.block.clone(), name: format!("{}-none", stem(&cell.name)), asked: false },
    };
    (named.block != cell.block || named.name != cell.name).then_some(named)
}

fn figures(cell: &Cell, pooled: Option<Pooled>, about: &About) -> CellFigures {
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
    let tested = |figure: Option<f64>| figure.filter(|_| !cell.held_out);
    CellFigures {
        block: cell.block.clone(),
        cell: cell.id(),
        held_out: cell.held_out,
        n: errors.len(),
        diverged: cell.diverged.len(),
        error: statistics::mean(&errors),
        half_width: pooled.filter(|_| !errors.is_empty()).map(|p| statistics::half_width(p, errors.len())),
        sd: statistics::sd(&errors),
        published: about.published.get(&cell.id()).copied(),
        comparison: None,
        nll: tested(cell.mean(|r| Some(r.report.test_loss))),
        same_class: tested(cell.mean(|r| Some(r.report.agreement.as_ref()?.same_class))),
        kl: tested(cell.mean(|r| Some(r.report.agreement.as_ref()?.kl))),
        maps: [
            tested(cell.mean(|r| Some(alike(r)?.pearson))),
            tested(cell.mean(|r| Some(alike(r)?.cosine))),
            tested(cell.mean(|r| Some(alike(r)?.top20))),
        ],
        share: cell.mean(share),
        runs: cell.runs.iter().map(|r| r.seed).zip(errors).collect(),
    }
}

fn compare(cell: &Cell, reference: &Cell, pooled: Pooled, margin: f64) -> Result<Option<Comparison>> {
    let input = |c: &Cell, what: &str| c.runs.first().and_then(|r| r.report.inputs.get(what).cloned());
    for what in ["teacher", "test images"] {
        if let (Some(a), Some(b)) = (input(cell, what), input(reference, what)) {
            ensure!(a == b, "{} and {} have different {what}: they cannot be compared", cell.id(), reference.id());
        }
    }
    ensure!(
        cell.held_out == reference.held_out,
        "table.toml compares the error of held-out images of one of {} and {} with the test error of the other",
        cell.id(),
        reference.id()
    );
    let Some(difference) = statistics::unpaired(&cell.errors(), &reference.errors(), pooled) else { return Ok(None) };
    let pairs: Vec<(&Run, &Run)> =
        cell.runs.iter().filter_map(|a| Some((a, reference.runs.iter().find(|b| b.seed == a.seed)?))).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(a, b)| (cell.error(a), reference.error(b))).unzip();
    let discordant = pairs.iter().map(|(a, b)| {
        let (a, b) = (bits(&a.report.test_wrong)?, bits(&b.report.test_wrong)?);
        let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count() as u64;
        (!a.is_empty() && a.len() == b.len()).then(|| (only(&a, &b), only(&b, &a)))
    });
    let discordant: Option<Vec<(u64, u64)>> = discordant.collect();
    let discordant = discordant.filter(|_| !cell.held_out);
    Ok(Some(Comparison {
        against: if reference.block == cell.block { reference.name.clone() } else { reference.id() },
        holm: difference.p,
        equivalence: difference.equivalence(margin),
        // Two pairs always lie on a line.
        paired: statistics::paired(&a, &b).map(|d| (d, cams::metrics::pearson(&a, &b).filter(|_| a.len() > 2))),
        discordant: discordant.unwrap_or_default(),
        needed: statistics::runs_needed(difference.mean, pooled.sd),
        difference,
    }))
}
