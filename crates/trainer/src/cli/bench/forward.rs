//! `trainer bench forward`.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use trainer::bench;
use trainer::config::Dtype;
use trainer::report::table::{Table, column};

use super::{GFLOPS, Timed, backend, processor};
use crate::cli::{Done, Global};

/// Arguments of `trainer bench forward`.
#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Architectures.
    #[arg(long, value_name = "NAME", default_values = ["vgg16", "resnet18", "resnet50", "squeezenet1_1"])]
    arch: Vec<String>,
    /// Images per pass.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Their height and width in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(8..=1024))]
    side: u32,
    /// What to compute in.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    dtype: Dtype,
    #[command(flatten)]
    timed: Timed,
}

/// Of all images of a pass: 64 of 1024x1024.
const PIXELS: usize = 1 << 26;

pub(super) fn run(args: &Arguments, global: &Global) -> Result<Done> {
    let backend = backend(args.dtype, global)?;
    let (batch, side, threads) = (args.batch as usize, args.side as usize, rayon::current_num_threads());
    ensure!(
        batch * side * side <= PIXELS,
        "--batch {batch} --side {side}: more than {PIXELS} pixels together; fewer images or smaller ones"
    );
    let mut table = Table::new(vec![column("arch", "arch", 0), column("ms", "ms", 1), column("gflops", "GFLOP/s", 0)]);
    // A name that nobody knows is told before the first is timed.
    let built = args.arch.iter().map(|arch| bench::forward::architecture(arch, side));
    for architecture in built.collect::<Result<Vec<_>>>()? {
        let name = architecture.name.clone();
        let t = bench::forward::run(architecture, batch, args.timed.repeats, &backend)?;
        table.rows.push(vec![name.into(), t.ms.into(), t.gflops.into()]);
    }
    let text = format!(
        "median of {}, {batch} images of {side}x{side}, {threads} threads, {:?}, {}\n{}{GFLOPS}.\n",
        args.timed.repeats,
        args.dtype,
        processor(global),
        table.text()
    );
    let value = json!({
        "rows": table.json(), "batch": batch, "side": side, "threads": threads, "device": global.device,
        "dtype": args.dtype,
    });
    Ok(Done::Result(text, value))
}
