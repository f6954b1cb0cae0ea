//! One step: forward, losses, backward, update.

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};

use super::average::Average;
use super::objective::{Losses, Objective, Value};
use super::optimizers::{self, Optim, Optimizer, square, widest};
use super::schedule::Schedule;
use super::teacher::Teacher;
use super::terms::Inputs;
use crate::data::loader::Batch;
use crate::error::Diverged;
use crate::nn::{Mode, Model, gradient};

/// A student between two steps, and all that its next step depends on.
pub struct Learner<M, T = Box<dyn Teacher>> {
    /// The student.
    pub model: M,
    /// What it learns from, beside the labels.
    pub teacher: Option<T>,
    /// What it is to do.
    pub objective: Objective,
    /// Moves it.
    pub optimizer: Box<dyn Optimizer>,
    /// Learning rates.
    pub schedule: Schedule,
    /// The largest norm of a gradient; 0 for no limit.
    pub clip: f64,
    /// A moving average of the student, if one is kept.
    pub average: Option<Average>,
    /// Every so many steps the norm of each term's gradient is measured ([`Measurements::gradient_norms`]); 0: never.
    pub log_every: usize,
    /// Steps done.
    pub step: usize,
}

/// What one step has shown.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// Steps done, this one included.
    pub step: usize,
    /// Epoch, from 1.
    pub epoch: usize,
    /// Learning rate.
    pub lr: f64,
    /// The terms that took part, unweighted.
    pub terms: Vec<(&'static str, f64)>,
    /// Their weighted sum.
    pub total: f64,
    /// Norm of the whole gradient, before clipping.
    pub gradient_norm: f64,
    /// Norm of each term's gradient, unweighted, and of the whole; on logged steps.
    pub gradient_norms: Option<Vec<(&'static str, f64)>>,
    /// Images in the batch.
    pub images: usize,
    /// Images whose most probable class was not the label or, where they may show several, none of those.
    pub wrong: usize,
    /// Speed of this step.
    pub images_per_second: f64,
}

impl<M: Model, T: Teacher> Learner<M, T> {
    /// A student before its first step, in a run of `epochs` epochs of `steps` steps; without clipping, average or
    /// measured gradients.
    pub fn new(
        model: M,
        teacher: Option<T>,
        objective: Objective,
        optim: &Optim,
        [steps, epochs]: [usize; 2],
    ) -> Result<Learner<M, T>> {
        let optimizer = optimizers::build(optim, model.variables())?;
        let schedule = Schedule { optim: optim.clone(), steps, epochs };
        Ok(Learner { model, teacher, objective, optimizer, schedule, clip: 0.0, average: None, log_every: 0, step: 0 })
    }

    /// Learns from one batch.
    ///
    /// # Errors
    /// [`Diverged`] if the loss or its gradient is not finite: then nothing of this step is kept.
    pub fn step(&mut self, batch: &Batch) -> Result<Measurements> {
        let clock = Instant::now();
        let (step, epoch) = (self.step, self.schedule.epoch(self.step));
        let teacher = self.teacher.as_mut().filter(|_| self.objective.needs_teacher_at(epoch));
        let output = teacher.map(|teacher| teacher.output(batch)).transpose()?;
        let pass = self.model.forward(&self.model.images(&batch.pixels)?, Mode::Train)?;
        let labels = batch.labels_on(pass.logits.device())?;
        let (student, teacher) = (&self.model, output.as_ref());
        let shown = batch.shown_on(pass.logits.device())?;
        let inputs = Inputs { student, pass: &pass, labels: &labels, ids: &batch.ids, shown: shown.as_ref(), teacher };
        let losses = self.objective.losses(epoch, &inputs)?;
        let total = losses.total()?;
        let mut whole = gradient(&total, self.model.variables())?;
        // Everything that is read of a step crosses from its device at once.
        let mut scalars = vec![total, square(&whole)?, wrong(&pass.logits, &labels, shown.as_ref())?];
        scalars.extend(losses.0.iter().map(|term| term.value.clone()));
        let read = read(&scalars)?;
        let mut measured = Measurements {
            step: step + 1,
            epoch: step / self.schedule.steps + 1,
            lr: self.schedule.lr(step),
            terms: losses.0.iter().map(|term| term.name).zip(read[3..].iter().copied()).collect(),
            total: read[0],
            gradient_norm: read[1].sqrt(),
            wrong: read[2] as usize,
            images: batch.len(),
            ..Measurements::default()
        };
        check("loss", measured.total, &measured)?;
        check("gradient", measured.gradient_norm, &measured)?;
        if self.log_every > 0 && step.is_multiple_of(self.log_every) {
            measured.gradient_norms = Some(self.gradient_norms(&losses, measured.gradient_norm)?);
        }
        if self.clip > 0.0 && measured.gradient_norm > self.clip {
            let scale = self.clip / measured.gradient_norm;
            whole = whole.iter().map(|g| g * scale).collect::<candle_core::Result<_>>()?;
        }
        if self.schedule.optim.reset_momentum_at_drops && self.schedule.is_drop(step) {
            self.optimizer.reset()?;
        }
        self.optimizer.step(&whole, measured.lr)?;
        self.model.update_statistics(&pass)?;
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.update(&self.model, self.step)?;
        }
        measured.images_per_second = batch.len() as f64 / clock.elapsed().as_secs_f64();
        Ok(measured)
    }

    /// Norms of the terms' gradients and, last, of the whole one, which is `total`.
    fn gradient_norms(&self, losses: &Losses, total: f64) -> Result<Vec<(&'static str, f64)>> {
        let mut norms = Vec::new();
        for Value { name, value, weight } in &losses.0 {
            // A single term's gradient is the whole one: no second pass is needed.
            let single = losses.0.len() == 1;
            let size = if single {
                total / weight
            } else {
                read(&[square(&gradient(value, self.model.variables())?)?])?[0].sqrt()
            };
            norms.push((*name, size));
        }
        norms.push(("total", total));
        Ok(norms)
    }
}

/// Number of images whose most probable class is not the label or, where they may show several, none of those; a scalar.
fn wrong(logits: &Tensor, labels: &Tensor, shown: Option<&Tensor>) -> Result<Tensor> {
    let predicted = logits.detach().argmax(D::Minus1)?;
    let wrong = match shown {
        Some(shown) => shown.gather(&predicted.unsqueeze(1)?, 1)?.ne(1.0)?,
        None => predicted.ne(labels)?,
    };
    Ok(wrong.to_dtype(DType::F32)?.sum_all()?)
}

/// Scalars as numbers, read from their device at once. They may be of different types.
fn read(scalars: &[Tensor]) -> Result<Vec<f64>> {
    let dtype = scalars.first().map_or(DType::F64, |t| widest(t.device()));
    let all = scalars.iter().map(|t| t.detach().to_dtype(dtype)?.reshape(1));
    let all = Tensor::cat(&all.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_device(&Device::Cpu)?;
    Ok(all.to_dtype(DType::F64)?.to_vec1()?)
}

/// Stops a run whose loss or gradient is not finite.
fn check(what: &str, value: f64, measured: &Measurements) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    // What diverges may be long.
    let told = |v: f64| if v.abs() < 1e6 { format!("{v:.4}") } else { format!("{v:.2e}") };
    let terms: Vec<_> = measured.terms.iter().map(|(name, v)| format!("{name} {}", told(*v))).collect();
    let what = format!(
        "the {what} is {value} at step {}: {}, learning rate {}. Nothing of this step was kept; a smaller optim.lr \
         or train.clip = 1.0 usually helps",
        measured.step,
        terms.join(", "),
        told(measured.lr)
    );
    let terms = measured.terms.iter().map(|(name, value)| (name.to_string(), *value)).collect();
    bail!(Diverged { step: measured.step, terms, what })
}
