//! `trainer bench kernels`.

use anyhow::Result;
use candle_core::Device;
use clap::Args;
use kernels::Isa;
use serde_json::json;
use trainer::bench;
use trainer::config::Dtype;
use trainer::report::table::{Entry, Table, column};

use super::{GFLOPS, Timed};
use crate::cli::Done;

/// Arguments of `trainer bench kernels`.
#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Images per call.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// What to compute in; candle's ops compute in f32.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    dtype: Dtype,
    #[command(flatten)]
    timed: Timed,
}

pub(super) fn run(args: &Arguments) -> Result<Done> {
    args.dtype.check(&Device::Cpu)?;
    let bench = bench::kernels::run(args.batch as usize, args.timed.repeats, args.dtype)?;
    let mut table = Table::new(vec![
        column("op", "op", 0),
        column("ms", "ours ms", 2),
        column("candle_ms", "candle ms", 2),
        column("ratio", "ratio", 3),
        column("gflops", "GFLOP/s", 0),
        column("share_of_peak", "peak", 2),
        column("error", "error", 0),
    ]);
    let share = |op: &bench::kernels::Op| op.gflops.map(|g| g / bench.peak_gflops);
    for op in &bench.ops {
        table.rows.push(vec![
            op.name.clone().into(),
            op.ms.into(),
            op.candle_ms.into(),
            (op.ms / op.candle_ms).into(),
            op.gflops.into(),
            share(op).into(),
            Entry::Text(format!("{:.1e}", op.error)),
        ]);
    }
    let threads = rayon::current_num_threads();
    let text = format!(
        "batch {}, {threads} threads, {:?}, {:?}: {:.0} GFLOP/s at most\n{}\
         {GFLOPS},\n\
         so it may exceed the peak. error: difference from the same op in f64, relative, root mean\n\
         square. Convolutions are timed as a network runs them, the other ops with the change of\n\
         layout around them.\n",
        args.batch,
        Isa::best(),
        args.dtype,
        bench.peak_gflops,
        table.text()
    );
    let rows = bench.ops.iter().map(|op| {
        json!({
            "op": op.name, "ms": op.ms, "candle_ms": op.candle_ms, "ratio": op.ms / op.candle_ms, "gflops": op.gflops,
            "share_of_peak": share(op), "error": op.error,
        })
    });
    let value = json!({
        "rows": rows.collect::<Vec<_>>(), "peak_gflops": bench.peak_gflops, "batch": args.batch, "threads": threads,
        "dtype": args.dtype,
    });
    Ok(Done::Result(text, value))
}
