//! The training loop.

mod epoch;
mod folder;
mod report;
mod setup;
mod step;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Device;

use crate::config::Config;
use crate::data::Portions;
use crate::data::loader::Epoch;
use crate::nn::Network;
use crate::optim::Sgd;
use crate::record::Recorder;
use crate::state::State;
use crate::teacher::Teacher;
pub use report::{Report, machine};
pub use step::Measurements;

/// The commit this program was built from.
pub const COMMIT: &str = env!("COMMIT");

/// How a call to [`train`] ended.
pub enum Outcome {
    /// With a result.
    Done(Box<Report>),
    /// Early, with its state saved; why.
    Stopped(&'static str),
}

/// What a run is told beside its configuration; none of it changes the result.
pub struct Options<'a> {
    /// The run's folder.
    pub run: PathBuf,
    /// Continue what is there.
    pub resume: bool,
    /// No progress.
    pub quiet: bool,
    /// Where to compute.
    pub device: Device,
    /// Set from outside to stop after the current step.
    pub interrupted: &'a AtomicBool,
}

/// Trains as configured.
pub fn train(config: &Config, options: &Options) -> Result<Outcome> {
    let dir = &options.run;
    if let Some(report) = folder::check(config, options)? {
        return Ok(Outcome::Done(Box::new(report)));
    }
    let Portions { train, curve, test } = Portions::load(&config.data)?;
    let held_out = test.is_some();
    let images = Arc::new(train);
    let plan = setup::plan(config, &images)?;
    let mut trainer = setup::trainer(config, options, &images, &plan)?;
    let epochs = config.train.epochs;
    let total = trainer.steps * epochs;
    folder::create(config, dir)?;
    let mut recorder = Recorder::new(dir, trainer.state.step, total, options.quiet)?;
    let teacher = trainer.teacher.as_ref().map(|t| t.note.clone());
    teacher.into_iter().chain(setup::notes(config)).for_each(|note| recorder.say(&note));
    let started = Instant::now();
    let before = trainer.state.seconds;

    while trainer.state.step < total {
        let epoch = trainer.state.step / trainer.steps;
        for batch in Epoch::new(&images, &plan, epoch, trainer.state.step % trainer.steps) {
            let measured = trainer.step(&batch)?;
            trainer.state.seconds = before + started.elapsed().as_secs_f64();
            recorder.step(&measured, epochs)?;
            let done = trainer.state.step;
            let whole = done.is_multiple_of(trainer.steps);
            if whole {
                trainer.end_epoch(epoch, &curve, held_out, dir, &mut recorder)?;
                trainer.state.seconds = before + started.elapsed().as_secs_f64();
            }
            let (limit, save) = (config.train.max_minutes * 60.0, config.train.save_every);
            let late = limit > 0.0 && started.elapsed().as_secs_f64() > limit;
            let stop = late || options.interrupted.load(Ordering::Relaxed);
            if whole || stop || (save > 0 && done.is_multiple_of(save)) {
                recorder.flush()?;
                trainer.save_state(dir)?;
            }
            if stop && done < total {
                recorder.finish();
                return Ok(Outcome::Stopped(if late { "train.max_minutes is over" } else { "interrupted" }));
            }
        }
        ensure!(trainer.state.step.is_multiple_of(trainer.steps), "the loader has stopped in the middle of an epoch");
    }
    let report = trainer.report(images.len(), test.as_ref().unwrap_or(&curve), held_out, dir)?;
    recorder.flush()?;
    recorder.finish();
    Ok(Outcome::Done(Box::new(report)))
}

/// A run between two steps.
struct Trainer<'c> {
    config: &'c Config,
    student: Network,
    teacher: Option<Teacher>,
    optimiser: Sgd,
    state: State,
    /// Steps an epoch.
    steps: usize,
}
