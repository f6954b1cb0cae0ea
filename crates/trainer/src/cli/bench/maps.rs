//! `trainer bench maps`.

use anyhow::Result;
use clap::Args;
use serde_json::json;
use trainer::bench;
use trainer::nn::Backend;
use trainer::report::table::{Table, column};

use super::Timed;
use crate::cli::{Done, Global};

/// Arguments of `trainer bench maps`.
#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Architecture.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    arch: String,
    /// Images of methods that need no passes, and of a training step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Images of methods that need passes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    few: u32,
    #[command(flatten)]
    timed: Timed,
}

pub(super) fn run(args: &Arguments, global: &Global) -> Result<Done> {
    let backend = Backend::f32(&global.device()?);
    let bench = bench::maps::run(&args.arch, args.batch as usize, args.few as usize, args.timed.repeats, &backend)?;
    let mut table = Table::new(vec![
        column("method", "method", 0),
        column("estimator", "estimator", 0),
        column("images", "images", 0),
        column("ms_per_map", "ms a map", 4),
        column("evaluations", "passes", 0),
        column("matching_ms", "match ms", 2),
        column("share_of_step", "step %", 1),
    ]);
    let share = |m: &bench::maps::Cost| m.matching_ms.map(|ms| ms / bench.train_ms);
    for m in &bench.methods {
        table.rows.push(vec![
            m.method.clone().into(),
            m.estimator.clone().into(),
            m.images.into(),
            m.ms_per_map.into(),
            m.evaluations.into(),
            m.matching_ms.into(),
            share(m).map(|s| 100.0 * s).into(),
        ]);
    }
    let threads = rayon::current_num_threads();
    let text = format!(
        "{}: a training step of {} images {:.1} ms, a forward pass {:.3} ms each\n{}\
         passes: of the network or its head, an image. match: teacher's and student's maps of the\n\
         batch, their distance, and backward to the activations; step: its share of the training\n\
         step.\n",
        args.arch,
        args.batch,
        bench.train_ms,
        bench.forward_ms,
        table.text()
    );
    let rows = bench.methods.iter().map(|m| {
        json!({
            "method": m.method, "estimator": m.estimator, "images": m.images, "ms_per_map": m.ms_per_map,
            "evaluations": m.evaluations, "matching_ms": m.matching_ms, "share_of_step": share(m),
            "relative_error": m.error,
        })
    });
    let value = json!({
        "rows": rows.collect::<Vec<_>>(), "arch": args.arch, "batch": args.batch, "train_ms": bench.train_ms,
        "forward_ms": bench.forward_ms, "threads": threads,
    });
    Ok(Done::Result(text, value))
}
