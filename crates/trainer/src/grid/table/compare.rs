//! Which cells are compared, and what their differences are worth.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::folders::{Cell, Run, id};
use super::{About, CellFigures, Comparison, figures, stem};
use crate::report::statistics::{self, Design, Pooled};
use crate::run::{JudgedBy, bits};

/// What a cell is compared with.
enum Reference<'a> {
    /// Nothing: others are compared with it, or it has nothing to compare.
    Nothing,
    /// This one.
    Cell(&'a Cell),
    /// Its runs are this one's.
    Same(&'a Cell),
    /// Not with this one, and why.
    Missing(String),
}

/// Gives the rows of a block's cells their comparisons, a family of tests, and says what it can see.
pub(super) fn family(own: &[&Cell], rows: &mut [CellFigures], cells: &[Cell], about: &About) -> Result<Design> {
    let mut references: Vec<Option<&Cell>> = vec![];
    for (cell, row) in own.iter().zip(rows.iter_mut()) {
        let named = |other: &Cell| if other.block == cell.block { other.name.clone() } else { other.id() };
        references.push(match reference(cell, cells, about)? {
            Reference::Nothing => None,
            Reference::Cell(other) => {
                row.maps_without = other.mean(|run| figures::correlation(run, &figures::method(cell)));
                row.maps_without = row.maps_without.filter(|_| other.judged_by == JudgedBy::TestImages);
                Some(other)
            }
            Reference::Same(other) => {
                row.identical = Some(named(other));
                None
            }
            Reference::Missing(why) => {
                row.not_compared = Some(why);
                None
            }
        });
    }
    // Cells of other blocks that these are compared with say what seeds do, too, once each.
    let elsewhere = references.iter().flatten().filter(|other| own.iter().all(|cell| cell.id() != other.id()));
    let elsewhere: BTreeMap<String, &Cell> = elsewhere.map(|other| (other.id(), *other)).collect();
    let errors = own.iter().copied().chain(elsewhere.into_values()).map(Cell::errors).filter(|e| !e.is_empty());
    let errors: Vec<Vec<f64>> = errors.collect();
    let design = Design { cells: errors.len(), tests: references.iter().flatten().count() };
    let Some(pooled) = statistics::pooled(errors.iter().map(Vec::as_slice)) else { return Ok(design) };
    for ((cell, reference), row) in own.iter().zip(references).zip(rows.iter_mut()) {
        let Some(reference) = reference else { continue };
        row.comparison = compare(cell, reference, pooled, design, about.margin);
        if row.comparison.is_none() {
            row.not_compared = Some(format!("{}: no two runs differ", reference.id()));
        }
    }
    let family: Vec<&mut Comparison> = rows.iter_mut().filter_map(|row| row.comparison.as_mut()).collect();
    let p: Vec<f64> = family.iter().map(|c| c.difference.p).collect();
    family.into_iter().zip(statistics::holm(&p)).for_each(|(c, holm)| c.holm = holm);
    Ok(design)
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
    if cell.runs.is_empty() || (block == cell.block && name == cell.name) {
        return Ok(Reference::Nothing);
    }
    let named = id(&block, &name);
    let Some(other) = cells.iter().find(|c| c.block == block && c.name == name) else {
        return Ok(
            asked.map_or(Reference::Nothing, |_| Reference::Missing(format!("{named}, which has no finished run")))
        );
    };
    if other.runs.is_empty() {
        return Ok(Reference::Missing(format!("{named}, of which every run diverged")));
    }
    ensure!(
        cell.judged_by == other.judged_by,
        "{} is judged by {}, {named} by {} (held_out in table.toml): they cannot be compared",
        cell.id(),
        cell.judged_by.name(),
        other.judged_by.name()
    );
    for what in ["teacher", cell.judged_by.name()] {
        ensure!(!differ(cell, other, what), "{} and {named} have different {what}: they cannot be compared", cell.id());
    }
    let [a, b] = [cell, other].map(|c| c.setting("train.epochs"));
    let unlike = if a != b {
        Some(format!("{} was trained for {a} epochs, {named} for {b}", cell.id()))
    } else {
        let other_images = differ(cell, other, "training images");
        other_images.then(|| format!("{} and {named} have different training images", cell.id()))
    };
    Ok(match unlike {
        // Whoever asks for a comparison is told that there is none; a name alone has asked for nothing.
        Some(why) if asked.is_some() => anyhow::bail!("{why}: they cannot be compared"),
        Some(why) => Reference::Missing(format!("{named}: {why}")),
        None if identical(cell, other) => Reference::Same(other),
        None => Reference::Cell(other),
    })
}

/// Whether two cells were made with different files or images of a kind.
fn differ(a: &Cell, b: &Cell, what: &str) -> bool {
    let input = |c: &Cell| c.runs.first().and_then(|r| r.report.inputs.get(what).cloned());
    input(a).zip(input(b)).is_some_and(|(a, b)| a != b)
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
        against: if reference.block == cell.block { reference.name.clone() } else { reference.id() },
        holm: difference.p,
        welch: statistics::welch(&cell.errors(), &reference.errors()),
        equivalence: difference.equivalence(margin),
        // Two pairs always lie on a line.
        paired: statistics::paired(&a, &b).map(|d| (d, cams::metrics::pearson(&a, &b).filter(|_| a.len() > 2))),
        discordant: discordant.unwrap_or_default(),
        needed: design.runs_needed(difference.mean, pooled.sd),
        diverged: reference.diverged.len(),
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
pub(super) fn pairs_of_one_cell(cells: &[Cell]) -> (usize, usize) {
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
