//! SGD with momentum over a network's flat parameter vector; its state is saved and restored.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Storage, Tensor, Var};
use kernels::sgd::{SgdStep, sgd};

/// The optimiser's state.
pub struct Sgd {
    momentum: Momentum,
}

enum Momentum {
    /// On the CPU in f32 the master copy lives here: one fused pass a step.
    Fused { parameters: Vec<f32>, buffer: Vec<f32> },
    /// Elsewhere, by candle's ops.
    Ops { buffer: Tensor },
}

impl Sgd {
    /// An optimiser of `var` with this momentum buffer (zeros at the start).
    pub fn new(var: &Var, buffer: Vec<f32>) -> Result<Sgd> {
        ensure!(
            buffer.len() == var.elem_count(),
            "the momentum has {} elements, the model {}",
            buffer.len(),
            var.elem_count()
        );
        let fused = var.device().is_cpu() && var.dtype() == DType::F32;
        let momentum = if fused {
            Momentum::Fused { parameters: var.to_vec1()?, buffer }
        } else {
            Momentum::Ops { buffer: Tensor::new(buffer, var.device())?.to_dtype(var.dtype())? }
        };
        Ok(Sgd { momentum })
    }

    /// One step, in place.
    pub fn step(&mut self, var: &Var, gradient: &Tensor, step: SgdStep) -> Result<()> {
        match &mut self.momentum {
            Momentum::Fused { parameters, buffer } => {
                let gradient = gradient.contiguous()?;
                {
                    let (storage, layout) = gradient.storage_and_layout();
                    let Storage::Cpu(cpu) = &*storage else { anyhow::bail!("the gradient left the CPU") };
                    let start = layout.start_offset();
                    let values = &cpu.as_slice::<f32>()?[start..start + parameters.len()];
                    sgd(step, values, buffer, parameters);
                }
                var.set(&Tensor::from_slice(parameters, parameters.len(), var.device())?)?;
            }
            Momentum::Ops { buffer } => {
                let g = (gradient + (var.as_tensor() * step.weight_decay)?)?.detach();
                *buffer = ((&*buffer * step.momentum)? + &g)?.detach();
                let direction = if step.nesterov { (g + (&*buffer * step.momentum)?)? } else { buffer.clone() };
                var.set(&(var.as_tensor() - (direction * step.lr)?)?.detach())?;
            }
        }
        Ok(())
    }

    /// Forgets the momentum.
    pub fn reset(&mut self) -> Result<()> {
        match &mut self.momentum {
            Momentum::Fused { buffer, .. } => buffer.fill(0.0),
            Momentum::Ops { buffer } => *buffer = buffer.zeros_like()?,
        }
        Ok(())
    }

    /// The momentum buffer.
    pub fn buffer(&self) -> Result<Vec<f32>> {
        match &self.momentum {
            Momentum::Fused { buffer, .. } => Ok(buffer.clone()),
            Momentum::Ops { buffer } => buffer.to_dtype(DType::F32)?.to_vec1().context("reading the momentum"),
        }
    }
}

/// Euclidean norm of a tensor, in f64 and in order.
pub fn norm(t: &Tensor) -> Result<f64> {
    let values: Vec<f64> = t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    Ok(values.iter().map(|v| v * v).sum::<f64>().sqrt())
}
