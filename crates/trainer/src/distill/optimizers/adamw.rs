//! AdamW, PyTorch's formula (see [`kernels::adamw`]).

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};
use kernels::adamw::{AdamWStep, adamw};
use serde::{Deserialize, Serialize};

use super::slot::{Slot, gather, in_place, scatter};
use super::{Optim, Optimizer, Slots, slot};

/// `[optim.adamw]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Moments {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Moments { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Variables, and for each the means of its gradient and of that squared.
pub struct AdamW {
    variables: Vec<(Var, [Slot; 2])>,
    moments: Moments,
    weight_decay: f64,
    /// Steps since the means began.
    t: u32,
}

impl AdamW {
    /// At rest.
    pub fn new(optim: &Optim, variables: &[Var]) -> Result<AdamW> {
        ensure!(!variables.is_empty(), "there is nothing to train");
        let at_rest = |v: &Var| Ok((v.clone(), [Slot::zeros(v)?, Slot::zeros(v)?]));
        let variables = variables.iter().map(at_rest).collect::<Result<_>>()?;
        Ok(AdamW { variables, moments: optim.adamw, weight_decay: optim.weight_decay, t: 0 })
    }
}

/// The slots' names: of the two means, and of the number of steps.
const MEANS: [&str; 2] = ["mean", "mean_square"];
const STEPS: &str = "steps";

impl Optimizer for AdamW {
    fn step(&mut self, gradient: &[Tensor], lr: f64) -> Result<()> {
        let variables = &mut self.variables;
        ensure!(gradient.len() == variables.len(), "{} gradients for {} variables", gradient.len(), variables.len());
        self.t += 1;
        let Moments { beta1, beta2, eps } = self.moments;
        let step = AdamWStep { lr, beta1, beta2, eps, weight_decay: self.weight_decay, t: self.t };
        for ((var, means), g) in variables.iter_mut().zip(gradient) {
            match means {
                [Slot::Fused(m), Slot::Fused(v)] => in_place(var, g, |g, p| adamw(step, g, m, v, p))?,
                [Slot::Ops(m), Slot::Ops(v)] => {
                    let [c1, c2] = step.corrections();
                    *m = ((&*m * beta1)? + (g * (1.0 - beta1))?)?.detach();
                    *v = ((&*v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?.detach();
                    let kept = (var.as_tensor() * (1.0 - lr * step.weight_decay))?;
                    let scale = ((v.sqrt()? / c2.sqrt())? + eps)?;
                    var.set(&(kept - ((&*m / scale)? * (lr / c1))?)?.detach())?;
                }
                _ => unreachable!("both slots of a variable are of one kind"),
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.t = 0;
        self.variables.iter_mut().flat_map(|(_, means)| means).try_for_each(Slot::clear)
    }

    fn slots(&self) -> Result<Slots> {
        let of = |at: usize| gather(self.variables.iter().map(|(_, means)| &means[at]));
        // Exact up to 2^24 steps, and after these the corrections are 1.
        let steps = (STEPS.to_string(), vec![self.t as f32]);
        Ok(Slots::from([(MEANS[0].into(), of(0)?), (MEANS[1].into(), of(1)?), steps]))
    }

    fn restore(&mut self, slots: &Slots) -> Result<()> {
        self.t = *slot(slots, STEPS)?
            .first()
            .context("the optimizer's state does not say how many steps it has done")? as u32;
        MEANS.iter().enumerate().try_for_each(|(at, name)| {
            scatter(self.variables.iter_mut().map(|(_, means)| &mut means[at]), slot(slots, name)?)
        })
    }
}
