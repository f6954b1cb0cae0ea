//! The table of a grid, from its run folders alone: what each cell came to, what the differences are worth, and what
//! that says.

pub(super) mod arithmetic;
mod folders;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use folders::{Cell, Run, check, id, walk};
use serde::Deserialize;

use crate::report::statistics::{self, Difference, Pooled};
use crate::run::{JudgedBy, bits};

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
    /// The cell that `table.toml` compares it with, where that has no finished run.
    pub awaits: Option<String>,
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
    /// The mean error after each epoch, as far as all its runs have one.
    pub curve: Vec<f64>,
    /// The images that it is of.
    pub curve_of: JudgedBy,
    /// Commits of the programs that made its runs.
    pub commits: BTreeSet<String>,
    /// Processors that they were made on.
    pub machines: BTreeSet<String>,
}

impl CellFigures {
    /// Its name within its block.
    pub fn short(&self) -> &str {
        self.cell.strip_prefix(&self.block).map_or(&self.cell, |name| name.trim_start_matches('/'))
    }
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
    /// Blocks and cells that `table.toml` speaks of and that have no run.
    pub absent: BTreeSet<String>,
}

impl About {
    /// Of a grid's folder; nothing is said where it holds no `table.toml`.
    fn read(root: &Path) -> Result<About> {
        let path = root.join("table.toml");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(About::default()),
            text => {
                let context = || format!("reading {}", path.display());
                toml::from_str(&text.with_context(context)?).with_context(context)
            }
        }
    }
}

/// The folder of the grid that a folder (block, cell, seed) lies in, whose names it has and of which what is said holds; the
/// folder itself where it is in none. And the folder, written out: `.` has nothing above it.
fn located(dir: &Path) -> (PathBuf, PathBuf) {
    let root = |dir: &Path| dir.ancestors().take(4).find(|d| d.join("table.toml").is_file()).map(Path::to_path_buf);
    // By the names that were given, as a block may be a link to elsewhere; `..` has to be followed.
    let named = std::path::absolute(dir).ok().filter(|d| d.components().all(|part| part != Component::ParentDir));
    let real = || fs::canonicalize(dir).ok();
    let found =
        named.and_then(|dir| Some((root(&dir)?, dir))).or_else(|| real().and_then(|dir| Some((root(&dir)?, dir))));
    found.unwrap_or_else(|| (dir.to_path_buf(), dir.to_path_buf()))
}

/// The images that a run's folder may be judged by: those held out, where the grid that it lies in says so.
pub fn judged_by(run: &Path) -> Result<JudgedBy> {
    let (root, dir) = located(run);
    let held_out = About::read(&root)?.held_out;
    let within = dir.strip_prefix(&root).unwrap_or(&dir);
    // `block/cell/sN`; a block's name may have several parts.
    let of_block = |above: &Path| held_out.contains(above.to_string_lossy().as_ref());
    Ok(if within.ancestors().any(of_block) { JudgedBy::HeldOutImages } else { JudgedBy::TestImages })
}

/// Reads the runs below `dir`, those of some seeds alone where these are given: cells that have run different ones can be put
/// beside each other by those that all have.
pub fn read(dir: &Path, seeds: Option<&[u64]>) -> Result<Summary> {
    let (root, dir) = located(dir);
    let about = About::read(&root)?;
    ensure!(
        about.margin > 0.0 && about.margin.is_finite(),
        "table.toml: margin is {}; it must be a positive number of points",
        about.margin
    );
    let mut cells: Vec<Cell> = vec![];
    walk(&root, &dir, &mut cells)?;
    if let Some(seeds) = seeds {
        for cell in &mut cells {
            cell.runs.retain(|run| seeds.contains(&run.seed));
            cell.diverged.retain(|seed| seeds.contains(seed));
        }
        cells.retain(|cell| !cell.runs.is_empty() || !cell.diverged.is_empty());
        ensure!(!cells.is_empty(), "there are no finished runs of these seeds below {}", dir.display());
    }
    for cell in cells.iter_mut().filter(|cell| about.held_out.contains(&cell.block)) {
        cell.judged_by = JudgedBy::HeldOutImages;
    }
    ensure!(!cells.is_empty(), "there are no finished runs (folders with a report.json) below {}", dir.display());
    check(&cells)?;
    // Within a block a cell without the term comes first, and numbers in their order.
    cells.sort_by(|a, b| {
        let key = |c: &Cell| (c.block.clone(), stem(&c.name).to_string(), !c.name.ends_with("none"));
        let number = |c: &Cell| c.name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(f64::INFINITY);
        key(a).cmp(&key(b)).then(number(a).total_cmp(&number(b))).then(a.name.cmp(&b.name))
    });
    let mut summary = Summary {
        cells: vec![],
        margin: about.margin,
        pooled: BTreeMap::new(),
        profile: cells.iter().find_map(|c| Some(c.runs.first()?.report.profile.clone())).unwrap_or_default(),
        absent: about.held_out.iter().chain(about.against.keys()).cloned().collect(),
    };
    summary.absent.retain(|name| !cells.iter().any(|c| c.block == *name || c.id() == *name));
    let blocks: BTreeSet<&String> = cells.iter().map(|c| &c.block).collect();
    for block in blocks {
        add_block(&mut summary, block, &cells, &about)?;
    }
    Ok(summary)
}

/// Adds the figures of a block's cells and its family of comparisons.
fn add_block(summary: &mut Summary, block: &str, cells: &[Cell], about: &About) -> Result<()> {
    let own: Vec<&Cell> = cells.iter().filter(|c| c.block == block).collect();
    let shared = statistics::pooled(own.iter().map(|c| c.errors()).collect::<Vec<_>>().iter().map(Vec::as_slice));
    let mut rows: Vec<CellFigures> = own.iter().map(|cell| figures(cell, shared, about)).collect();
    let mut references: Vec<Option<&Cell>> = vec![];
    for (cell, row) in own.iter().zip(&mut rows) {
        let named = reference(cell, about);
        let found = named
            .as_ref()
            .and_then(|n| cells.iter().find(|c| c.block == n.block && c.name == n.name && !c.runs.is_empty()));
        row.awaits = named.filter(|n| n.asked && found.is_none()).map(|n| id(&n.block, &n.name));
        references.push(found.filter(|_| !cell.runs.is_empty()));
    }
    // Tests: cells of other blocks that these are compared with say what seeds do, too, once each.
    let others: BTreeMap<String, &Cell> =
        references.iter().flatten().filter(|r| r.block != block).map(|r| (r.id(), *r)).collect();
    let compared: Vec<Vec<f64>> = own.iter().copied().chain(others.into_values()).map(Cell::errors).collect();
    if let Some(pooled) = statistics::pooled(compared.iter().map(Vec::as_slice)) {
        for (row, (cell, reference)) in rows.iter_mut().zip(own.iter().zip(references)) {
            row.comparison = reference.map(|r| compare(cell, r, pooled, about.margin)).transpose()?.flatten();
        }
    }
    let family: Vec<&mut Comparison> = rows.iter_mut().filter_map(|row| row.comparison.as_mut()).collect();
    let p: Vec<f64> = family.iter().map(|c| c.difference.p).collect();
    family.into_iter().zip(statistics::holm(&p)).for_each(|(c, holm)| c.holm = holm);
    summary.cells.extend(rows);
    summary.pooled.extend(shared.map(|p| (block.to_string(), p)));
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
    let tested = |figure: Option<f64>| figure.filter(|_| cell.judged_by == JudgedBy::TestImages);
    CellFigures {
        block: cell.block.clone(),
        cell: cell.id(),
        judged_by: cell.judged_by,
        n: errors.len(),
        diverged: cell.diverged.len(),
        error: statistics::mean(&errors),
        half_width: pooled.filter(|_| !errors.is_empty()).map(|p| statistics::half_width(p, errors.len())),
        sd: statistics::sd(&errors),
        published: about.published.get(&cell.id()).copied(),
        comparison: None,
        awaits: None,
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
        curve_of: cell.runs.first().map_or(cell.judged_by, Run::curve_of),
        curve: (0..).map_while(|at| mean_at(&cell.runs, at)).collect(),
        commits: cell.runs.iter().flat_map(|r| r.report.commits.iter().chain([&r.report.commit])).cloned().collect(),
        machines: cell.runs.iter().map(|r| r.report.machine.clone()).collect(),
    }
}

/// The mean of the runs' errors after an epoch, if all have it.
fn mean_at(runs: &[Run], at: usize) -> Option<f64> {
    let errors: Option<Vec<f64>> = runs.iter().map(|run| run.report.curve.get(at).copied()).collect();
    errors.filter(|errors| !errors.is_empty()).map(|errors| statistics::mean(&errors))
}

fn compare(cell: &Cell, reference: &Cell, pooled: Pooled, margin: f64) -> Result<Option<Comparison>> {
    let input = |c: &Cell, what: &str| c.runs.first().and_then(|r| r.report.inputs.get(what).cloned());
    ensure!(
        cell.judged_by == reference.judged_by,
        "{} is judged by {}, {} by {} (held_out in table.toml): they cannot be compared",
        cell.id(),
        cell.judged_by.name(),
        reference.id(),
        reference.judged_by.name()
    );
    let mut same = vec!["teacher", cell.judged_by.name()];
    if cell.block != reference.block {
        same.push("training images");
        let [a, b] = [cell, reference].map(|c| c.setting("train.epochs"));
        ensure!(
            a == b,
            "{} was trained for {a} epochs, {} for {b}: they cannot be compared",
            cell.id(),
            reference.id()
        );
    }
    for what in same {
        if let (Some(a), Some(b)) = (input(cell, what), input(reference, what)) {
            ensure!(a == b, "{} and {} have different {what}: they cannot be compared", cell.id(), reference.id());
        }
    }
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
    let discordant = discordant.filter(|_| cell.judged_by == JudgedBy::TestImages);
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
