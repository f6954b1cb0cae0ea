use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use serde_json::json;

use crate::cli::{Done, Global, TrainArgs};
use crate::config::{Config, default_run};
use crate::train::{Options, Outcome, train};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// `trainer train`.
pub fn run(args: &TrainArgs, global: &Global) -> Result<Done> {
    let mut sets = args.set.clone();
    sets.extend(global.seed.map(|s| format!("train.seed={s}")));
    let config = Config::read(&args.configs, &sets)?;
    let run = args.run.clone().unwrap_or_else(|| default_run(&args.configs, config.train.seed));
    // A second Ctrl-C ends the program at once: the last saved state is whole.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    let options = Options {
        run: run.clone(),
        resume: args.resume,
        quiet: global.quiet,
        device: global.device()?,
        interrupted: &INTERRUPTED,
    };
    match train(&config, &options)? {
        Outcome::Stopped(why) => {
            let files: Vec<_> = args.configs.iter().map(|c| c.display().to_string()).collect();
            let mut sets: String = args.set.iter().map(|s| format!(" --set '{s}'")).collect();
            sets.extend(global.seed.map(|s| format!(" --seed {s}")));
            if global.device != "cpu" {
                sets += &format!(" --device {}", global.device);
            }
            Ok(Done::Interrupted(format!(
                "{why}; the state is saved. Go on with:\n  trainer train {}{sets} --run {} --resume",
                files.join(" "),
                run.display()
            )))
        }
        Outcome::Done(r) => {
            let text = format!(
                "test error {:.2} %  (profile {}, seed {}, {} epochs, {:.0} s)\nrun folder {}\n",
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
