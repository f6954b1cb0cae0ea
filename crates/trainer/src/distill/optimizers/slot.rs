//! What an optimizer gathers about a variable, and updates in place.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};

/// A number for each element of a variable.
pub enum Slot {
    /// On the CPU in f32: for one fused pass per step.
    Fused(Vec<f32>),
    /// Elsewhere, by candle's ops.
    Ops(Tensor),
}

impl Slot {
    /// Zeros.
    pub fn zeros(of: &Var) -> Result<Slot> {
        let fused = of.device().is_cpu() && of.dtype() == DType::F32;
        Ok(if fused { Slot::Fused(vec![0.0; of.elem_count()]) } else { Slot::Ops(of.zeros_like()?) })
    }

    /// Zeros again.
    pub fn clear(&mut self) -> Result<()> {
        match self {
            Slot::Fused(values) => values.fill(0.0),
            Slot::Ops(tensor) => *tensor = tensor.zeros_like()?,
        }
        Ok(())
    }
}

/// The slots of all variables, one after another.
pub fn gather<'s>(slots: impl Iterator<Item = &'s Slot>) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for slot in slots {
        match slot {
            Slot::Fused(values) => all.extend_from_slice(values),
            Slot::Ops(tensor) => all.extend(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?),
        }
    }
    Ok(all)
}

/// The reverse.
pub fn scatter<'s>(slots: impl Iterator<Item = &'s mut Slot>, values: &[f32]) -> Result<()> {
    let mut rest = values;
    for slot in slots {
        let len = match slot {
            Slot::Fused(own) => own.len(),
            Slot::Ops(tensor) => tensor.elem_count(),
        };
        ensure!(rest.len() >= len, "the optimizer's state has {} elements, the model more", values.len());
        let (own, after) = rest.split_at(len);
        match slot {
            Slot::Fused(slot) => slot.copy_from_slice(own),
            Slot::Ops(t) => *t = Tensor::from_slice(own, t.shape(), t.device())?.to_dtype(t.dtype())?,
        }
        rest = after;
    }
    ensure!(rest.is_empty(), "the optimizer's state has {} elements, the model {} less", values.len(), rest.len());
    Ok(())
}

/// Calls `work(gradient, parameters)` with a variable's own storage; f32, on the CPU.
pub fn in_place(variable: &Var, gradient: &Tensor, work: impl FnMut(&[f32], &mut [f32])) -> Result<()> {
    let op = InPlace { work: RefCell::new(work) };
    Ok(variable.inplace_op2(&gradient.contiguous()?, &op)?)
}

/// candle hands an op out by shared reference, hence the cell.
struct InPlace<F> {
    work: RefCell<F>,
}

impl<F: FnMut(&[f32], &mut [f32])> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "optimizer step"
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
        if end - start != to - from {
            candle_core::bail!("{} parameters have a gradient of {}", end - start, to - from);
        }
        (self.work.borrow_mut())(&gradient[from..to], &mut parameters[start..end]);
        Ok(())
    }
}
