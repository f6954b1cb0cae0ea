//! What the runs of a block's cells came to.

use std::collections::BTreeSet;

use super::folders::{Cell, Run};
use super::{About, CellFigures, Mean, Spread};
use crate::evaluate::agreement::Alike;
use crate::report::statistics::{self, Design, Pooled};
use crate::run::JudgedBy;

/// The figures of a block's cells, without comparisons; intervals are by the standard deviation of those that share one, those of
/// maps and of KL, whose scatter differs a hundredfold, by each cell's own.
pub(super) fn of(cells: &[&Cell], sharing: &[&Cell], about: &About) -> Vec<CellFigures> {
    let errors = means(cells, sharing, |cell, run| Some(cell.error(run)));
    let tested = |figure: &dyn Fn(&Cell, &Run) -> Option<f64>| {
        means(cells, sharing, |cell, run| figure(cell, run).filter(|_| cell.judged_by == JudgedBy::TestImages))
    };
    let nll = tested(&|_, run| Some(run.report.test_loss));
    let same_class = tested(&|_, run| Some(run.report.agreement.as_ref()?.same_class));
    let alone = |figure: &dyn Fn(&Cell, &Run) -> Option<f64>| {
        let mean = |cell: &&Cell| means(&[*cell], &[*cell], figure).pop().flatten();
        cells.iter().map(|cell| mean(cell).filter(|_| cell.judged_by == JudgedBy::TestImages)).collect::<Vec<_>>()
    };
    let kl = alone(&|_, run| Some(run.report.agreement.as_ref()?.kl));
    let pearson = alone(&|cell, run| Some(alike(run, &method(cell))?.pearson));
    let cosine = alone(&|cell, run| Some(alike(run, &method(cell))?.cosine));
    let top20 = alone(&|cell, run| Some(alike(run, &method(cell))?.top20));
    let figures = |(at, cell): (usize, &&Cell)| CellFigures {
        block: cell.block.clone(),
        cell: cell.id(),
        judged_by: cell.judged_by,
        n: cell.runs.len(),
        diverged: cell.diverged.len(),
        error: errors[at].map_or(f64::NAN, |mean| mean.value),
        half_width: errors[at].and_then(|mean| mean.half_width),
        sd: statistics::sd(&cell.errors()),
        published: about.published.get(&cell.id()).copied(),
        comparison: None,
        not_compared: None,
        identical: None,
        nll: nll[at],
        same_class: same_class[at],
        kl: kl[at],
        maps: [pearson[at], cosine[at], top20[at]],
        maps_without: None,
        share: share(cell),
        runs: cell.runs.iter().map(|r| r.seed).zip(cell.errors()).collect(),
        curve_of: cell.runs.first().map_or(cell.judged_by, Run::curve_of),
        curve: curve(&cell.runs),
        commits: cell.runs.iter().flat_map(|r| r.report.commits.iter().chain([&r.report.commit])).cloned().collect(),
        machines: cell.runs.iter().map(|r| r.report.machine.clone()).collect(),
    };
    cells.iter().enumerate().map(figures).collect()
}

/// How the runs of a block's own cells scatter, by the standard deviation of its comparisons, which cells elsewhere may share.
pub(super) fn spread(cells: &[&Cell], (pooled, design): (Pooled, Design), elsewhere: bool) -> Spread {
    let seeds: Vec<BTreeSet<u64>> = cells.iter().map(|cell| cell.runs.iter().map(|run| run.seed).collect()).collect();
    let all: BTreeSet<u64> = seeds.iter().flatten().copied().collect();
    let common: BTreeSet<u64> = all.iter().copied().filter(|seed| seeds.iter().all(|own| own.contains(seed))).collect();
    let shared = |cell: &&Cell| {
        let error = |seed: &u64| cell.runs.iter().find(|run| run.seed == *seed).map(|run| cell.error(run));
        common.iter().filter_map(error).collect()
    };
    let groups: Vec<Vec<f64>> = cells.iter().map(shared).collect();
    let (alike, uneven) = (statistics::alike(&groups), all != common);
    Spread { pooled, design, elsewhere, seeds: common, uneven, alike }
}

/// The means of a figure over each cell's runs, with intervals by the standard deviation of the cells that share one.
fn means(cells: &[&Cell], sharing: &[&Cell], figure: impl Fn(&Cell, &Run) -> Option<f64>) -> Vec<Option<Mean>> {
    let values = |cells: &[&Cell]| -> Vec<Vec<f64>> {
        cells.iter().map(|cell| cell.runs.iter().filter_map(|run| figure(cell, run)).collect()).collect()
    };
    let pooled = statistics::pooled(values(sharing).iter().map(Vec::as_slice));
    let mean = |values: &Vec<f64>| Mean {
        value: statistics::mean(values),
        half_width: pooled.map(|pooled| statistics::half_width(pooled, values.len())),
    };
    values(cells).iter().map(|values| (!values.is_empty()).then(|| mean(values))).collect()
}

/// The method whose maps a cell is judged by: the one that it matches, or Grad-CAM.
pub(super) fn method(cell: &Cell) -> String {
    let matches = cell.runs.iter().any(|r| r.report.gradient_norms.contains_key("explanation"));
    if matches { cell.setting("loss.interpreter") } else { "grad_cam".into() }
}

/// How a run's maps resemble its teacher's; Grad-CAM's where the method's have not been looked at.
fn alike(run: &Run, method: &str) -> Option<Alike> {
    let maps = &run.report.agreement.as_ref()?.maps;
    maps.get(method).or_else(|| maps.get("grad_cam")).copied()
}

/// The correlation of a method's own maps.
pub(super) fn correlation(run: &Run, method: &str) -> Option<f64> {
    Some(run.report.agreement.as_ref()?.maps.get(method)?.pearson)
}

/// The term's part of the whole gradient, in percent.
fn share(cell: &Cell) -> Option<f64> {
    let weight: f64 = cell.setting("loss.weights.explanation").parse().ok()?;
    cell.mean(|run| {
        let norms = &run.report.gradient_norms;
        Some(100.0 * weight * norms.get("explanation")? / norms.get("total")?)
    })
}

/// The mean of the runs' errors after each epoch that was measured in all of them.
fn curve(runs: &[Run]) -> Vec<(f64, f64)> {
    let mean_at = |at: usize| {
        let errors: Option<Vec<f64>> = runs.iter().map(|run| run.report.curve.get(at).copied().flatten()).collect();
        Some(((at + 1) as f64, statistics::mean(&errors?)))
    };
    let epochs = runs.iter().map(|run| run.report.curve.len()).min().unwrap_or(0);
    (0..epochs).filter_map(mean_at).collect()
}
