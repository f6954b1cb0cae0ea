use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use trainer::config::{Config, default_run};
use trainer::error::{Claimed, Diverged, sentence};
use trainer::grid::ledger;
use trainer::grid::runner::{DIVERGED, ELSEWHERE};
use trainer::run::{Options, Outcome, train};

use super::{Done, Global, interrupt};

/// Arguments of `trainer train`.
#[derive(Args)]
pub(super) struct TrainArgs {
    /// TOML files; later ones win.
    #[arg(required = true, value_name = "CONFIG")]
    pub(super) configs: Vec<PathBuf>,
    /// A single setting, read as a TOML value, else as a string; wins over the files.
    #[arg(long, value_name = "A.B=V")]
    pub(super) set: Vec<String>,
    /// The run's folder (default: runs/<config>-s<seed>).
    #[arg(long, value_name = "DIR")]
    pub(super) run: Option<PathBuf>,
    /// Go on where the run in that folder was left; start afresh if there is none.
    #[arg(long)]
    pub(super) resume: bool,
    /// Run by a launcher: stop when standard input ends, and say by the exit code how it went.
    #[arg(long, hide = true)]
    pub(super) supervised: bool,
}

/// `trainer train`.
pub(super) fn run(args: &TrainArgs, global: &Global) -> Result<Done> {
    let mut sets = args.set.clone();
    sets.extend(global.seed.map(|s| format!("train.seed={s}")));
    let config = Config::read(&args.configs, &sets)?;
    let run = args.run.clone().unwrap_or_else(|| default_run(&args.configs, config.train.seed));
    // A report there would make one run of the whole grid.
    ensure!(!run.join(ledger::FILE).exists(), "{} is a grid's folder: choose another with --run", run.display());
    let interrupted = interrupt::flag()?;
    if args.supervised {
        interrupt::watch_lifeline(&interrupted);
    }
    let options = Options {
        run: run.clone(),
        resume: args.resume,
        quiet: global.quiet,
        device: global.device()?,
        interrupted: &interrupted,
    };
    let outcome = match train(&config, &options) {
        // A launcher must tell these from mistakes.
        Err(error) if args.supervised && error.is::<Claimed>() => return Ok(Done::Told(ELSEWHERE, sentence(&error))),
        Err(error) if args.supervised && error.is::<Diverged>() => return Ok(Done::Told(DIVERGED, sentence(&error))),
        outcome => outcome?,
    };
    match outcome {
        Outcome::Stopped(why) => {
            let word = |word: &str| shlex::try_quote(word).map_or_else(|_| word.to_string(), Into::into);
            let files: Vec<_> = args.configs.iter().map(|c| word(&c.display().to_string())).collect();
            let mut sets: String = args.set.iter().map(|s| format!(" --set {}", word(s))).collect();
            sets.extend(global.seed.map(|s| format!(" --seed {s}")));
            if global.device != "cpu" {
                sets += &format!(" --device {}", global.device);
            }
            Ok(Done::Interrupted(format!(
                "{why}; the state is saved. Go on with:\n  trainer train {}{sets} --run {} --resume",
                files.join(" "),
                word(&run.display().to_string())
            )))
        }
        Outcome::Done(r) => {
            let map = r.test_mean_average_precision;
            let map = map.map_or(String::new(), |map| format!(", mean average precision {map:.2} %"));
            let text = format!(
                "test error {:.2} %{map}  (profile {}, seed {}, {} epochs, {:.0} s)\nrun folder {}\n",
                r.test_error,
                r.profile,
                r.seed,
                r.epochs,
                r.seconds,
                run.display()
            );
            Ok(Done::Result(text, json!(r)))
        }
    }
}
