//! `trainer bench step`.

use anyhow::Result;
use cams::methods::Methods;
use clap::Args;
use serde_json::json;
use trainer::bench;
use trainer::config::Dtype;
use trainer::error::unknown;
use trainer::report::table::{Table, column};

use super::{Timed, backend, processor};
use crate::cli::{Done, Global};

/// Arguments of `trainer bench step`.
#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Architecture of the student.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    student: String,
    /// Architecture of the teacher.
    #[arg(long, default_value = "wrn-40-2", value_name = "NAME")]
    teacher: String,
    /// Images per step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Method of the maps.
    #[arg(long, default_value = "shap_cam", value_name = "M")]
    interpreter: String,
    /// What to compute in.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    dtype: Dtype,
    #[command(flatten)]
    timed: Timed,
}

pub(super) fn run(args: &Arguments, global: &Global) -> Result<Done> {
    if Methods::default().get(&args.interpreter).is_none() {
        return Err(unknown("interpreter", &args.interpreter, Methods::NAMES));
    }
    let backend = backend(args.dtype, global)?;
    let (batch, threads) = (args.batch as usize, rayon::current_num_threads());
    let t = bench::step::step(&args.student, &args.teacher, batch, &args.interpreter, args.timed.repeats, &backend)?;
    let mut table = Table::new(vec![column("work", "work", 0), column("ms", "ms", 2)]);
    for (work, ms) in [
        (format!("student {} training step", args.student), t.train_ms),
        (format!("with teacher {}, KD, {}", args.teacher, args.interpreter), t.kd_ms),
        ("of which matching".into(), t.explain_ms),
        ("teacher forward".into(), t.teacher_ms),
        ("teacher training step".into(), t.teacher_train_ms),
        ("its output from the cache".into(), t.cached_ms),
    ] {
        table.rows.push(vec![work.into(), ms.into()]);
    }
    let text = format!(
        "median of {}, batch {batch}, {threads} threads, {:?}, {}\n{}",
        args.timed.repeats,
        args.dtype,
        processor(global),
        table.text()
    );
    let value = json!({
        "train_ms": t.train_ms, "kd_ms": t.kd_ms, "teacher_ms": t.teacher_ms, "teacher_train_ms": t.teacher_train_ms,
        "explain_ms": t.explain_ms, "cached_ms": t.cached_ms, "peak_rss_mb": t.peak_rss_mb, "threads": threads,
        "device": global.device, "dtype": args.dtype, "batch": batch, "interpreter": args.interpreter,
    });
    Ok(Done::Result(text, value))
}
