//! SGD with momentum over a network's variables; its state, one flat vector in their order, is saved and restored.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use kernels::sgd::{SgdStep, sgd};
use rayon::prelude::*;

/// Variables, and a momentum buffer for each.
pub struct Sgd(Vec<(Var, Momentum)>);

enum Momentum {
    /// On the CPU in f32: one fused pass a step.
    Fused(Vec<f32>),
    /// Elsewhere, by candle's ops.
    Ops(Tensor),
}

impl Sgd {
    /// An optimiser of `variables` that has not moved yet.
    pub fn at_rest(variables: &[Var]) -> Result<Sgd> {
        Self::new(variables, &vec![0.0; variables.iter().map(|v| v.elem_count()).sum()])
    }

    /// An optimiser of `variables` with this momentum.
    pub fn new(variables: &[Var], momentum: &[f32]) -> Result<Sgd> {
        let size: usize = variables.iter().map(|v| v.elem_count()).sum();
        ensure!(momentum.len() == size, "the momentum has {} elements, the model {size}", momentum.len());
        ensure!(size > 0, "there is nothing to train");
        let mut rest = momentum;
        let buffers = variables.iter().map(|var| {
            let (own, after) = rest.split_at(var.elem_count());
            rest = after;
            let fused = var.device().is_cpu() && var.dtype() == DType::F32;
            let buffer = if fused {
                Momentum::Fused(own.to_vec())
            } else {
                Momentum::Ops(Tensor::new(own, var.device())?.to_dtype(var.dtype())?)
            };
            Ok((var.clone(), buffer))
        });
        Ok(Sgd(buffers.collect::<Result<_>>()?))
    }

    /// One step, in place: `gradient` has a tensor for each variable.
    pub fn step(&mut self, gradient: &[Tensor], step: SgdStep) -> Result<()> {
        ensure!(gradient.len() == self.0.len(), "{} gradients for {} variables", gradient.len(), self.0.len());
        for ((var, momentum), g) in self.0.iter_mut().zip(gradient) {
            match momentum {
                Momentum::Fused(buffer) => {
                    var.inplace_op2(&g.contiguous()?, &Update { step, buffer: RefCell::new(buffer) })?;
                }
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
        for (_, momentum) in &mut self.0 {
            match momentum {
                Momentum::Fused(buffer) => buffer.fill(0.0),
                Momentum::Ops(buffer) => *buffer = buffer.zeros_like()?,
            }
        }
        Ok(())
    }

    /// The momentum of all variables.
    pub fn momentum(&self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for (_, momentum) in &self.0 {
            match momentum {
                Momentum::Fused(buffer) => all.extend_from_slice(buffer),
                Momentum::Ops(buffer) => {
                    all.extend(buffer.to_dtype(DType::F32)?.to_vec1::<f32>().context("reading the momentum")?);
                }
            }
        }
        Ok(all)
    }
}

/// The step of one variable on its own storage. (candle hands an op out by shared reference, hence the cell.)
struct Update<'a> {
    step: SgdStep,
    buffer: RefCell<&'a mut Vec<f32>>,
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
        let mut buffer = self.buffer.borrow_mut();
        if [end - start, to - from] != [buffer.len(); 2] {
            candle_core::bail!("{} parameters have a gradient of {}", end - start, to - from);
        }
        sgd(self.step, &gradient[from..to], &mut buffer, &mut parameters[start..end]);
        Ok(())
    }
}

/// Euclidean norm of several tensors as one, summed in f64 and always in the same order.
pub fn norm(tensors: &[Tensor]) -> Result<f64> {
    let mut square = 0.0;
    for t in tensors {
        let t = t.flatten_all()?;
        square += match t.dtype() {
            DType::F64 => sum_of_squares(&t.to_vec1::<f64>()?),
            _ => sum_of_squares(&t.to_dtype(DType::F32)?.to_vec1::<f32>()?),
        };
    }
    Ok(square.sqrt())
}

fn sum_of_squares<T: Copy + Into<f64> + Sync>(values: &[T]) -> f64 {
    /// Elements a task.
    const TASK: usize = 1 << 15;
    let square = |v: &T| Into::<f64>::into(*v).powi(2);
    let tasks: Vec<f64> = values.par_chunks(TASK).map(|task| task.iter().map(square).sum()).collect();
    tasks.iter().sum()
}
