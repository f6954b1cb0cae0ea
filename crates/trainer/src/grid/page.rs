//! A grid as a page: what its table says, every run, and how the cells got there.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::table::{self, CellFigures};
use crate::report::page::Page;
use crate::report::plot::{self, Line};
use crate::report::table::{Table, column};
use crate::run::JudgedBy;

/// The page of the runs below `dir`.
pub fn page(dir: &Path) -> Result<String> {
    let summary = table::read(dir)?;
    let name = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let name = name.file_name().map_or_else(|| "grid".into(), |n| n.to_string_lossy().into_owned());
    let (cells, runs) = (summary.cells.len(), summary.cells.iter().map(|c| c.n).sum::<usize>());
    let mut page = Page::new(&name, &format!("{runs} finished runs of {cells} cells, profile {}", summary.profile));
    if runs > 0 {
        page.drawing(&summary.plot()?, "Every run, with its cell's mean and 95 % interval.");
    }
    page.heading("What the differences are worth");
    page.list(&summary.sentences());
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
    page.heading("Error after each epoch");
    for block in summary.blocks() {
        let lines: Vec<Line> = block.iter().filter(|c| c.curve.len() > 1).map(curve).collect();
        if !lines.is_empty() {
            let caption = match block[0].block.as_str() {
                "" => "Means over the runs of a cell.".to_string(),
                name => format!("Block {name}, means over the runs of a cell."),
            };
            page.drawing(&plot::lines(["epoch", "error, %"], &lines)?, &caption);
        }
    }
    page.heading("Every run");
    let mut runs = Table::new(vec![
        column("cell", "cell", 0),
        column("seeds", "seeds", 0),
        column("errors", "errors in their order, %", 0),
    ]);
    for cell in summary.cells.iter().filter(|c| c.n > 0) {
        let joined = |text: &dyn Fn(&(u64, f64)) -> String| cell.runs.iter().map(text).collect::<Vec<_>>().join(", ");
        let seeds = joined(&|(seed, _)| seed.to_string());
        let errors = joined(&|(_, error)| format!("{error:.2}"));
        runs.rows.push(vec![cell.cell.clone().into(), seeds.into(), errors.into()]);
    }
    page.table(&runs);
    Ok(page.finish())
}

fn curve(cell: &CellFigures) -> Line {
    let name = cell.cell.strip_prefix(&format!("{}/", cell.block)).unwrap_or(&cell.cell);
    (name.into(), cell.curve.iter().enumerate().map(|(at, error)| ((at + 1) as f64, *error)).collect())
}
