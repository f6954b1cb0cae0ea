use anyhow::Result;
use serde_json::json;

use crate::bench;
use crate::cli::{BenchStep, Done, Global};
use crate::nn::Backend;
use cams::methods::Methods;

/// `trainer bench step`.
pub fn step(args: &BenchStep, global: &Global) -> Result<Done> {
    if Methods::default().get(&args.interpreter).is_none() {
        return Err(crate::error::unknown("interpreter", &args.interpreter, Methods::NAMES));
    }
    let (dtype, precision) = args.dtype.parts();
    let backend = Backend { precision, ..Backend::new(dtype, &global.device()?) };
    let t = bench::step(&args.student, &args.teacher, args.batch as usize, &args.interpreter, args.repeats, &backend)?;
    let text = format!(
        "median of {} (batch {}, {} threads, {:?}):\n  student {} training step   {:8.1} ms\n  with teacher {}, KD, {} {:8.1} ms\n  of which matching            {:8.1} ms\n  teacher forward              {:8.1} ms\n  teacher training step        {:8.1} ms\n",
        args.repeats,
        args.batch,
        rayon::current_num_threads(),
        kernels::Isa::best(),
        args.student,
        t.train_ms,
        args.teacher,
        args.interpreter,
        t.kd_ms,
        t.explain_ms,
        t.teacher_ms,
        t.teacher_train_ms,
    );
    let value = json!({
        "train_ms": t.train_ms, "kd_ms": t.kd_ms, "teacher_ms": t.teacher_ms, "teacher_train_ms": t.teacher_train_ms,
        "explain_ms": t.explain_ms, "peak_rss_mb": bench::peak_rss_mb(), "threads": rayon::current_num_threads(),
        "device": global.device, "dtype": args.dtype, "batch": args.batch, "interpreter": args.interpreter,
    });
    Ok(Done::Result(text, value))
}
