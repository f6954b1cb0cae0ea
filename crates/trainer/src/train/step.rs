//! One step: forward, losses, backward, update.

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{D, DType, Tensor};
use kernels::sgd::SgdStep;
use kernels::stage::Mode;
use serde_json::{Map, Value, json};

use super::Trainer;
use crate::config::Weights;
use crate::data::loader::Batch;
use crate::error::Diverged;
use crate::loss::{self, Losses};
use crate::optim::norm;
use crate::{objective, schedule};

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
    /// Norm of each term's gradient, unweighted, and of the whole; on logged steps.
    pub gradient_norms: Option<Vec<(&'static str, f64)>>,
    /// Speed of this step.
    pub images_per_second: f64,
}

impl Measurements {
    /// The line of metrics.jsonl.
    pub fn values(&self) -> Map<String, Value> {
        let mut values = Map::from_iter([("epoch".to_string(), json!(self.epoch)), ("lr".into(), json!(self.lr))]);
        values.extend(self.terms.iter().map(|(name, value)| (name.to_string(), json!(value))));
        values.insert("total".into(), json!(self.total));
        let norms = self.gradient_norms.iter().flatten();
        values.extend(norms.map(|(name, value)| (format!("gradient_norm_{name}"), json!(value))));
        values.insert("images_per_second".into(), json!(self.images_per_second));
        values
    }
}

impl Trainer<'_> {
    /// Learns from one batch.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<Measurements> {
        let clock = Instant::now();
        let (config, step) = (self.config, self.state.step);
        let (t, o) = (&config.train, &config.optim);
        let weights = config.loss.weights_at(step as f64 / self.steps as f64);
        let asked = weights.kd > 0.0 || weights.explanation > 0.0 || weights.attention > 0.0;
        let teacher = self.teacher.as_mut().filter(|_| asked);
        let signal = teacher.map(|teacher| teacher.signal(config, batch)).transpose()?;
        let pass = self.student.pass(&self.student.images(batch)?, Mode::Train)?;
        let losses = objective::losses(config, &weights, &self.student, &pass, batch, signal.as_ref())?;
        let total = losses.total(&weights)?;
        let mut measured = Measurements {
            step: step + 1,
            epoch: step / self.steps + 1,
            lr: schedule::lr(o, step, self.steps, t.epochs),
            total: loss::value(&total)?,
            ..Measurements::default()
        };
        for (name, term, _) in losses.terms(&weights) {
            measured.terms.push((name, loss::value(term)?));
        }
        check("loss", measured.total, &measured)?;

        let mut gradient = self.student.gradient(&total)?;
        let size = norm(&gradient)?;
        check("gradient", size, &measured)?;
        if t.log_every > 0 && step.is_multiple_of(t.log_every) {
            let norms = self.gradient_norms(&losses, &weights, size)?;
            for (name, norm) in &norms {
                let [sum, count] = self.state.norms.entry(name.to_string()).or_default();
                (*sum, *count) = (*sum + norm, *count + 1.0);
            }
            measured.gradient_norms = Some(norms);
        }
        if t.clip > 0.0 && size > t.clip {
            gradient = gradient.iter().map(|g| g * (t.clip / size)).collect::<candle_core::Result<_>>()?;
        }
        if o.reset_momentum_at_drops && schedule::is_drop(o, step, self.steps) {
            self.optimiser.reset()?;
        }
        let update =
            SgdStep { lr: measured.lr, momentum: o.momentum, nesterov: o.nesterov, weight_decay: o.weight_decay };
        self.optimiser.step(&gradient, update)?;
        self.student.update_running(&pass.statistics);
        if t.ema > 0.0 {
            self.update_ema()?;
        }
        self.count(batch, &pass.logits, &measured)?;
        self.state.step += 1;
        measured.images_per_second = batch.len() as f64 / clock.elapsed().as_secs_f64();
        Ok(measured)
    }

    /// Norms of the terms' gradients and, last, of the whole one, which is `total`.
    fn gradient_norms(&self, losses: &Losses, weights: &Weights, total: f64) -> Result<Vec<(&'static str, f64)>> {
        let terms = losses.terms(weights);
        let mut norms = Vec::new();
        for (name, term, weight) in &terms {
            // A single term's gradient is the whole one: no second pass is needed.
            let size = if terms.len() == 1 { total / weight } else { norm(&self.student.gradient(term)?)? };
            norms.push((*name, size));
        }
        norms.push(("total", total));
        Ok(norms)
    }

    fn update_ema(&mut self) -> Result<()> {
        let now = self.student.weights()?;
        let rate = share_of_step(self.config.train.ema, self.state.step + 1) as f32;
        for (ema, now) in self.state.ema.iter_mut().zip([&now.parameters, &now.running]) {
            ema.iter_mut().zip(now).for_each(|(e, n)| *e += rate * (n - *e));
        }
        Ok(())
    }

    /// Adds a step to the epoch's sums.
    fn count(&mut self, batch: &Batch, logits: &Tensor, measured: &Measurements) -> Result<()> {
        let predicted = logits.detach().to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let wrong = predicted.iter().zip(&batch.labels).filter(|(p, l)| p != l).count();
        let n = batch.len() as f64;
        let sums = &mut self.state.sums;
        sums.images += n;
        sums.wrong += wrong as f64;
        sums.total += measured.total * n;
        for (name, value) in &measured.terms {
            *sums.terms.entry(name.to_string()).or_insert(0.0) += value * n;
        }
        Ok(())
    }
}

/// What step `t` (from 1) adds to a moving average that holds nothing of what was before the first: after t steps step i weighs
/// `decay^(t - i) (1 - decay) / (1 - decay^t)`, as Adam's averages are debiased.
fn share_of_step(decay: f64, t: usize) -> f64 {
    (1.0 - decay) / (1.0 - decay.powf(t as f64))
}

/// Stops a run whose numbers are none any more.
fn check(what: &str, value: f64, measured: &Measurements) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let terms: Vec<_> = measured.terms.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
    let what = format!(
        "the {what} is {value} at step {}: {}, learning rate {:.4}. Nothing of this step was kept; a smaller optim.lr \
         or train.clip = 1.0 usually helps",
        measured.step,
        terms.join(", "),
        measured.lr
    );
    bail!(Diverged { step: measured.step, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moving_average_is_of_its_steps_alone() {
        let (decay, values) = (0.9f64, [3.0, -1.0, 4.0, 1.5]);
        let mut average = 1e9; // What was before the first step.
        for (i, value) in values.iter().enumerate() {
            average += share_of_step(decay, i + 1) * (value - average);
            let weight = |j: usize| decay.powi((i - j) as i32) * (1.0 - decay) / (1.0 - decay.powi(i as i32 + 1));
            let expected: f64 = (0..=i).map(|j| weight(j) * values[j]).sum();
            assert!((average - expected).abs() < 1e-6, "after step {}: {average}, not {expected}", i + 1);
        }
    }
}
