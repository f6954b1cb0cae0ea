//! What runs with `train.dtype = "bf16"` were computed in: a processor without bf16 computes them in f32, and a difference
//! between cells could be one of arithmetic.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::Device;
use toml::Value;

use super::folders::{Cell, Run, walk};
use crate::run::multiplies_bf16;

/// What a run in bf16 was computed in.
#[derive(Clone, Copy, PartialEq)]
enum Arithmetic {
    Bf16,
    F32,
}

impl Arithmetic {
    fn new(multiplies_bf16: bool) -> Arithmetic {
        if multiplies_bf16 { Arithmetic::Bf16 } else { Arithmetic::F32 }
    }

    /// The runs in bf16 that were computed in this.
    fn runs(self, cells: &[Cell]) -> Vec<String> {
        let runs = cells.iter().flat_map(|cell| cell.runs.iter().map(move |run| (cell, run)));
        runs.filter(|(_, run)| asks_for_bf16(run) && Arithmetic::new(run.report.multiplied_bf16()) == self)
            .map(|(cell, run)| format!("{} seed {}", cell.id(), run.seed))
            .collect()
    }
}

fn asks_for_bf16(run: &Run) -> bool {
    run.config.get("train").and_then(|t| t.get("dtype")).and_then(Value::as_str) == Some("bf16")
}

/// The first few of some runs.
fn some_of(runs: &[String]) -> String {
    let more = if runs.len() > 5 { ", ..." } else { "" };
    format!("{}{more}", runs[..runs.len().min(5)].join(", "))
}

/// Refuses to put runs of both kinds together.
pub(super) fn check(cells: &[Cell]) -> Result<()> {
    let [bf16, f32] = [Arithmetic::Bf16, Arithmetic::F32].map(|of| of.runs(cells));
    ensure!(
        bf16.is_empty() || f32.is_empty(),
        "{} of {} runs with train.dtype = \"bf16\" were computed in f32, on processors without bf16 ({}): a table has one \
         arithmetic. Remove the folders of the fewer runs and do them again where the others were done",
        f32.len(),
        f32.len() + bf16.len(),
        some_of(&f32)
    );
    Ok(())
}

/// Refuses to begin runs in bf16 on a device that computes them otherwise than the finished ones below `out`: hours are not
/// spent on what no table would put together. What cannot be read there is left to whoever makes a table of it.
pub(in crate::grid) fn check_device(out: &Path, device: &Device) -> Result<()> {
    let mut cells = Vec::new();
    if walk(out, out, &mut cells).is_err() {
        return Ok(());
    }
    let (other, theirs, own) = match Arithmetic::new(multiplies_bf16(device)) {
        Arithmetic::Bf16 => (Arithmetic::F32, "f32, on a processor without bf16", "bf16"),
        Arithmetic::F32 => (Arithmetic::Bf16, "bf16", "f32, having no bf16"),
    };
    let others = other.runs(&cells);
    ensure!(
        others.is_empty(),
        "{} finished runs with train.dtype = \"bf16\" ({}) were computed in {theirs}; this machine computes in {own}. A table \
         has one arithmetic: remove those runs' folders, or go on where they were done, or take another --out",
        others.len(),
        some_of(&others)
    );
    Ok(())
}
