//! Learning rates.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::optimizers::Optim;

/// How the learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Up during the warm-up, then linearly to 0.
    #[default]
    Linear,
    /// Up during the warm-up, then `lr`, times `drop_factor` from the start of each epoch in `drops` (counted from 1) on.
    MultiStep,
    /// Up during the warm-up, then half a cosine to 0.
    Cosine,
    /// From 1/25 of `lr` linearly up during the first 30 % of the steps, then half a cosine to 0 (Smith & Topin 2017); no warm-up.
    OneCycle,
    /// Up during the warm-up, then constant.
    Constant,
}

/// The learning rates of a run.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its settings.
    pub optim: Optim,
    /// Steps per epoch.
    pub steps: usize,
    /// Epochs.
    pub epochs: usize,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn lr(&self, step: usize) -> f64 {
        lr(&self.optim, step, self.steps, self.epochs)
    }

    /// Whether a drop of `multi_step` lies at the start of this step.
    pub fn is_drop(&self, step: usize) -> bool {
        let (optim, steps) = (&self.optim, self.steps);
        optim.schedule == LrSchedule::MultiStep
            && step.is_multiple_of(steps)
            && optim.drops.contains(&(step / steps + 1))
    }

    /// The time of a step, in epochs from 0.
    pub fn epoch(&self, step: usize) -> f64 {
        step as f64 / self.steps as f64
    }
}

fn lr(optim: &Optim, step: usize, steps: usize, epochs: usize) -> f64 {
    let total = (steps * epochs) as f64;
    let warmup = (optim.warmup * steps as f64).min(total);
    let at = step as f64;
    let rising = if at < warmup { (at + 1.0) / warmup } else { 1.0 };
    // How far behind the warm-up, 0 to 1.
    let progress = ((at - warmup) / (total - warmup).max(1.0)).clamp(0.0, 1.0);
    optim.lr
        * match optim.schedule {
            LrSchedule::Constant => rising,
            LrSchedule::Linear if at < warmup => rising,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine if at < warmup => rising,
            LrSchedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            LrSchedule::MultiStep => {
                let passed = optim.drops.iter().filter(|drop| step / steps + 1 >= **drop).count();
                rising * optim.drop_factor.powi(passed as i32)
            }
            LrSchedule::OneCycle => {
                let peak = 0.3 * total;
                if at < peak {
                    0.04 + 0.96 * (at + 1.0) / peak.max(1.0)
                } else {
                    0.5 * (1.0 + (PI * (at - peak) / (total - peak).max(1.0)).cos())
                }
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optim(schedule: LrSchedule) -> Optim {
        Optim { lr: 0.2, schedule, warmup: 2.0, drops: vec![3, 5], drop_factor: 0.2, ..Optim::default() }
    }

    #[test]
    fn linear_rises_to_its_peak_and_ends_at_zero() {
        let o = optim(LrSchedule::Linear);
        let at = |step| lr(&o, step, 10, 6);
        assert!((at(0) - 0.01).abs() < 1e-12);
        assert!((at(19) - 0.2).abs() < 1e-12);
        assert!((at(20) - 0.2).abs() < 1e-12);
        assert!((at(40) - 0.1).abs() < 1e-12);
        assert!((at(59) - 0.005).abs() < 1e-12);
    }

    #[test]
    fn multi_step_drops_at_the_start_of_epochs_counted_from_one() {
        let o = Optim { warmup: 0.0, ..optim(LrSchedule::MultiStep) };
        let at = |step| lr(&o, step, 10, 6);
        assert_eq!([at(19), at(20), at(39), at(40)], [0.2, 0.2 * 0.2, 0.2 * 0.2, 0.2 * 0.2f64.powi(2)]);
        let schedule = Schedule { optim: o.clone(), steps: 10, epochs: 6 };
        assert_eq!([20, 40, 21, 10].map(|step| schedule.is_drop(step)), [true, true, false, false]);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let o = optim(LrSchedule::Cosine);
        assert!((lr(&o, 40, 10, 6) - 0.1).abs() < 1e-12);
        let o = optim(LrSchedule::OneCycle);
        assert!((lr(&o, 17, 10, 6) - 0.2).abs() < 1e-12 && lr(&o, 59, 10, 6) < 0.001);
    }
}
