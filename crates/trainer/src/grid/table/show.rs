//! A summary as tables and sentences.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{CellFigures, Comparison, Summary};
use crate::report::plot::{self, Panel, Place};
use crate::report::statistics::{self, Pooled};
use crate::report::table::{Entry, Table, column, probability};
use crate::run::JudgedBy;

impl Comparison {
    /// McNemar's test of each pair of runs: the median of their p.
    pub fn mcnemar(&self) -> Option<f64> {
        let p: Vec<f64> = self.discordant.iter().map(|(b, c)| statistics::mcnemar(*b, *c)).collect();
        statistics::median(&p)
    }
}

impl Summary {
    /// Of some blocks alone. Their comparisons stay as they are, with cells of other blocks too.
    pub fn retain(&mut self, blocks: &[String]) -> Result<()> {
        let known: BTreeSet<&str> = self.cells.iter().map(|r| r.block.as_str()).collect();
        for block in blocks {
            ensure!(
                known.contains(block.as_str()),
                "there is no run of a block {block}; there are runs of {}",
                known.into_iter().collect::<Vec<_>>().join(", ")
            );
        }
        self.cells.retain(|r| blocks.contains(&r.block));
        self.pooled.retain(|block, _| blocks.contains(block));
        Ok(())
    }

    /// Errors of the test images beside what was published, or of the images held out.
    pub fn errors(&self, of: JudgedBy) -> Table {
        let mut columns = vec![
            column("cell", "cell", 0),
            column("n", "n", 0),
            column("error", "error % (95 %)", 2),
            column("sd", "sd", 2),
        ];
        if of == JudgedBy::TestImages {
            columns.extend([column("published", "published", 2), column("nll", "NLL", 3)]);
        }
        let mut table = Table::new(columns);
        for r in self.cells.iter().filter(|r| r.judged_by == of) {
            let error = r.half_width.map_or_else(|| r.error.into(), |half| Entry::Spread(r.error, half));
            let mut row = vec![r.cell.clone().into(), r.n.into(), error, r.sd.into()];
            if of == JudgedBy::TestImages {
                row.extend([r.published.into(), r.nll.into()]);
            }
            table.rows.push(row);
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
        for r in &self.cells {
            let Some(c) = &r.comparison else { continue };
            table.rows.push(vec![
                r.cell.clone().into(),
                c.against.clone().into(),
                Entry::Spread(c.difference.mean, c.difference.half_width()),
                Entry::Probability(c.holm),
                Entry::Probability(c.equivalence),
                c.paired.and_then(|(_, r)| r).into(),
                c.mcnemar().map_or(Entry::Nothing, Entry::Probability),
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
        for r in self.cells.iter().filter(|r| r.same_class.or(r.share).is_some()) {
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

    /// Everything, a row per cell: for CSV and JSON.
    pub fn whole(&self) -> Table {
        let names = [
            "cell",
            "n",
            "diverged",
            "error_of",
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
        for r in &self.cells {
            let c = r.comparison.as_ref();
            let of = |figure: &dyn Fn(&Comparison) -> Option<f64>| Entry::from(c.and_then(figure));
            let discordant = c.filter(|c| !c.discordant.is_empty());
            let [pearson, cosine, top20] = r.maps;
            let count = |n: Option<u64>| n.map_or(Entry::Nothing, Entry::Count);
            table.rows.push(vec![
                r.cell.clone().into(),
                r.n.into(),
                r.diverged.into(),
                r.judged_by.name().into(),
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
                count(discordant.map(|c| c.discordant.iter().map(|d| d.0).sum())),
                count(discordant.map(|c| c.discordant.iter().map(|d| d.1).sum())),
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

    /// A sentence per comparison.
    pub fn sentences(&self) -> Vec<String> {
        let of = |r: &CellFigures| {
            let c = r.comparison.as_ref()?;
            let (mean, half) = (c.difference.mean, c.difference.half_width());
            let found = format!("{} ± {half:.2} points against {}", signed(mean), c.against);
            let verdict = if c.holm < 0.05 {
                format!("{} ({found}, {} after Holm)", if mean < 0.0 { "better" } else { "worse" }, p(c.holm))
            } else if c.equivalence < 0.05 {
                format!("equivalent to within {} points ({found}, {})", self.margin, p(c.equivalence))
            } else {
                let needed = c.needed.map_or("a thousand or more".into(), |n| n.to_string());
                format!("not distinguishable ({found}; a difference of this size would need {needed} seeds a cell)")
            };
            let of = match r.judged_by {
                JudgedBy::TestImages => "",
                JudgedBy::HeldOutImages => " (held-out images)",
            };
            Some(format!("{}{of}: {verdict}", r.cell))
        };
        self.cells.iter().filter_map(of).collect()
    }

    /// Every run, mean and interval: a panel per block.
    ///
    /// # Errors
    /// If no run is finished.
    pub fn plot(&self) -> Result<String> {
        let place = |r: &CellFigures| Place {
            name: r.short().into(),
            points: r.runs.iter().map(|(_, error)| *error).collect(),
            interval: r.half_width.map(|half| (r.error, half)),
            published: r.published,
        };
        let panels = self.blocks().map(|cells| Panel {
            title: cells[0].block.clone(),
            axis: format!("{} wrong, %", cells[0].judged_by.name()),
            places: cells.iter().map(place).collect(),
        });
        plot::panels("A point per seed, mean and 95 % interval", &panels.collect::<Vec<_>>())
    }

    /// The cells, block by block.
    pub fn blocks(&self) -> impl Iterator<Item = &[CellFigures]> {
        self.cells.chunk_by(|a, b| a.block == b.block)
    }

    /// What holds for the whole table.
    pub fn notes(&self) -> Vec<String> {
        let sd =
            |(block, p): (&String, &Pooled)| format!("{:.3}{} ({} degrees of freedom)", p.sd, in_block(block), p.df);
        let shared: Vec<String> = self.pooled.iter().map(sd).collect();
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
        let waiting: BTreeSet<String> =
            self.cells.iter().filter_map(|r| Some(format!("{} with {}", r.cell, r.awaits.as_ref()?))).collect();
        if !waiting.is_empty() {
            notes.push(format!("Not compared, as the other has no finished run: {}.", joined(&waiting, ", ")));
        }
        if !self.absent.is_empty() {
            notes.push(format!("table.toml speaks of what has no run: {}.", joined(&self.absent, ", ")));
        }
        if !shared.is_empty() {
            notes.push(format!(
                "Intervals and tests use the standard deviation over seeds that a block's cells share: {}. Three seeds a \
                 cell show differences of {:.2} points, 5 of {:.2}, 12 of {:.2} (80 % of cases, 5 %).",
                shared.join(", "),
                self.seen_by(3),
                self.seen_by(5),
                self.seen_by(12)
            ));
        }
        notes.push(
            "Differences: Holm over the comparisons of a block; their standard deviation takes in a compared cell of another \
             block; the tests of equivalence are not corrected; McNemar: the median of the pairs of runs of one seed."
                .into(),
        );
        let diverged: usize = self.cells.iter().map(|r| r.diverged).sum();
        if diverged > 0 {
            notes.push(format!("{diverged} runs diverged; their cells' means are of the others."));
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

    /// The difference that `n` runs per cell show, with the largest of the blocks' standard deviations.
    fn seen_by(&self, n: usize) -> f64 {
        statistics::visible(n) * self.pooled.values().map(|p| p.sd).fold(0.0, f64::max)
    }
}

fn joined(names: &BTreeSet<String>, by: &str) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(by)
}

/// With two digits and a sign, which nothing has not.
fn signed(x: f64) -> String {
    let text = format!("{x:+.2}");
    if text[1..].bytes().all(|c| matches!(c, b'0' | b'.')) { text[1..].into() } else { text }
}

/// `p = 0.021`, or `p < 0.001`.
fn p(of: f64) -> String {
    let shown = probability(of, 3);
    if shown.starts_with('<') { format!("p {shown}") } else { format!("p = {shown}") }
}

fn in_block(block: &str) -> String {
    if block.is_empty() { String::new() } else { format!(" in {block}") }
}
