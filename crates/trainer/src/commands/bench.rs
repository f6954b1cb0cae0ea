use anyhow::{Result, ensure};
use serde_json::json;

use crate::bench;
use crate::cli::{BenchKernels, BenchMaps, BenchStep, Done, Global};
use crate::nn::Backend;
use cams::methods::Methods;

/// `trainer bench step`.
pub fn step(args: &BenchStep, global: &Global) -> Result<Done> {
    if Methods::default().get(&args.interpreter).is_none() {
        return Err(crate::error::unknown("interpreter", &args.interpreter, Methods::NAMES));
    }
    let (dtype, precision) = args.dtype.parts();
    ensure!(
        !args.dtype.is_for_cpu() || global.device()?.is_cpu(),
        "--dtype bf16 and f32_direct are for the CPU: on other devices networks run on candle's ops in f32"
    );
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
        "median of {} (batch {}, {} threads, {:?}):\n  student {} training step   {:8.1} ms\n  with teacher {}, KD, {} {:8.1} ms\n  of which matching            {:8.1} ms\n  teacher forward              {:8.1} ms\n  teacher training step        {:8.1} ms\n  its signal from the cache    {:8.2} ms\n",
        args.repeats,
        args.batch,
        rayon::current_num_threads(),
        ::kernels::Isa::best(),
        args.student,
        t.train_ms,
        args.teacher,
        args.interpreter,
        t.kd_ms,
        t.explain_ms,
        t.teacher_ms,
        t.teacher_train_ms,
        t.cached_ms,
    );
    let value = json!({
        "train_ms": t.train_ms, "kd_ms": t.kd_ms, "teacher_ms": t.teacher_ms, "teacher_train_ms": t.teacher_train_ms,
        "explain_ms": t.explain_ms, "cached_ms": t.cached_ms, "peak_rss_mb": t.peak_rss_mb, "threads": rayon::current_num_threads(),
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
        ::kernels::Isa::best(),
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

/// `trainer bench maps`.
pub fn maps(args: &BenchMaps, global: &Global) -> Result<Done> {
    let backend = Backend::f32(&global.device()?);
    let bench = bench::maps::run(&args.arch, args.batch as usize, args.few as usize, args.repeats, &backend)?;
    let mut text = format!(
        "{}: a training step of {} images {:.1} ms, a forward pass {:.3} ms each\n{:23}{:>12}{:>7}{:>11}{:>9}{:>10}{:>7}\n",
        args.arch,
        args.batch,
        bench.train_ms,
        bench.forward_ms,
        "",
        "estimator",
        "images",
        "ms a map",
        "passes",
        "match ms",
        "step",
    );
    let mut rows = Vec::new();
    for r in &bench.rows {
        text += &format!("{:23}{:>12}{:>7}{:>11.4}{:>9}", r.method, r.estimator, r.images, r.ms_per_map, r.evaluations);
        let share = r.matching_ms.map(|ms| ms / bench.train_ms);
        text += &match (r.matching_ms, share) {
            (Some(ms), Some(share)) => format!("{ms:>10.2}{:>6.1}%\n", 100.0 * share),
            _ => "\n".to_string(),
        };
        rows.push(json!({
            "method": r.method, "estimator": r.estimator, "images": r.images, "ms_per_map": r.ms_per_map,
            "evaluations": r.evaluations, "matching_ms": r.matching_ms, "share_of_step": share,
            "relative_error": r.error,
        }));
    }
    text += "passes: of the network or its head, an image. match: teacher's and student's\n\
             maps of the batch, their distance, and backward to the activations;\n\
             step: its share of the training step.\n";
    let value = json!({
        "rows": rows, "arch": args.arch, "batch": args.batch, "train_ms": bench.train_ms, "forward_ms": bench.forward_ms,
        "threads": rayon::current_num_threads(),
    });
    Ok(Done::Result(text, value))
}
