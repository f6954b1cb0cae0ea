//! A summary as tables and as a picture.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{CellFigures, Comparison, Mean, Summary};
use crate::report::plot::{self, Panel, Place};
use crate::report::statistics;
use crate::report::table::{Entry, Table, column};
use crate::run::JudgedBy;

impl Comparison {
    /// McNemar's test of each pair of runs: twice the median of their p, which is a p whatever binds the pairs (Rüger
    /// 1978); of one pair its own.
    pub fn mcnemar(&self) -> Option<f64> {
        let p: Vec<f64> = self.discordant.iter().map(|(b, c)| statistics::mcnemar(*b, *c)).collect();
        let times = if p.len() > 1 { 2.0 } else { 1.0 };
        statistics::median(&p).map(|p| (times * p).min(1.0))
    }
}

impl From<Option<Mean>> for Entry {
    fn from(mean: Option<Mean>) -> Entry {
        match mean {
            Some(Mean { value, half_width: Some(half) }) => Entry::Spread(value, half),
            mean => mean.map(|mean| mean.value).into(),
        }
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
        self.spreads.retain(|block, _| blocks.contains(block));
        self.single.retain(|block| blocks.contains(block));
        self.same_cell.retain(|block, _| blocks.contains(block));
        self.choices.retain(|block, _| blocks.contains(block));
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
            let n = if r.diverged > 0 { format!("{} (+{} diverged)", r.n, r.diverged).into() } else { r.n.into() };
            let mut row = vec![r.cell.clone().into(), n, error, r.sd.into()];
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
            column("pearson_without", "without", 3),
            column("cosine", "cosine", 3),
            column("top20", "top 20 %", 3),
            column("share", "gradient %", 2),
        ]);
        for r in self.cells.iter().filter(|r| r.same_class.is_some() || r.share.is_some()) {
            let [pearson, cosine, top20] = r.maps;
            table.rows.push(vec![
                r.cell.clone().into(),
                r.same_class.into(),
                r.kl.into(),
                pearson.into(),
                r.maps_without.into(),
                cosine.into(),
                top20.into(),
                r.share.into(),
            ]);
        }
        table
    }

    /// Everything, a row per cell: for CSV and JSON.
    pub fn whole(&self) -> Table {
        let rows: Vec<_> = self.cells.iter().map(whole_row).collect();
        let columns = rows.first().into_iter().flatten().map(|(name, _)| column(*name, *name, 4)).collect();
        let mut table = Table::new(columns);
        table.rows = rows.into_iter().map(|row| row.into_iter().map(|(_, entry)| entry).collect()).collect();
        table
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
            diverged: r.diverged,
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
}

/// Every figure of a cell under its name, the same names for each cell.
fn whole_row(r: &CellFigures) -> Vec<(&'static str, Entry)> {
    let c = r.comparison.as_ref();
    let of = |figure: &dyn Fn(&Comparison) -> Option<f64>| Entry::from(c.and_then(figure));
    let discordant = c.filter(|c| !c.discordant.is_empty());
    let [pearson, cosine, top20] = r.maps;
    let count = |n: Option<u64>| n.map_or(Entry::Nothing, Entry::Count);
    let value = |mean: Option<Mean>| Entry::from(mean.map(|mean| mean.value));
    let half = |mean: Option<Mean>| Entry::from(mean.and_then(|mean| mean.half_width));
    let words = |text: &Option<String>| text.clone().map_or(Entry::Nothing, Entry::Text);
    vec![
        ("cell", r.cell.clone().into()),
        ("n", r.n.into()),
        ("diverged", r.diverged.into()),
        ("error_of", r.judged_by.name().into()),
        ("error", r.error.into()),
        ("half_width", r.half_width.into()),
        ("sd", r.sd.into()),
        ("published", r.published.into()),
        ("against", c.map_or(Entry::Nothing, |c| c.against.clone().into())),
        ("difference", of(&|c| Some(c.difference.mean))),
        ("difference_half_width", of(&|c| Some(c.difference.half_width()))),
        ("p", of(&|c| Some(c.difference.p))),
        ("holm", of(&|c| Some(c.holm))),
        ("equivalence", of(&|c| Some(c.equivalence))),
        ("paired_difference", of(&|c| Some(c.paired?.0.mean))),
        ("paired_p", of(&|c| Some(c.paired?.0.p))),
        ("correlation", of(&|c| c.paired?.1)),
        ("only_this_wrong", count(discordant.map(|c| c.discordant.iter().map(|d| d.0).sum()))),
        ("only_other_wrong", count(discordant.map(|c| c.discordant.iter().map(|d| d.1).sum()))),
        ("mcnemar", of(&Comparison::mcnemar)),
        ("runs_needed", count(c.and_then(|c| Some(c.needed? as u64)))),
        ("nll", value(r.nll)),
        ("same_class", value(r.same_class)),
        ("kl", value(r.kl)),
        ("pearson", value(pearson)),
        ("cosine", value(cosine)),
        ("top20", value(top20)),
        ("share", r.share.into()),
        ("welch_p", of(&|c| Some(c.welch?.p))),
        ("identical_to", words(&r.identical)),
        ("not_compared", words(&r.not_compared)),
        ("nll_half_width", half(r.nll)),
        ("same_class_half_width", half(r.same_class)),
        ("kl_half_width", half(r.kl)),
        ("pearson_half_width", half(pearson)),
        ("pearson_without", r.maps_without.into()),
    ]
}
