//! A summary in words: a verdict per cell, and what holds for the whole.

use std::collections::BTreeSet;

use super::choice::Choice;
use super::{CellFigures, Spread, Summary};
use crate::report::table::probability;
use crate::run::JudgedBy;

impl Summary {
    /// A sentence per comparison and per choice.
    pub fn sentences(&self) -> Vec<String> {
        let of = |r: &CellFigures| {
            let of = match r.judged_by {
                JudgedBy::TestImages => "",
                JudgedBy::HeldOutImages => " (held-out images)",
            };
            Some(format!("{}{of}: {}", r.cell, self.verdict(r)?))
        };
        let choices = self.choices.values().flatten().map(Choice::sentence);
        self.cells.iter().filter_map(of).chain(choices).collect()
    }

    /// What is to be said of a cell.
    fn verdict(&self, r: &CellFigures) -> Option<String> {
        if r.n == 0 {
            return Some(format!("every run diverged ({})", r.diverged));
        }
        if let Some(other) = &r.identical {
            let seeds: Vec<String> = r.runs.iter().map(|(seed, _)| seed.to_string()).collect();
            let word = if seeds.len() == 1 { "seed" } else { "seeds" };
            return Some(format!("identical to {other} on every test image ({word} {})", seeds.join(", ")));
        }
        let c = r.comparison.as_ref()?;
        let (d, margin) = (&c.difference, self.margin);
        let against = |half: f64| format!("{} ± {half:.2} points against {}", signed(d.mean), c.against);
        let found = against(d.half_width());
        Some(if r.diverged + c.diverged > 0 {
            // The runs that did not diverge are no sample of all.
            format!("not judged, as {} of the runs diverged ({found} of the others)", r.diverged + c.diverged)
        } else if r.n.min(c.runs) == 1 {
            // A seed is all that is known of its scatter.
            let which = if r.n == 1 { "it" } else { c.against.as_str() };
            format!("not judged, as {which} has one run ({found}, by the scatter of others)")
        } else if c.holm < 0.05 {
            let word = if d.mean < 0.0 { "better" } else { "worse" };
            let within = if c.equivalence < 0.05 { format!(", by less than {margin} points") } else { String::new() };
            format!("{word}{within} ({found}, {} after Holm)", p(c.holm))
        } else if c.equivalence < 0.05 {
            let found = against(d.half_width_90());
            format!("equivalent to within {margin} points ({found} in 90 %, {})", p(c.equivalence))
        } else {
            let needed = c.needed.map_or("a thousand or more".into(), |n| n.to_string());
            format!(
                "not distinguishable ({found}; were that the true difference, it would take {needed} seeds a cell to show)"
            )
        })
    }

    /// What holds for the whole table.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if !self.profile.is_empty() {
            notes.push(format!("Profile {}, error after the last epoch.", self.profile));
        }
        let chosen_by = self.cells.iter().filter(|r| r.judged_by == JudgedBy::HeldOutImages);
        let blocks: BTreeSet<String> = chosen_by.map(|r| r.block.clone()).collect();
        if !blocks.is_empty() {
            let blocks = joined(&blocks, ", ");
            notes.push(format!("Of images held out of the training set, not of the test set: {blocks}."));
        }
        let missing = self.cells.iter().filter_map(|r| Some(format!("{} with {}", r.cell, r.not_compared.as_ref()?)));
        let missing: BTreeSet<String> = missing.collect();
        if !missing.is_empty() {
            notes.push(format!("Not compared: {}.", joined(&missing, "; ")));
        }
        if !self.single.is_empty() {
            let blocks: BTreeSet<String> = self.single.iter().map(|block| in_block(block)).collect();
            notes.push(format!(
                "No cell{} has two runs and none that diverged: nothing is compared.",
                joined(&blocks, ",")
            ));
        }
        if !self.absent.is_empty() {
            notes.push(format!("table.toml speaks of what has no run: {}.", joined(&self.absent, ", ")));
        }
        self.spreads.iter().for_each(|(block, spread)| notes.extend(self.seen(block, spread)));
        if self.cells.iter().any(|r| r.comparison.is_some()) {
            notes.push(
                "Differences: unpaired t tests, Holm over the comparisons of a block, where a cell that diverged, as one \
                 that is not judged, counts as p = 1; their standard deviation takes in a compared cell of another block, and no cell of which a run diverged; the tests of \
                 equivalence are not corrected."
                    .into(),
            );
        }
        if self.cells.iter().any(|r| r.comparison.as_ref().is_some_and(|c| !c.discordant.is_empty())) {
            let (apart, all) = self.same_cell.values().fold((0, 0), |(a, n), (apart, all)| (a + apart, n + all));
            let chance = match all {
                0 => String::new(),
                _ => {
                    format!(": of {} of runs of one cell it tells {apart} apart at 5 %", counted(all, "pair", "pairs"))
                }
            };
            notes.push(format!(
                "McNemar: of runs, not of methods{chance}; twice the median of p over the pairs of one seed."
            ));
        }
        if self.cells.iter().any(|r| r.maps[0].is_some()) {
            notes.push(
                "Maps: the student's and the teacher's, by the cell's own method, or Grad-CAM where that is not measured; without: by that \
                 method in the cell that it is compared with; intervals of maps and KL by each cell's own runs. \
                 Gradient: the term's, weight times norm, of the whole's norm."
                    .into(),
            );
        }
        let [mut commits, mut machines] = [const { BTreeSet::new() }; 2];
        for cell in &self.cells {
            commits.extend(cell.commits.iter().cloned());
            machines.extend(cell.machines.iter().cloned());
        }
        if !commits.is_empty() {
            notes.push(format!("Commit {}; {}.", joined(&commits, ", "), joined(&machines, "; ")));
        }
        notes
    }

    /// What a block's comparisons can see.
    fn seen(&self, block: &str, spread: &Spread) -> Vec<String> {
        let Spread { pooled, design, .. } = spread;
        let name = if block.is_empty() { String::new() } else { format!("{block}: ") };
        let mut text = format!(
            "{name}the standard deviation over seeds that its cells {}share is {:.3} points ({}).",
            if spread.elsewhere { "and those of other blocks that they are compared with " } else { "" },
            pooled.sd,
            counted(pooled.df as usize, "degree of freedom", "degrees of freedom")
        );
        if design.tests > 0 && pooled.sd > 0.0 {
            let visible = |n| design.visible(n) * pooled.sd;
            let equal = design.runs_for_equivalence(self.margin, pooled.sd);
            text += &format!(
                " In 80 % of cases 3 seeds a cell show a difference of {:.2} points, 5 of {:.2}, 12 of {:.2} (5 % after Holm \
                 over {}), and {} that two equal cells are within {} points.",
                visible(3),
                visible(5),
                visible(12),
                counted(design.tests, "comparison", "comparisons"),
                equal.map_or("a thousand or more".into(), |n| n.to_string()),
                self.margin
            );
        }
        let mut notes = vec![text];
        if let Some(alike) = spread.alike {
            notes.push(format!(
                "{name}runs of one seed resemble each other, once the cells' means are taken off, with r = {:.2} ({}); the tests \
                 make no use of it.",
                alike.correlation,
                p(alike.p)
            ));
        }
        if spread.uneven && !spread.seeds.is_empty() {
            let seeds: Vec<String> = spread.seeds.iter().map(u64::to_string).collect();
            notes.push(format!("{name}some cells have more seeds than {}, which all have.", seeds.join(", ")));
        }
        notes
    }
}

fn joined(names: &BTreeSet<String>, by: &str) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(by)
}

/// With two digits and a sign; 0 has no sign.
fn signed(x: f64) -> String {
    let text = format!("{x:+.2}");
    if text[1..].bytes().all(|c| matches!(c, b'0' | b'.')) { text[1..].into() } else { text }
}

/// `p = 0.021`, or `p < 0.001`.
fn p(of: f64) -> String {
    let shown = probability(of, 3);
    if shown.starts_with('<') { format!("p {shown}") } else { format!("p = {shown}") }
}

/// A number of things.
fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn in_block(block: &str) -> String {
    if block.is_empty() { String::new() } else { format!(" in {block}") }
}
