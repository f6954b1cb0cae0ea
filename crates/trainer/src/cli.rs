//! The command line: what a user types, one file per command. Every command answers `--help` with an example.
// The comments below are the help that a user reads, not documentation pages.
#![allow(rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]

mod ablate;
mod bench;
mod convert;
mod data;
mod eval;
mod evaluate;
mod explain;
mod export;
mod interrupt;
mod list;
mod model;
mod report;
mod table;
mod train;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cams::methods::Methods;
use candle_core::Device;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use trainer::error::sentence;
use trainer::terminal::say;

/// Trains image classifiers, distils them with explanation maps, and explains them.
#[derive(Parser)]
#[command(
    name = "trainer",
    version,
    max_term_width = 100,
    after_help = "Example:\n  trainer train configs/quickstart.toml\n  trainer report runs/quickstart-s0"
)]
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
    // Settings are TOML, whose whole numbers have a sign.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Make the last line of stdout one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a teacher (no [teacher] table) or a student.
    #[command(after_help = "Example:\n  trainer train configs/quickstart.toml --set train.epochs=4 --run runs/try")]
    Train(train::TrainArgs),
    /// Runs a grid of runs (Table 4, a sweep): every cell and seed, whatever is missing of them.
    #[command(
        after_help = "Example:\n  trainer ablate configs/table4.toml --dry-run\n  trainer ablate configs/table4.toml --seeds 0..3 --jobs 2"
    )]
    Ablate(ablate::AblateArgs),
    /// The table of a grid from its run folders: means, intervals, what the differences are worth.
    #[command(
        after_help = "Example:\n  trainer table results/table4\n  trainer table results/table4 --format md --plot table.svg"
    )]
    Table(table::TableArgs),
    /// One HTML file of a run or a grid, with everything in it: figures, curves, maps, settings.
    #[command(
        after_help = "Example:\n  trainer report runs/quickstart-s0\n  trainer report results/table4 --out table4.html"
    )]
    Report(report::ReportArgs),
    /// Measures the error of a model.
    #[command(
        after_help = "Example:\n  trainer eval --checkpoint checkpoints/wrn-40-2-cifar10.safetensors --data cifar10-mini"
    )]
    Eval(eval::EvalArgs),
    /// Makes explanation maps, and pictures of them.
    #[command(
        after_help = "Example:\n  trainer explain --checkpoint checkpoints/wrn-40-2-cifar10.safetensors \\\n      --images 'cifar10-mini:test[0..16]' --method grad_cam,shap_cam --gallery maps"
    )]
    Explain(explain::ExplainArgs),
    /// Judges explanations.
    #[command(subcommand, after_help = "Example:\n  trainer evaluate faithfulness configs/faithfulness.toml")]
    Evaluate(evaluate::EvaluateCommand),
    /// Times the work of training, of explaining, and the CPU kernels.
    #[command(subcommand, after_help = "Example:\n  trainer bench step --student wrn-16-2 --teacher wrn-40-2")]
    Bench(bench::BenchCommand),
    /// Brings a data set to this machine, checks it, converts it.
    #[command(subcommand, after_help = "Example:\n  trainer data fetch cifar10")]
    Data(data::DataCommand),
    /// Turns a PyTorch checkpoint (.pth, .safetensors) into ours.
    #[command(
        after_help = "Example:\n  trainer convert wrn.pth wrn.safetensors --arch wrn-16-2\n  trainer convert own.pth own.safetensors --layers own.toml --rename rules.toml"
    )]
    Convert(convert::ConvertArgs),
    /// Writes a model as an ONNX file, for other programs to run.
    #[command(
        after_help = "Example:\n  trainer export --checkpoint runs/quickstart-s0/last.safetensors student.onnx --maps"
    )]
    Export(export::ExportArgs),
    /// Lists what there is, with every option and its default.
    #[command(after_help = "Example:\n  trainer list methods")]
    List {
        /// What to list; everything if not given.
        what: Option<list::What>,
    },
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
                kernels::device::card(n).with_context(|| format!("--device {text}: no such GPU here"))
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

    /// `--seed` as the seed of every method that draws; an empty table where it is not given.
    fn seeded_methods(&self) -> Result<toml::Table> {
        let Some(seed) = self.seed else { return Ok(toml::Table::new()) };
        let seed =
            i64::try_from(seed).with_context(|| format!("--seed {seed}: expected a number up to {}", i64::MAX))?;
        let methods = toml::Table::try_from(Methods::default())?;
        let drawn = methods.into_iter().filter(|(_, options)| options.get("seed").is_some());
        Ok(drawn.map(|(method, _)| (method, toml::Table::from_iter([("seed".into(), seed.into())]).into())).collect())
    }
}

/// How a command that did its work ended.
pub enum Done {
    /// Its result: text for people, an object for `--json`.
    Result(String, Value),
    /// Stopped early with its state saved, and how to go on.
    Interrupted(String),
    /// What a launcher is to know: an exit code, and words for people.
    Told(u8, String),
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
            let text = if json { format!("{text}{value}\n") } else { text };
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that has gone away (`| head`) is no error; a full disk is.
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    say(format!("Error: writing the result: {e}"));
                    ExitCode::from(1)
                }
                _ => ExitCode::SUCCESS,
            }
        }
        Ok(Done::Told(code, what)) => {
            say(format!("Error: {what}"));
            ExitCode::from(code)
        }
        Ok(Done::Interrupted(how)) => {
            say(how);
            ExitCode::from(130)
        }
        Err(e) => {
            say(format!("Error: {}", sentence(&e)));
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<Done> {
    if let Some(threads) = cli.global.threads {
        set_threads(threads)?;
    }
    // The thread that walks the graph computes too: a convolution starts on it at once, and only the others have to be
    // woken. With one thread there is no other in the pool, so threads of our own must not use rayon.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().context("starting the threads")?;
    let global = &cli.global;
    if matches!(
        cli.command,
        Command::Table(_)
            | Command::Report(_)
            | Command::Data(_)
            | Command::Convert(_)
            | Command::Export(_)
            | Command::List { .. }
    ) {
        global.device()?; // They compute on the CPU or not at all; a device that cannot be had is told all the same.
    }
    match cli.command {
        Command::Train(args) => train::run(&args, global),
        Command::Ablate(args) => ablate::run(&args, global),
        Command::Table(args) => table::run(&args),
        Command::Report(args) => report::run(&args, global),
        Command::Eval(args) => eval::run(&args, global),
        Command::Explain(args) => explain::run(&args, global),
        Command::Evaluate(command) => evaluate::run(&command, global),
        Command::Bench(command) => bench::run(&command, global),
        Command::Data(command) => data::run(&command),
        Command::Convert(args) => convert::run(&args),
        Command::Export(args) => export::run(&args),
        Command::List { what } => list::run(what),
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
