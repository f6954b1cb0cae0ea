use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use trainer::files::{make_parent, write_atomically};
use trainer::grid::{parse_seeds, table};
use trainer::run::JudgedBy;

use super::Done;

/// Arguments of `trainer table`.
#[derive(Args)]
pub(super) struct TableArgs {
    /// A grid's folder, or any folder with run folders in it. Its `table.toml` (the `[table]` of a grid's file) may hold `published` (a cell's published error),
    /// `against` (what a cell or a block is compared with, where that is not `...-none`), `held_out` (blocks that are judged
    /// by the images held out, never by the test set), `choose` (what such a block chooses: `search = { within = 0.3, toward = 0.0
    /// }` takes the middle of the values within 0.3 points of the lowest error; one standard error if not given) and `margin` (of
    /// equivalence, in points).
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Markdown, CSV or JSON instead of text for a terminal.
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Only these blocks of the grid: NAME, or NAME,NAME.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) block: Vec<String>,
    /// Only the runs of the seeds from A to B - 1.
    #[arg(long, value_name = "A..B")]
    pub(super) seeds: Option<String>,
    /// Write a picture of it, an SVG.
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
}

/// Forms of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Markdown.
    Md,
    /// Comma-separated values, numbers in full.
    Csv,
    /// An array of objects.
    Json,
}

/// `trainer table`.
pub(super) fn run(args: &TableArgs) -> Result<Done> {
    let seeds = args.seeds.as_deref().map(parse_seeds).transpose()?;
    let mut summary = table::read(&args.dir, seeds.as_deref())?;
    if !args.block.is_empty() {
        summary.retain(&args.block)?;
    }
    if let Some(path) = &args.plot {
        ensure!(
            path.extension().is_none_or(|e| e.eq_ignore_ascii_case("svg")),
            "--plot {}: what is written is SVG; name the file so, as in table.svg",
            path.display()
        );
        make_parent(path)?;
        write_atomically(path, summary.plot()?.as_bytes())?;
    }
    let tables = [
        ("Test error", summary.errors(JudgedBy::TestImages)),
        ("Error of held-out images", summary.errors(JudgedBy::HeldOutImages)),
        ("Differences", summary.differences()),
        ("What the term does", summary.effects()),
    ];
    let (mut text, sentences, notes) = (String::new(), summary.sentences(), summary.notes());
    match args.format {
        None => {
            for (title, table) in tables.iter().filter(|(_, t)| !t.rows.is_empty()) {
                text += &format!("{title}\n{}\n", table.text());
            }
            sentences.iter().chain(&notes).for_each(|line| text += &format!("{line}\n"));
        }
        Some(Format::Md) => {
            for (title, table) in tables.iter().filter(|(_, t)| !t.rows.is_empty()) {
                text += &format!("### {title}\n\n{}\n", table.markdown());
            }
            sentences.iter().for_each(|line| text += &format!("- {line}\n"));
            notes.iter().for_each(|line| text += &format!("\n{line}\n"));
        }
        Some(Format::Csv) => text = summary.whole().csv()?,
        Some(Format::Json) => text = serde_json::to_string_pretty(&summary.whole().json())? + "\n",
    }
    Ok(Done::Result(text, json!({ "rows": summary.whole().json(), "sentences": sentences, "notes": notes })))
}
