//! What a search chooses: of the values of a number that its cells differ in, one that is as good as the best and in the middle.
//!
//! The lowest figure of many is the luckiest one, too. So every value within a standard error of it counts as well (the rule of
//! Breiman et al. 1984 for the size of a tree), and the one in the middle of these is taken.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::folders::Cell;
use super::{About, CellFigures};

/// How a block's value is chosen: a line of `[choose]` in `table.toml`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table such as { within = 0.3, toward = 0.0 }")]
pub(super) struct Rule {
    /// Points above the lowest error that count as equal to it; one standard error of the lowest where it is not given: of a
    /// share of the images held out.
    within: Option<f64>,
    /// Of two values in the middle the one nearer to this: 0, if nothing else is asked for, so the smaller of two weights.
    toward: f64,
}

impl Rule {
    pub(super) fn check(&self) -> Result<()> {
        if let Some(within) = self.within {
            let counts = within >= 0.0 && within.is_finite();
            ensure!(counts, "within must be a number of at least 0, not {within}");
        }
        ensure!(self.toward.is_finite(), "toward must be a number, not {}", self.toward);
        Ok(())
    }
}

/// What the cells `name=value` of a search come to.
pub struct Choice {
    /// `block/name`.
    pub name: String,
    /// The value that is taken, as its cell's name has it.
    pub value: String,
    /// The value with the lowest error, and that error.
    pub lowest: (String, f64),
    /// Points that count as equal to it.
    pub within: f64,
    /// The values that are, in their order.
    pub equal: Vec<String>,
    /// Values whose runs have finished, none of them by diverging.
    pub tried: usize,
    /// Whether the lowest, and the one that is taken, are the first or the last of them, so that a better one may lie beyond.
    pub at_the_end: [bool; 2],
    /// Values of which a run diverged: what is left of their runs is no sample.
    pub diverged: Vec<String>,
}

/// A value of a search: as a number, as its cell's name has it, and its cell's figures.
type Tried<'a> = (f64, &'a str, &'a CellFigures);

/// The choices of a block, a name each.
///
/// # Errors
/// If the block has no cell with a number.
pub(super) fn of(block: &str, cells: &[&Cell], figures: &[CellFigures], about: &About) -> Result<Vec<Choice>> {
    let Some(rule) = about.choose.get(block) else { return Ok(vec![]) };
    let mut names: BTreeMap<&str, Vec<Tried>> = BTreeMap::new();
    for figure in figures {
        // A cell without a number, as one without the term, stands beside the search.
        let Some((name, text)) = figure.cell.rsplit_once('=') else { continue };
        let Ok(value) = text.parse::<f64>() else { continue };
        names.entry(name).or_default().push((value, text, figure));
    }
    ensure!(
        !names.is_empty(),
        "table.toml chooses in the block {block}, but no cell's name ends with =NUMBER (one is {}): let the numbers be the last axis",
        figures.first().map_or("none", CellFigures::short)
    );
    let held_out = cells.iter().find_map(|cell| cell.setting("data.validation").parse::<f64>().ok());
    let choice = |(name, tried): (&str, Vec<Tried>)| choice(name, tried, rule, held_out);
    Ok(names.into_iter().filter_map(choice).collect())
}

/// None if there is no value to choose from.
fn choice(name: &str, mut all: Vec<Tried>, rule: &Rule, held_out: Option<f64>) -> Option<Choice> {
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let text = |of: &[&Tried]| of.iter().map(|t| t.1.to_string()).collect::<Vec<_>>();
    let (tried, diverged): (Vec<&Tried>, Vec<&Tried>) = all.iter().partition(|t| t.2.n > 0 && t.2.diverged == 0);
    let at = (0..tried.len()).min_by(|a, b| tried[*a].2.error.total_cmp(&tried[*b].2.error))?;
    let lowest = tried[at].2.error;
    let within = rule.within.unwrap_or_else(|| standard_error(lowest, held_out.unwrap_or(f64::INFINITY)));
    // Errors are shares of images, which are no round numbers in binary.
    let equal: Vec<&Tried> = tried.iter().copied().filter(|t| t.2.error <= lowest + within + 1e-9).collect();
    let (below, above) = (equal[(equal.len() - 1) / 2], equal[equal.len() / 2]);
    // As near, the smaller: 0.1 and 0.3 are as near to 0.2, which binary fractions do not say.
    let away = |tried: &Tried| (tried.0 - rule.toward).abs();
    let value = if away(above) < away(below) * (1.0 - 1e-9) { above } else { below };
    let ends: Vec<&str> = [all.first(), all.last()].into_iter().flatten().map(|end| end.1).collect();
    let at_the_end = [tried[at].1, value.1].map(|text| all.len() > 1 && ends.contains(&text));
    Some(Choice {
        name: name.into(),
        value: value.1.into(),
        lowest: (tried[at].1.into(), lowest),
        within,
        equal: text(&equal),
        tried: tried.len(),
        at_the_end,
        diverged: text(&diverged),
    })
}

/// Of a share of `n` images, both in percent.
fn standard_error(percent: f64, n: f64) -> f64 {
    (percent * (100.0 - percent) / n).sqrt()
}

impl Choice {
    /// What is chosen, and by what.
    pub(super) fn sentence(&self) -> String {
        let Choice { name, value, lowest: (best, error), within, equal, tried, .. } = self;
        let equal = match equal.len() {
            1 => "no other".into(),
            _ => equal.join(", "),
        };
        let [lowest, taken] = self.at_the_end;
        let end = if lowest { ", the last one on its side: a better one may lie beyond" } else { "" };
        let taken = if taken && !lowest { " (the last one on its side)" } else { "" };
        let diverged = match self.diverged.as_slice() {
            [] => String::new(),
            values => format!("; diverged: {}", values.join(", ")),
        };
        format!(
            "{name}: {value} is chosen{taken}, the middle of those within {within:.2} points of the lowest of {tried} ({equal}; lowest \
             {error:.2} % at {best}{end}{diverged})"
        )
    }
}
