//! SGD with momentum, PyTorch's formula (see [`kernels::sgd`]).

use anyhow::{Result, ensure};
use candle_core::{Tensor, Var};
use kernels::sgd::{SgdStep, sgd};

use super::slot::{Slot, gather, in_place, scatter};
use super::{Optim, Optimizer, Slots, slot};

/// Variables, and a momentum buffer for each.
pub struct Sgd {
    variables: Vec<(Var, Slot)>,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
}

impl Sgd {
    /// At rest.
    pub fn new(optim: &Optim, variables: &[Var]) -> Result<Sgd> {
        ensure!(!variables.is_empty(), "there is nothing to train");
        let at_rest = variables.iter().map(|v| Ok((v.clone(), Slot::zeros(v)?))).collect::<Result<_>>()?;
        let Optim { momentum, nesterov, weight_decay, .. } = *optim;
        Ok(Sgd { variables: at_rest, momentum, nesterov, weight_decay })
    }
}

const MOMENTUM: &str = "momentum";

impl Optimizer for Sgd {
    fn step(&mut self, gradient: &[Tensor], lr: f64) -> Result<()> {
        let variables = &mut self.variables;
        ensure!(gradient.len() == variables.len(), "{} gradients for {} variables", gradient.len(), variables.len());
        let step = SgdStep { lr, momentum: self.momentum, nesterov: self.nesterov, weight_decay: self.weight_decay };
        for ((var, buffer), g) in variables.iter_mut().zip(gradient) {
            match buffer {
                Slot::Fused(buffer) => in_place(var, g, |g, p| sgd(step, g, buffer, p))?,
                Slot::Ops(buffer) if var.device().is_cuda() => {
                    kernels::device::ops::sgd(step, &g.contiguous()?, buffer, var.as_tensor())?;
                }
                Slot::Ops(buffer) => {
                    let g = (g + (var.as_tensor() * step.weight_decay)?)?.detach();
                    *buffer = ((&*buffer * step.momentum)? + &g)?.detach();
                    let direction = if step.nesterov { (g + (&*buffer * step.momentum)?)? } else { buffer.clone() };
                    var.set(&(var.as_tensor() - (direction * step.lr)?)?.detach())?;
                }
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.variables.iter_mut().try_for_each(|(_, buffer)| buffer.clear())
    }

    fn slots(&self) -> Result<Slots> {
        Ok(Slots::from([(MOMENTUM.into(), gather(self.variables.iter().map(|(_, b)| b))?)]))
    }

    fn restore(&mut self, slots: &Slots) -> Result<()> {
        scatter(self.variables.iter_mut().map(|(_, b)| b), slot(slots, MOMENTUM)?)
    }
}
