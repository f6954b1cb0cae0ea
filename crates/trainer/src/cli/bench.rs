use anyhow::Result;
use cams::methods::Methods;
use candle_core::Device;
use clap::{Args, Subcommand};
use kernels::Isa;
use serde_json::json;
use trainer::bench;
use trainer::config::Dtype;
use trainer::error::unknown;
use trainer::nn::Backend;
use trainer::report::table::{Entry, Table, column};

use super::{Done, Global};

/// `trainer bench`.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Median milliseconds of a training step, of a distillation step and of the teacher alone.
    #[command(after_help = "Example:\n  trainer bench step --student wrn-16-2 --teacher wrn-40-2 --batch 128")]
    Step(BenchStep),
    /// Median milliseconds of a forward pass, of models for large images or of any other.
    #[command(after_help = "Example:\n  trainer bench forward --arch vgg16 --arch resnet18 --batch 8 --side 224")]
    Forward(BenchForward),
    /// Milliseconds a map of each method, and what matching it costs a training step.
    #[command(after_help = "Example:\n  trainer bench maps --arch wrn-16-2")]
    Maps(BenchMaps),
    /// Each CPU kernel against candle's own op: checked against the same op in f64, then timed.
    #[command(after_help = "Example:\n  trainer bench kernels --batch 32")]
    Kernels(BenchKernels),
}

/// Arguments of `trainer bench forward`.
#[derive(Args)]
pub(super) struct BenchForward {
    /// Architectures.
    #[arg(long, value_name = "NAME", default_values = ["vgg16", "resnet18", "resnet50", "squeezenet1_1"])]
    pub(super) arch: Vec<String>,
    /// Images per pass.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) batch: u32,
    /// Their height and width in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(8..=1024))]
    pub(super) side: u32,
    /// What to compute in.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    pub(super) dtype: Dtype,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub(super) repeats: u32,
}

/// Arguments of `trainer bench maps`.
#[derive(Args)]
pub(super) struct BenchMaps {
    /// Architecture.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    pub(super) arch: String,
    /// Images of methods that need no passes, and of a training step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) batch: u32,
    /// Images of methods that need passes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) few: u32,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub(super) repeats: u32,
}

/// Arguments of `trainer bench kernels`.
#[derive(Args)]
pub(super) struct BenchKernels {
    /// Images per call.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) batch: u32,
    /// What to compute in; candle's ops compute in f32.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    pub(super) dtype: Dtype,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub(super) repeats: u32,
}

/// Arguments of `trainer bench step`.
#[derive(Args)]
pub(super) struct BenchStep {
    /// Architecture of the student.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    pub(super) student: String,
    /// Architecture of the teacher.
    #[arg(long, default_value = "wrn-40-2", value_name = "NAME")]
    pub(super) teacher: String,
    /// Images per step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) batch: u32,
    /// Method of the maps.
    #[arg(long, default_value = "shap_cam", value_name = "M")]
    pub(super) interpreter: String,
    /// What to compute in.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    pub(super) dtype: Dtype,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub(super) repeats: u32,
}

/// `trainer bench`.
pub(super) fn run(command: &BenchCommand, global: &Global) -> Result<Done> {
    match command {
        BenchCommand::Step(args) => step(args, global),
        BenchCommand::Forward(args) => forward(args, global),
        BenchCommand::Maps(args) => maps(args, global),
        BenchCommand::Kernels(args) => kernels(args),
    }
}

/// What is counted, whatever is done.
const GFLOPS: &str = "GFLOP/s count the definition's operations; Winograd's algorithm does a quarter of them";

/// What computes: the processor's instructions, or a card.
fn processor(global: &Global) -> String {
    if global.device == "cpu" { format!("{:?}", Isa::best()) } else { global.device.clone() }
}

/// The device, with these numbers.
fn backend(dtype: Dtype, global: &Global) -> Result<Backend> {
    let device = global.device()?;
    dtype.check(&device)?;
    let (dtype, precision) = dtype.parts();
    Ok(Backend { precision, ..Backend::new(dtype, &device) })
}

fn forward(args: &BenchForward, global: &Global) -> Result<Done> {
    let backend = backend(args.dtype, global)?;
    let (batch, side, threads) = (args.batch as usize, args.side as usize, rayon::current_num_threads());
    let mut table = Table::new(vec![column("arch", "arch", 0), column("ms", "ms", 1), column("gflops", "GFLOP/s", 0)]);
    // A name that nobody knows is told before the first is timed.
    let built = args.arch.iter().map(|arch| bench::forward::architecture(arch, side));
    for architecture in built.collect::<Result<Vec<_>>>()? {
        let name = architecture.name.clone();
        let t = bench::forward::run(architecture, batch, args.repeats, &backend)?;
        table.rows.push(vec![name.into(), t.ms.into(), t.gflops.into()]);
    }
    let text = format!(
        "median of {}, {batch} images of {side}x{side}, {threads} threads, {:?}, {}\n{}{GFLOPS}.\n",
        args.repeats,
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

fn step(args: &BenchStep, global: &Global) -> Result<Done> {
    if Methods::default().get(&args.interpreter).is_none() {
        return Err(unknown("interpreter", &args.interpreter, Methods::NAMES));
    }
    let backend = backend(args.dtype, global)?;
    let (batch, threads) = (args.batch as usize, rayon::current_num_threads());
    let t = bench::step::step(&args.student, &args.teacher, batch, &args.interpreter, args.repeats, &backend)?;
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
        args.repeats,
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

fn kernels(args: &BenchKernels) -> Result<Done> {
    args.dtype.check(&Device::Cpu)?;
    let bench = bench::kernels::run(args.batch as usize, args.repeats, args.dtype)?;
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

fn maps(args: &BenchMaps, global: &Global) -> Result<Done> {
    let backend = Backend::f32(&global.device()?);
    let bench = bench::maps::run(&args.arch, args.batch as usize, args.few as usize, args.repeats, &backend)?;
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
