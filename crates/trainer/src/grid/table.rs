//! The table of a grid, from its run folders alone: what each cell came to, what the differences are worth, and what
//! that says.

pub(super) mod about;
pub(super) mod arithmetic;
mod choice;
mod compare;
mod figures;
mod folders;
mod show;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use about::judged_by;
use about::{About, located};
use anyhow::{Result, ensure};
use choice::Choice;
use folders::{Cell, check, walk};

use crate::report::statistics::{Alike, Design, Difference, Pooled};
use crate::run::JudgedBy;

/// What a cell's difference to another is worth.
pub struct Comparison {
    /// The other's name, with its block where that is another.
    pub against: String,
    /// This cell's mean error less the other's.
    pub difference: Difference,
    /// Its probability, corrected by Holm over the block.
    pub holm: f64,
    /// The same with each cell's own standard deviation (Welch); not corrected.
    pub welch: Option<Difference>,
    /// p of the two one-sided tests of a difference of at least the margin; not corrected.
    pub equivalence: f64,
    /// The same difference by pairs of one seed, and how the pairs correlate.
    pub paired: Option<(Difference, Option<f64>)>,
    /// Images on which only this cell's run is wrong, only the other's, for each seed that both have. The images are
    /// the same each time: the counts of several seeds are no larger sample of images.
    pub discordant: Vec<(u64, u64)>,
    /// Runs a cell that would show a difference of this size.
    pub needed: Option<usize>,
    /// Runs of the other that diverged.
    pub diverged: usize,
    /// Runs of the other that are compared.
    pub runs: usize,
}

/// A mean over a cell's runs.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Half of its 95 % interval, with the standard deviation that its block's cells share; of maps and KL with its own.
    pub half_width: Option<f64>,
}

/// A cell's figures.
pub struct CellFigures {
    /// Its block's name, empty outside a grid.
    pub block: String,
    /// `block/cell`.
    pub cell: String,
    /// The images that `error` is of.
    pub judged_by: JudgedBy,
    /// Finished runs.
    pub n: usize,
    /// Runs that diverged.
    pub diverged: usize,
    /// Mean error after the last epoch, in percent.
    pub error: f64,
    /// Half of its 95 % interval, with the standard deviation that its block's cells share.
    pub half_width: Option<f64>,
    /// Standard deviation over its own seeds.
    pub sd: Option<f64>,
    /// What has been published for it.
    pub published: Option<f64>,
    /// Against its reference, if it has one.
    pub comparison: Option<Comparison>,
    /// The cell that it should be compared with and is not, and why.
    pub not_compared: Option<String>,
    /// The cell whose runs its own are: the same test images wrong and the same loss, seed by seed.
    pub identical: Option<String>,
    /// Mean negative log-likelihood on the test images.
    pub nll: Option<Mean>,
    /// Test images on which student and teacher name the same class, in percent.
    pub same_class: Option<Mean>,
    /// KL(teacher || student) on the test images.
    pub kl: Option<Mean>,
    /// Of the maps of its own interpreter, or of Grad-CAM: Pearson correlation, cosine, overlap of the highest fifth.
    pub maps: [Option<Mean>; 3],
    /// The correlation of the same method's maps in the cell that it is compared with.
    pub maps_without: Option<f64>,
    /// The explanation term's share of the gradient's length: weight times norm, over that of the whole.
    pub share: Option<f64>,
    /// Every run's error, by seed.
    pub runs: Vec<(u64, f64)>,
    /// Epochs after which all its runs were measured, counted from 1, and the mean error.
    pub curve: Vec<(f64, f64)>,
    /// The images that it is of.
    pub curve_of: JudgedBy,
    /// Commits of the programs that made its runs.
    pub commits: BTreeSet<String>,
    /// Processors that they were made on.
    pub machines: BTreeSet<String>,
}

impl CellFigures {
    /// Whether its comparison is judged: of a cell with diverged runs the others are no sample, and of one run the scatter is not known.
    pub fn is_judged(&self) -> bool {
        self.comparison.as_ref().is_some_and(|c| self.diverged + c.diverged == 0 && self.n.min(c.runs) > 1)
    }

    /// Its name within its block.
    pub fn short(&self) -> &str {
        self.cell.strip_prefix(&self.block).map_or(&self.cell, |name| name.trim_start_matches('/'))
    }
}

/// How the runs of a block's cells scatter, and what that lets one see.
pub struct Spread {
    /// The standard deviation of the error that its cells share.
    pub pooled: Pooled,
    /// Of its comparisons.
    pub design: Design,
    /// Whether cells of other blocks share it, too.
    pub elsewhere: bool,
    /// Seeds that all its cells have.
    pub seeds: BTreeSet<u64>,
    /// Whether some have others too.
    pub uneven: bool,
    /// What the seeds that all have make alike.
    pub alike: Option<Alike>,
}

/// Everything that is said of a grid.
pub struct Summary {
    /// Of each cell, block by block.
    pub cells: Vec<CellFigures>,
    /// The margin of equivalence.
    pub margin: f64,
    /// Of each block in which a cell has two runs and none that diverged.
    pub spreads: BTreeMap<String, Spread>,
    /// Blocks in which none has, though some would be compared.
    pub single: BTreeSet<String>,
    /// Of each block the pairs of runs of one cell whose test images McNemar's test tells apart at 5 %, and all such pairs.
    pub same_cell: BTreeMap<String, (usize, usize)>,
    /// What its searches choose, block by block.
    pub choices: BTreeMap<String, Vec<Choice>>,
    /// The runs' profile.
    pub profile: String,
    /// Blocks and cells that `table.toml` speaks of and that have no run.
    pub absent: BTreeSet<String>,
}

/// Reads the runs below `dir`, those of some seeds alone where these are given: cells that have run different ones can be put
/// beside each other by those that all have.
pub fn read(dir: &Path, seeds: Option<&[u64]>) -> Result<Summary> {
    let (root, dir) = located(dir);
    let about = About::read(&root)?;
    let mut cells: Vec<Cell> = vec![];
    walk(&root, &dir, &mut cells)?;
    if let Some(seeds) = seeds {
        for cell in &mut cells {
            cell.runs.retain(|run| seeds.contains(&run.seed));
            cell.diverged.retain(|seed| seeds.contains(seed));
        }
        let left = |cell: &Cell| !cell.runs.is_empty() || !cell.diverged.is_empty();
        ensure!(cells.iter().any(left), "there are no finished runs of these seeds below {}", dir.display());
    }
    // A run that is being made longer is none yet.
    cells.retain(|cell| !cell.runs.is_empty() || !cell.diverged.is_empty());
    for cell in cells.iter_mut().filter(|cell| about.held_out.contains(&cell.block)) {
        cell.judged_by = JudgedBy::HeldOutImages;
    }
    ensure!(!cells.is_empty(), "there are no finished runs (folders with a report.json) below {}", dir.display());
    check(&cells)?;
    // Within a block a cell without the term comes first, and numbers in their order.
    cells.sort_by(|a, b| {
        let key = |c: &Cell| (c.block.clone(), stem(&c.name).to_string(), !c.name.ends_with("none"));
        let last =
            |name: &str| name.rsplit_once('=').or(name.rsplit_once('-')).and_then(|(_, n)| n.parse::<f64>().ok());
        let number = |c: &Cell| last(&c.name).unwrap_or(f64::INFINITY);
        key(a).cmp(&key(b)).then(number(a).total_cmp(&number(b))).then(a.name.cmp(&b.name))
    });
    let mut summary = Summary {
        cells: vec![],
        margin: about.margin,
        spreads: BTreeMap::new(),
        single: BTreeSet::new(),
        same_cell: BTreeMap::new(),
        choices: BTreeMap::new(),
        profile: cells.iter().find_map(|c| Some(c.runs.first()?.report.profile.clone())).unwrap_or_default(),
        absent: about.held_out.iter().chain(about.against.keys()).chain(about.choose.keys()).cloned().collect(),
    };
    summary.absent.retain(|name| !cells.iter().any(|c| c.block == *name || c.id() == *name));
    let blocks: BTreeSet<&String> = cells.iter().map(|c| &c.block).collect();
    for block in blocks {
        let own: Vec<&Cell> = cells.iter().filter(|c| c.block == *block).collect();
        let references = compare::references(&own, &cells, &about)?;
        let sharing = compare::sharing(&own, &references);
        let mut rows = figures::of(&own, &sharing, &about);
        summary.choices.insert(block.clone(), choice::of(block, &own, &rows, &about)?);
        let (design, pooled) = compare::family((&own, &references), &sharing, &mut rows, about.margin);
        let of_own: Vec<&Cell> = sharing.iter().copied().filter(|cell| cell.block == *block).collect();
        summary.same_cell.insert(block.clone(), compare::pairs_of_one_cell(&of_own));
        if let Some(pooled) = pooled {
            let elsewhere = sharing.len() > of_own.len();
            summary.spreads.insert(block.clone(), figures::spread(&of_own, (pooled, design), elsewhere));
        } else if design.tests > 0 {
            summary.single.insert(block.clone());
        }
        summary.cells.extend(rows);
    }
    Ok(summary)
}

/// A name without its last part and the value behind it: `kd` of `kd-grad_cam` and of `kd-weight=1e-5`.
fn stem(name: &str) -> &str {
    let name = name.rsplit_once('=').map_or(name, |(name, _)| name);
    name.rsplit_once('-').map_or(name, |(stem, _)| stem)
}
