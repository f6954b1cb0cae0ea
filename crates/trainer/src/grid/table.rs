//! The table of a grid, from its run folders alone: what each cell came to, what the differences are worth, and what
//! that says.

pub(super) mod arithmetic;
mod folders;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use folders::{Cell, Run, check, walk};
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
    /// `block/cell` and the cell of its block that it is compared with, where that is not `...-none`.
    against: BTreeMap<String, String>,
}

impl Default for About {
    fn default() -> Self {
        About { margin: 0.2, published: BTreeMap::new(), against: BTreeMap::new() }
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
    /// Images on which only this cell's run is wrong, only the other's, for each seed that both have. The images are
    /// the same each time: the counts of several seeds are no larger sample of images.
    pub discordant: Vec<(u64, u64)>,
    /// Runs per side that would show a difference of this size.
    pub needed: Option<usize>,
}

/// A cell's figures.
pub struct CellFigures {
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
        cells: vec![],
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
        let pooled = statistics::pooled(errors.iter().map(Vec::as_slice));
        let mut rows = of_block.iter().map(|cell| figures(cell, pooled, &about)).collect::<Vec<_>>();
        let mut compared = Vec::new();
        for (at, cell) in of_block.iter().enumerate() {
            if let (Some(pooled), Some(reference)) = (pooled, reference(cell, &of_block, &about)?) {
                rows[at].comparison = compare(cell, reference, pooled, about.margin)?;
                compared.extend(rows[at].comparison.is_some().then_some(at));
            }
        }
        let p: Vec<f64> = compared.iter().filter_map(|at| Some(rows[*at].comparison.as_ref()?.difference.p)).collect();
        for (at, holm) in compared.into_iter().zip(statistics::holm(&p)) {
            if let Some(comparison) = &mut rows[at].comparison {
                comparison.holm = holm;
            }
        }
        summary.cells.extend(rows);
        summary.pooled.extend(pooled.map(|p| (block, p)));
    }
    Ok(summary)
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
    CellFigures {
        cell: cell.id(),
        n: errors.len(),
        diverged: cell.diverged.len(),
        error: statistics::mean(&errors),
        half_width: pooled.filter(|_| !errors.is_empty()).map(|p| statistics::half_width(p, errors.len())),
        sd: statistics::sd(&errors),
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
    let Some(difference) = statistics::unpaired(&cell.errors(), &reference.errors(), pooled) else { return Ok(None) };
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
        paired: statistics::paired(&a, &b).map(|d| (d, cams::metrics::pearson(&a, &b).filter(|_| a.len() > 2))),
        discordant: discordant.unwrap_or_default(),
        needed: statistics::runs_needed(difference.mean, pooled.sd),
        difference,
    }))
}
