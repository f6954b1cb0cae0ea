//! Learning rates.

use std::f64::consts::PI;

use crate::config::{LrSchedule, Optim};

/// The learning rate of a step (from 0) in a run of `epochs` epochs of `steps` steps.
pub fn lr(optim: &Optim, step: usize, steps: usize, epochs: usize) -> f64 {
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

/// Whether a drop of `multi_step` lies at the start of this step.
pub fn is_drop(optim: &Optim, step: usize, steps: usize) -> bool {
    optim.schedule == LrSchedule::MultiStep && step.is_multiple_of(steps) && optim.drops.contains(&(step / steps + 1))
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
        assert!(is_drop(&o, 20, 10) && is_drop(&o, 40, 10) && !is_drop(&o, 21, 10) && !is_drop(&o, 10, 10));
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let o = optim(LrSchedule::Cosine);
        assert!((lr(&o, 40, 10, 6) - 0.1).abs() < 1e-12);
        let o = optim(LrSchedule::OneCycle);
        assert!((lr(&o, 17, 10, 6) - 0.2).abs() < 1e-12 && lr(&o, 59, 10, 6) < 0.001);
    }
}
