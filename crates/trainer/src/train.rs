//! The training loop.

mod agreement;
mod epoch;
mod folder;
mod report;
mod setup;
mod step;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Device;

use crate::claim::Claim;
use crate::config::Config;
use crate::data::Portions;
use crate::data::loader::Epoch;
use crate::error::Diverged;
use crate::nn::Network;
use crate::optim::Sgd;
use crate::record::Recorder;
pub use crate::state::Inputs;
use crate::state::State;
use crate::teacher::Teacher;
pub use agreement::{Agreement, Alike};
pub use folder::Divergence;
pub use report::{Report, bits, machine};
pub(crate) use setup::{architecture, plan};
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
///
/// # Errors
/// [`Claimed`](crate::error::Claimed) if another process works in the folder, [`Diverged`] if the numbers are none any more;
/// everything else is a mistake in the settings, the data or the machine.
pub fn train(config: &Config, options: &Options) -> Result<Outcome> {
    let dir = &options.run;
    let mut claim = Claim::take(dir)?;
    folder::check_config(config, dir, options.resume)?;
    let portions = Portions::load(&config.data)?;
    let inputs = setup::inputs(config, &portions)?;
    if let Some(report) = folder::outcome(config, &inputs, dir)? {
        return Ok(Outcome::Done(Box::new(report)));
    }
    let done = learn(config, options, portions, &inputs, &mut claim);
    if let Err(error) = &done
        && let Some(diverged) = error.downcast_ref::<Diverged>()
    {
        folder::diverged(diverged, &inputs, dir)?;
    }
    done
}

/// Hashes of all that a run of this configuration would read.
pub fn inputs(config: &Config) -> Result<Inputs> {
    setup::inputs(config, &Portions::load(&config.data)?)
}

/// The report in `dir`, if it holds this very run and that is finished.
///
/// # Errors
/// [`Diverged`] if it ended so; others if the folder holds something else.
pub fn finished(config: &Config, inputs: &Inputs, dir: &Path) -> Result<Option<Report>> {
    folder::check_config(config, dir, true)?;
    folder::outcome(config, inputs, dir)
}

fn learn(
    config: &Config,
    options: &Options,
    portions: Portions,
    inputs: &Inputs,
    claim: &mut Claim,
) -> Result<Outcome> {
    let dir = &options.run;
    let Portions { train, curve, test, notes } = portions;
    let held_out = test.is_some();
    let images = Arc::new(train);
    let plan = plan(config, &images)?;
    let mut trainer = setup::trainer(config, options, &images, &plan, inputs.clone())?;
    let epochs = config.train.epochs;
    let total = trainer.steps * epochs;
    claim.keep();
    folder::create(config, dir)?;
    let mut recorder = Recorder::new(dir, trainer.state.step, total, options.quiet)?;
    let teacher = trainer.teacher.as_ref().map(|t| t.note.clone());
    notes.into_iter().chain(teacher).chain(setup::notes(config)).for_each(|note| recorder.say(&note));
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
