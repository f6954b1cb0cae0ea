//! `trainer bench`: a file a command.

mod forward;
mod kernels;
mod maps;
mod step;

use ::kernels::Isa;
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use trainer::config::Dtype;
use trainer::nn::Backend;

use super::{Done, Global};

/// `trainer bench`.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Median milliseconds of a training step, of a distillation step and of the teacher alone.
    #[command(after_help = "Example:\n  trainer bench step --student wrn-16-2 --teacher wrn-40-2 --batch 128")]
    Step(step::Arguments),
    /// Median milliseconds of a forward pass, of models for large images or of any other.
    #[command(after_help = "Example:\n  trainer bench forward --arch vgg16 --arch resnet18 --batch 8 --side 224")]
    Forward(forward::Arguments),
    /// Milliseconds a map of each method, and what matching it costs a training step.
    #[command(after_help = "Example:\n  trainer bench maps --arch wrn-16-2")]
    Maps(maps::Arguments),
    /// Each CPU kernel against candle's own op: checked against the same op in f64, then timed.
    #[command(after_help = "Example:\n  trainer bench kernels --batch 32")]
    Kernels(kernels::Arguments),
}

/// How often.
#[derive(Args)]
struct Timed {
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    repeats: u32,
}

/// `trainer bench`.
pub(super) fn run(command: &BenchCommand, global: &Global) -> Result<Done> {
    match command {
        BenchCommand::Step(args) => step::run(args, global),
        BenchCommand::Forward(args) => forward::run(args, global),
        BenchCommand::Maps(args) => maps::run(args, global),
        BenchCommand::Kernels(args) => {
            ensure!(global.device == "cpu", "bench kernels times the CPU's kernels: leave --device out");
            kernels::run(args)
        }
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
