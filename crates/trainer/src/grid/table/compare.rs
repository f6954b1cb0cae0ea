//! Which cells are compared, and what their differences are worth.

use anyhow::{Result, bail};

use super::folders::{Cell, Run, id};
use super::{About, CellFigures, Comparison, figures, stem};
use crate::report::statistics::{self, Design, Pooled};
use crate::run::{JudgedBy, bits};

/// What a cell is compared with.
pub(super) enum Reference<'a> {
    /// Nothing: others are compared with it, or it has nothing to compare.
    Nothing,
    /// This one.
    Cell(&'a Cell),
    /// Its runs are this one's.
    Same(&'a Cell),
    /// Not with this one, and why.
    Missing(String),
    /// Its runs have diverged, or those of this one, and why that is said; it counts in its family as a test that finds nothing.
    Diverged(Option<String>),
}

/// What each of a block's cells is compared with.
pub(super) fn references<'a>(own: &[&Cell], cells: &'a [Cell], about: &About) -> Result<Vec<Reference<'a>>> {
    own.iter().map(|cell| reference(cell, cells, about)).collect()
}

/// The cells whose runs say together what seeds do in a block: its own, but for those that are another's twins, and those of
/// other blocks that they are compared with. Where some runs diverged the others are no sample.
pub(super) fn sharing<'a>(own: &[&'a Cell], references: &[Reference<'a>]) -> Vec<&'a Cell> {
    let twin = |reference: &Reference| matches!(reference, Reference::Same(_));
    let mut sharing: Vec<&Cell> =
        own.iter().zip(references).filter(|(_, reference)| !twin(reference)).map(|(cell, _)| *cell).collect();
    for reference in references {
        if let Reference::Cell(other) = reference
            && sharing.iter().all(|cell| cell.id() != other.id())
        {
            sharing.push(other);
        }
    }
    sharing.retain(|cell| !cell.runs.is_empty() && cell.diverged.is_empty());
    sharing
}

/// Gives the rows of a block's cells their comparisons, a family of tests. None where no cell without a diverged run has two to take
/// a standard deviation from.
pub(super) fn family(
    (own, references): (&[&Cell], &[Reference]),
    sharing: &[&Cell],
    rows: &mut [CellFigures],
    margin: f64,
) -> (Design, Option<Pooled>) {
    let errors: Vec<Vec<f64>> = sharing.iter().map(|cell| cell.errors()).collect();
    let lost = references.iter().filter(|reference| matches!(reference, Reference::Diverged(_))).count();
    let tests = lost + references.iter().filter(|reference| matches!(reference, Reference::Cell(_))).count();
    let (design, pooled) =
        (Design { cells: errors.len(), tests }, statistics::pooled(errors.iter().map(Vec::as_slice)));
    for ((cell, reference), row) in own.iter().zip(references).zip(rows.iter_mut()) {
        match reference {
            Reference::Nothing => {}
            Reference::Diverged(why) => row.not_compared = why.clone(),
            Reference::Same(other) => row.identical = Some(named(cell, other)),
            Reference::Missing(why) => row.not_compared = Some(why.clone()),
            Reference::Cell(other) => {
                let without = other.mean(|run| figures::correlation(run, &figures::method(cell)));
                row.maps_without = without.filter(|_| other.judged_by == JudgedBy::TestImages);
                let Some(pooled) = pooled else { continue };
                row.comparison = compare(cell, other, pooled, design, margin);
                if row.comparison.is_none() {
                    row.not_compared = Some(format!("{}: the runs of no cell differ among themselves", other.id()));
                }
            }
        }
    }
    // What is not judged must not make the others' tests easier.
    let judged = |row: &CellFigures| Some(if row.is_judged() { row.comparison.as_ref()?.difference.p } else { 1.0 });
    let compared: Vec<&mut CellFigures> = rows.iter_mut().filter(|row| row.comparison.is_some()).collect();
    let p: Vec<f64> = compared.iter().filter_map(|row| judged(row)).chain(std::iter::repeat_n(1.0, lost)).collect();
    let comparisons = compared.into_iter().filter_map(|row| row.comparison.as_mut());
    comparisons.zip(statistics::holm(&p)).for_each(|(c, holm)| c.holm = holm);
    (design, pooled)
}

/// Another cell's name, with its block where that is another.
fn named(cell: &Cell, other: &Cell) -> String {
    if other.block == cell.block { other.name.clone() } else { other.id() }
}

/// The cell that `table.toml` names for the cell or for its block, or the one without the term, `STEM-none`. None is compared
/// with itself.
fn reference<'a>(cell: &Cell, cells: &'a [Cell], about: &About) -> Result<Reference<'a>> {
    let asked = about.against.get(&cell.id()).or_else(|| about.against.get(&cell.block));
    let (block, name) = match asked {
        Some(asked) => {
            asked.rsplit_once('/').map_or((cell.block.clone(), asked.clone()), |(b, n)| (b.into(), n.into()))
        }
        None => (cell.block.clone(), format!("{}-none", stem(&cell.name))),
    };
    if block == cell.block && name == cell.name {
        return Ok(Reference::Nothing);
    }
    let wanted = id(&block, &name);
    let other = cells.iter().find(|c| c.block == block && c.name == name);
    if cell.runs.is_empty() {
        let compared = other.is_some_and(|other| !other.runs.is_empty()) && !cell.diverged.is_empty();
        return Ok(if compared { Reference::Diverged(None) } else { Reference::Nothing });
    }
    let Some(other) = other else {
        let missing = |_| Reference::Missing(format!("{wanted}, which has no finished run among these"));
        return Ok(asked.map_or(Reference::Nothing, missing));
    };
    if other.runs.is_empty() {
        return Ok(Reference::Diverged(Some(format!("{wanted}, of which every run diverged"))));
    }
    Ok(match unlike(cell, other) {
        // Whoever asks for a comparison, or makes a grid of several teachers, is told that there is none; names that happen to
        // match have asked for nothing.
        Some((what, why)) if asked.is_some() || (what == "teacher" && !cell.block.is_empty()) => {
            bail!("{why}: they cannot be compared")
        }
        Some((_, why)) => Reference::Missing(format!("{wanted}: {why}")),
        None if identical(cell, other) => Reference::Same(other),
        None => Reference::Cell(other),
    })
}

/// What keeps two cells from being compared, and how to say it.
fn unlike(cell: &Cell, other: &Cell) -> Option<(&'static str, String)> {
    let (own, others) = (cell.id(), other.id());
    if cell.judged_by != other.judged_by {
        let [a, b] = [cell, other].map(|c| c.judged_by.name());
        return Some(("images", format!("{own} is judged by {a}, {others} by {b} (held_out in table.toml)")));
    }
    let [a, b] = [cell, other].map(|c| c.setting("train.epochs"));
    if a != b {
        return Some(("epochs", format!("{own} was trained for {a} epochs, {others} for {b}")));
    }
    let what =
        ["teacher", cell.judged_by.name(), "training images"].into_iter().find(|what| differ(cell, other, what))?;
    Some((what, format!("{own} and {others} have different {what}")))
}

/// Whether two cells were made with different files or images of a kind: their runs of one seed, or, where there are none, any
/// two, whose seeds may draw other images.
fn differ(a: &Cell, b: &Cell, what: &str) -> bool {
    let unequal = |a: &Run, b: &Run| {
        let [a, b] = [a, b].map(|run| run.report.inputs.get(what));
        a.zip(b).is_some_and(|(a, b)| a != b)
    };
    let twin = |run: &Run| b.runs.iter().find(|twin| twin.seed == run.seed);
    let pairs: Vec<(&Run, &Run)> = a.runs.iter().filter_map(|run| Some((run, twin(run)?))).collect();
    if !pairs.is_empty() {
        return pairs.into_iter().any(|(a, b)| unequal(a, b));
    }
    let drawn = what.ends_with("images") && a.setting("data.seed") != b.setting("data.seed");
    !drawn && a.runs.first().zip(b.runs.first()).is_some_and(|(a, b)| unequal(a, b))
}

/// Whether every run of a cell is the other's of the same seed, as far as the test images tell.
fn identical(cell: &Cell, other: &Cell) -> bool {
    let same = |run: &Run| {
        let twin = other.runs.iter().find(|twin| twin.seed == run.seed);
        twin.is_some_and(|twin| {
            !run.report.test_wrong.is_empty()
                && run.report.test_wrong == twin.report.test_wrong
                && run.report.test_loss == twin.report.test_loss
        })
    };
    cell.judged_by == JudgedBy::TestImages && cell.runs.iter().all(same)
}

fn compare(cell: &Cell, reference: &Cell, pooled: Pooled, design: Design, margin: f64) -> Option<Comparison> {
    let difference = statistics::unpaired(&cell.errors(), &reference.errors(), pooled)?;
    let twin = |run: &&Run| reference.runs.iter().find(|twin| twin.seed == run.seed);
    let pairs: Vec<(&Run, &Run)> = cell.runs.iter().filter_map(|run| Some((run, twin(&run)?))).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(a, b)| (cell.error(a), reference.error(b))).unzip();
    let discordant: Option<Vec<(u64, u64)>> = pairs.iter().map(|(a, b)| discordant(a, b)).collect();
    let discordant = discordant.filter(|_| cell.judged_by == JudgedBy::TestImages);
    Some(Comparison {
        against: named(cell, reference),
        holm: difference.p,
        welch: statistics::welch(&cell.errors(), &reference.errors()),
        equivalence: difference.equivalence(margin),
        // Two pairs always lie on a line.
        paired: statistics::paired(&a, &b).map(|d| (d, cams::metrics::pearson(&a, &b).filter(|_| a.len() > 2))),
        discordant: discordant.unwrap_or_default(),
        needed: design.runs_needed(difference.mean, pooled.sd),
        diverged: reference.diverged.len(),
        runs: reference.runs.len(),
        difference,
    })
}

/// Images on which only the first run is wrong, and only the second; None if their reports do not say.
fn discordant(a: &Run, b: &Run) -> Option<(u64, u64)> {
    let (a, b) = (bits(&a.report.test_wrong)?, bits(&b.report.test_wrong)?);
    let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count() as u64;
    (!a.is_empty() && a.len() == b.len()).then(|| (only(&a, &b), only(&b, &a)))
}

/// Of the pairs of runs of one cell, how many McNemar's test tells apart at 5 %, and how many there are: what it finds where
/// there is nothing but chance.
pub(super) fn pairs_of_one_cell(cells: &[&Cell]) -> (usize, usize) {
    let (mut apart, mut all) = (0, 0);
    for cell in cells.iter().filter(|cell| cell.judged_by == JudgedBy::TestImages) {
        for (at, a) in cell.runs.iter().enumerate() {
            for (b, c) in cell.runs[at + 1..].iter().filter_map(|b| discordant(a, b)) {
                (apart, all) = (apart + usize::from(statistics::mcnemar(b, c) < 0.05), all + 1);
            }
        }
    }
    (apart, all)
}
