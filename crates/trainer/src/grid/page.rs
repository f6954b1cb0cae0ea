//! A grid as a page: what its table says, every run, and how the cells got there.

use std::path::Path;

use anyhow::Result;

use super::table::{self, CellFigures};
use crate::report::page::{Page, name_of};
use crate::report::plot::{self, Line};
use crate::report::table::{Table, column};
use crate::run::JudgedBy;

/// The page of the runs below `dir`.
pub fn page(dir: &Path) -> Result<String> {
    let summary = table::read(dir, None)?;
    let (cells, runs) = (summary.cells.len(), summary.cells.iter().map(|c| c.n).sum::<usize>());
    let mut page = Page::new(&name_of(dir), &format!("{runs} finished runs of {cells} cells"));
    if runs > 0 {
        page.drawing(&summary.plot()?, "Every run, with its cell's mean and 95 % interval.");
    }
    let sentences = summary.sentences();
    if !sentences.is_empty() {
        page.heading("What the differences are worth");
        page.list(&sentences);
    }
    for (heading, table) in [
        ("Test error", summary.errors(JudgedBy::TestImages)),
        ("Error of held-out images", summary.errors(JudgedBy::HeldOutImages)),
        ("Differences", summary.differences()),
        ("What the term does", summary.effects()),
    ] {
        if !table.rows.is_empty() {
            page.heading(heading);
            page.table(&table);
        }
    }
    page.heading("Notes");
    page.list(&summary.notes());
    let curves: Vec<&[CellFigures]> = summary.blocks().filter(|b| b.iter().any(|c| c.curve.len() > 1)).collect();
    if !curves.is_empty() {
        page.heading("Error over the epochs");
    }
    for block in curves {
        let of = block[0].curve_of.name();
        let lines: Vec<Line> =
            block.iter().filter(|c| c.curve.len() > 1).map(|c| (c.short().into(), c.curve.clone())).collect();
        let name = if block[0].block.is_empty() { String::new() } else { format!("Block {}: ", block[0].block) };
        let caption = format!("{name}{of} that are wrong, means over the runs of a cell.");
        page.drawing(&plot::lines(["epoch", &format!("{of} wrong, %")], &lines)?, &caption);
    }
    if runs == 0 {
        return Ok(page.finish());
    }
    page.heading("Every run");
    let mut all = Table::new(vec![
        column("cell", "cell", 0),
        column("seeds", "seeds", 0),
        column("errors", "errors in their order, %", 0),
    ]);
    for cell in summary.cells.iter().filter(|c| c.n > 0) {
        let joined = |text: &dyn Fn(&(u64, f64)) -> String| cell.runs.iter().map(text).collect::<Vec<_>>().join(", ");
        let seeds = joined(&|(seed, _)| seed.to_string());
        let errors = joined(&|(_, error)| format!("{error:.2}"));
        all.rows.push(vec![cell.cell.clone().into(), seeds.into(), errors.into()]);
    }
    page.table(&all);
    Ok(page.finish())
}
