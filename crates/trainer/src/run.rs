//! One run on disk: from a configuration to a report, through epochs that can be interrupted at any step.

pub mod claim;
mod epoch;
mod events;
mod folder;
pub mod page;
pub mod prepare;
mod recorder;
mod report;
mod setup;
pub mod state;
pub mod teacher;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Device;

use crate::config::Config;
use crate::data::Splits;
use crate::data::loader::Epoch;
use crate::distill::Learner;
use crate::distill::teacher::Frozen;
use crate::error::Diverged;
use crate::nn::Network;
use claim::Claim;
pub use folder::Divergence;
use recorder::Recorder;
pub use report::{JudgedBy, Report, bits, machine, multiplies_bf16};
pub(crate) use setup::{architecture, loader};
pub use state::Inputs;
use state::State;

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
///
/// # Errors
/// [`Claimed`](crate::error::Claimed) if another process works in the folder, [`Diverged`] if the loss or its gradient
/// is not finite; everything else is a mistake in the settings, the data or the machine.
pub fn train(config: &Config, options: &Options) -> Result<Outcome> {
    let dir = &options.run;
    let mut claim = Claim::take(dir)?;
    folder::check_config(config, dir, options.resume)?;
    let splits = Splits::load(&config.data)?;
    let inputs = setup::inputs(config, &splits)?;
    if let Some(report) = folder::outcome(config, &inputs, dir)? {
        return Ok(Outcome::Done(Box::new(report)));
    }
    let done = work(config, options, splits, &inputs, &mut claim);
    if let Err(error) = &done
        && let Some(diverged) = error.downcast_ref::<Diverged>()
    {
        folder::diverged(diverged, &inputs, dir)?;
    }
    done
}

/// Hashes of all that a run of this configuration would read.
pub fn inputs(config: &Config) -> Result<Inputs> {
    setup::inputs(config, &Splits::load(&config.data)?)
}

/// The report in `dir`, if it holds this very run and that is finished.
///
/// # Errors
/// [`Diverged`] if it ended so; others if the folder holds something else.
pub fn finished(config: &Config, inputs: &Inputs, dir: &Path) -> Result<Option<Report>> {
    folder::check_config(config, dir, true)?;
    folder::outcome(config, inputs, dir)
}

fn work(config: &Config, options: &Options, splits: Splits, inputs: &Inputs, claim: &mut Claim) -> Result<Outcome> {
    let dir = &options.run;
    let Splits { train, curve, test, notes } = splits;
    let held_out = test.is_some();
    let images = Arc::new(train);
    let loader = loader(config, &images)?;
    let mut run = setup::run(config, options, &images, &loader, inputs.clone())?;
    let epochs = config.train.epochs;
    let steps = run.learner.schedule.steps;
    let total = steps * epochs;
    claim.keep();
    folder::create(config, dir)?;
    let mut recorder = Recorder::new(dir, run.learner.step, total, options.quiet)?;
    notes
        .into_iter()
        .chain(run.note.clone())
        .chain(setup::notes(config, &options.device))
        .for_each(|note| recorder.say(&note));
    let started = Instant::now();
    let before = run.state.seconds;

    while run.learner.step < total {
        let epoch = run.learner.step / steps;
        for batch in Epoch::new(&images, &loader, epoch, run.learner.step % steps) {
            let measured = run.learner.step(&batch?)?;
            run.state.count(&measured);
            run.state.seconds = before + started.elapsed().as_secs_f64();
            recorder.step(&measured, epochs)?;
            let done = measured.step;
            let whole = done.is_multiple_of(steps);
            if whole {
                run.end_epoch(epoch, &curve, held_out, dir, &mut recorder)?;
                run.state.seconds = before + started.elapsed().as_secs_f64();
            }
            let (limit, save) = (config.train.max_minutes * 60.0, config.train.save_every);
            let late = limit > 0.0 && started.elapsed().as_secs_f64() > limit;
            let stop = late || options.interrupted.load(Ordering::Relaxed);
            if whole || stop || (save > 0 && done.is_multiple_of(save)) {
                recorder.flush()?;
                run.save_state(dir)?;
            }
            if stop && done < total {
                recorder.finish();
                return Ok(Outcome::Stopped(if late { "train.max_minutes is over" } else { "interrupted" }));
            }
        }
        ensure!(run.learner.step.is_multiple_of(steps), "the loader has stopped in the middle of an epoch");
    }
    let report = run.report(images.len(), test.as_ref().unwrap_or(&curve), held_out, dir)?;
    recorder.flush()?;
    recorder.finish();
    Ok(Outcome::Done(Box::new(report)))
}

/// A run between two steps.
struct Run<'c> {
    config: &'c Config,
    learner: Learner<Network, Frozen<Network>>,
    /// What is kept of it on disk, beside the learner.
    state: State,
    /// The teacher's test error in percent.
    teacher_error: Option<f64>,
    /// What its user should know of its teacher.
    note: Option<String>,
}
