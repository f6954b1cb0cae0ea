//! The storage of a result that is known already: what a custom op hands back whose value was computed before it, by
//! ordinary ops, and of which only the derivative is its own.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, Result, Shape, Storage, Tensor, bail};

/// A copy of `t`'s memory on the CPU.
pub fn on_cpu(t: &Tensor) -> Result<(CpuStorage, Shape)> {
    let t = t.force_contiguous()?;
    match &*t.storage_and_layout().0 {
        Storage::Cpu(storage) => Ok((storage.clone(), t.shape().clone())),
        _ => bail!("the result is on {:?}, what it was made of on the CPU", t.device()),
    }
}

/// The same on a card.
pub fn on_card(t: &Tensor) -> Result<(CudaStorage, Shape)> {
    let t = t.force_contiguous()?;
    match &*t.storage_and_layout().0 {
        Storage::Cuda(storage) => Ok((storage.try_clone(t.layout())?, t.shape().clone())),
        _ => bail!("the result is on {:?}, what it was made of on a card", t.device()),
    }
}
