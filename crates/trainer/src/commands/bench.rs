use anyhow::Result;
use serde_json::json;

use crate::bench;
use crate::cli::{BenchKernels, BenchStep, Done, Global};
use crate::nn::Backend;
use cams::methods::Methods;

/// `trainer bench step`.
pub fn step(args: &BenchStep, global: &Global) -> Result<Done> {
    if Methods::default().get(&args.interpreter).is_none() {
        return Err(crate::error::unknown("interpreter", &args.interpreter, Methods::NAMES));
    }
    let (dtype, precision) = args.dtype.parts();
    let backend = Backend { precision, ..Backend::new(dtype, &global.device()?) };
    let t = bench::step::step(
        &args.student,
        &args.teacher,
        args.batch as usize,
        &args.interpreter,
        args.repeats,
        &backend,
    )?;
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

/// `trainer bench kernels`.
pub fn kernels(args: &BenchKernels) -> Result<Done> {
    let bench = bench::kernels::run(args.batch as usize, args.repeats, args.dtype)?;
    let mut text = format!(
        "batch {}, {} threads, {:?}, {:?}: {:.0} GFLOP/s at most\n{:30}{:>10}{:>10}{:>7}{:>10}{:>7}{:>9}\n",
        args.batch,
        rayon::current_num_threads(),
        kernels::Isa::best(),
        args.dtype,
        bench.peak_gflops,
        "",
        "ours ms",
        "candle ms",
        "ratio",
        "GFLOP/s",
        "peak",
        "error",
    );
    for row in &bench.rows {
        text += &format!("{:30}{:10.2}{:10.2}{:7.3}", row.op, row.ms, row.candle_ms, row.ms / row.candle_ms);
        match row.gflops {
            Some(gflops) => text += &format!("{gflops:10.0}{:7.2}{:9.1e}\n", gflops / bench.peak_gflops, row.error),
            None => text += &format!("{:>10}{:>7}{:9.1e}\n", "-", "-", row.error),
        }
    }
    text += "GFLOP/s count the definition's operations: Winograd's algorithm does a quarter of them, so it may exceed the peak.\n\
             error: difference from the same op in f64, relative, root mean square. Convolutions are timed as a network runs them,\n\
             the other ops with the change of layout around them.\n";
    let rows: Vec<_> = bench
        .rows
        .iter()
        .map(|r| {
            json!({
                "op": r.op, "ms": r.ms, "candle_ms": r.candle_ms, "ratio": r.ms / r.candle_ms, "gflops": r.gflops,
                "share_of_peak": r.gflops.map(|g| g / bench.peak_gflops), "error": r.error,
            })
        })
        .collect();
    let value = json!({
        "rows": rows, "peak_gflops": bench.peak_gflops, "batch": args.batch, "threads": rayon::current_num_threads(),
        "dtype": args.dtype,
    });
    Ok(Done::Result(text, value))
}
