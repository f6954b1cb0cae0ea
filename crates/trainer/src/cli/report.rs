use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use trainer::files::{make_parent, write_atomically};
use trainer::{grid, run};

use super::{Done, Global};

/// Arguments of `trainer report`.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// A run's folder, or one with run folders in it.
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// The file to write (default: DIR/report.html).
    #[arg(long, value_name = "FILE.html")]
    pub(super) out: Option<PathBuf>,
}

/// `trainer report`.
pub(super) fn run(args: &ReportArgs, global: &Global) -> Result<Done> {
    ensure!(
        args.dir.is_dir(),
        "{}: no such folder; expected a run's, or one with run folders in it",
        args.dir.display()
    );
    let html = if run::page::is_run(&args.dir) {
        run::page::page(&args.dir, grid::table::judged_by(&args.dir)?, &global.device()?)?
    } else {
        grid::page::page(&args.dir)?
    };
    let out = args.out.clone().unwrap_or_else(|| args.dir.join("report.html"));
    make_parent(&out)?;
    write_atomically(&out, html.as_bytes())?;
    let text = format!("{}: {} kB, needs no other file\n", out.display(), html.len().div_ceil(1000));
    Ok(Done::Result(text, json!({ "out": out.display().to_string() })))
}
