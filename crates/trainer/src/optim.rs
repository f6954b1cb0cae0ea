//! SGD with momentum over a network's variables; its state, one flat vector in their order, is saved and restored.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use kernels::sgd::{SgdStep, sgd};
use rayon::prelude::*;

/// The optimiser's state: a momentum buffer a variable.
pub struct Sgd(Vec<Momentum>);

enum Momentum {
    /// On the CPU in f32: one fused pass a step.
    Fused(Mutex<Vec<f32>>),
    /// Elsewhere, by candle's ops.
    Ops(Tensor),
}

impl Sgd {
    /// An optimiser of `variables` with this momentum (zeros at the start).
    pub fn new(variables: &[Var], momentum: &[f32]) -> Result<Sgd> {
        let size: usize = variables.iter().map(|v| v.elem_count()).sum();
        ensure!(momentum.len() == size, "the momentum has {} elements, the model {size}", momentum.len());
        ensure!(size > 0, "there is nothing to train");
        let mut rest = momentum;
        let buffers = variables.iter().map(|var| {
            let (own, after) = rest.split_at(var.elem_count());
            rest = after;
            Ok(if var.device().is_cpu() && var.dtype() == DType::F32 {
                Momentum::Fused(Mutex::new(own.to_vec()))
            } else {
                Momentum::Ops(Tensor::new(own, var.device())?.to_dtype(var.dtype())?)
            })
        });
        Ok(Sgd(buffers.collect::<Result<_>>()?))
    }

    /// One step, in place: `gradient` has a tensor for each variable.
    pub fn step(&mut self, variables: &[Var], gradient: &[Tensor], step: SgdStep) -> Result<()> {
        for ((momentum, var), g) in self.0.iter_mut().zip(variables).zip(gradient) {
            match momentum {
                Momentum::Fused(buffer) => var.inplace_op2(&g.contiguous()?, &Update { step, buffer })?,
                Momentum::Ops(buffer) => {
                    let g = (g + (var.as_tensor() * step.weight_decay)?)?.detach();
                    *buffer = ((&*buffer * step.momentum)? + &g)?.detach();
                    let direction = if step.nesterov { (g + (&*buffer * step.momentum)?)? } else { buffer.clone() };
                    var.set(&(var.as_tensor() - (direction * step.lr)?)?.detach())?;
                }
            }
        }
        Ok(())
    }

    /// Forgets the momentum.
    pub fn reset(&mut self) -> Result<()> {
        for momentum in &mut self.0 {
            match momentum {
                Momentum::Fused(buffer) => buffer.get_mut().unwrap_or_else(PoisonError::into_inner).fill(0.0),
                Momentum::Ops(buffer) => *buffer = buffer.zeros_like()?,
            }
        }
        Ok(())
    }

    /// The momentum of all variables.
    pub fn momentum(&self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for momentum in &self.0 {
            match momentum {
                Momentum::Fused(buffer) => {
                    all.extend_from_slice(&buffer.lock().unwrap_or_else(PoisonError::into_inner))
                }
                Momentum::Ops(buffer) => {
                    all.extend(buffer.to_dtype(DType::F32)?.to_vec1::<f32>().context("reading the momentum")?);
                }
            }
        }
        Ok(all)
    }
}

/// The step of one variable on its own storage. (candle hands out ops by shared reference, hence the lock; nobody waits for it.)
struct Update<'a> {
    step: SgdStep,
    buffer: &'a Mutex<Vec<f32>>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(
        &self,
        parameters: &mut CpuStorage,
        of_parameters: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(parameters), CpuStorage::F32(gradient)) = (parameters, gradient) else {
            candle_core::bail!("the fused step is for f32")
        };
        let (Some((start, end)), Some((from, to))) =
            (of_parameters.contiguous_offsets(), of_gradient.contiguous_offsets())
        else {
            candle_core::bail!("the fused step is for contiguous tensors")
        };
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if [end - start, to - from] != [buffer.len(); 2] {
            candle_core::bail!("{} parameters have a gradient of {}", end - start, to - from);
        }
        sgd(self.step, &gradient[from..to], &mut buffer, &mut parameters[start..end]);
        Ok(())
    }
}

/// Euclidean norm of several tensors as one, in f64 and always in the same order.
pub fn norm(tensors: &[Tensor]) -> Result<f64> {
    /// Elements a task.
    const TASK: usize = 1 << 15;
    let mut square = 0.0;
    for t in tensors {
        let values: Vec<f32> = t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        let tasks = values.par_chunks(TASK).map(|task| task.iter().map(|v| f64::from(*v).powi(2)).sum());
        square += tasks.collect::<Vec<f64>>().iter().sum::<f64>();
    }
    Ok(square.sqrt())
}
