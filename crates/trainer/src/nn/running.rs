//! BatchNorm's running statistics, where the engine that reads them wants them.

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Tensor};
use kernels::batch_norm::Statistics;

use super::Engine;

/// BatchNorm's momentum, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// Means and variances of all layers, one after another, flat.
#[derive(Clone, Debug)]
pub enum Running {
    /// For our kernels.
    Host(Vec<f32>),
    /// For a card's kernels and for candle's ops: on their device, f32.
    Device(Tensor),
}

/// What a layer has measured of a batch: its mean and biased variance, (channels,), of so many values.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Per channel.
    pub mean: Tensor,
    /// Per channel.
    pub var: Tensor,
    /// Values per channel.
    pub count: usize,
}

impl Measured {
    /// As our kernels measure it.
    pub(super) fn of(statistics: Statistics) -> Result<Measured> {
        let tensor = |values: Vec<f64>| Tensor::new(values, &Device::Cpu);
        Ok(Measured { mean: tensor(statistics.mean)?, var: tensor(statistics.var)?, count: statistics.count })
    }
}

impl Running {
    /// Of an engine.
    pub fn new(values: Vec<f32>, engine: Engine, device: &Device) -> Result<Running> {
        Ok(match engine {
            Engine::Kernels => Running::Host(values),
            Engine::Device | Engine::Ops => Running::Device(Tensor::new(values, device)?),
        })
    }

    /// As plain numbers.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Running::Host(values) => Cow::Borrowed(values),
            Running::Device(tensor) => Cow::Owned(tensor.to_vec1()?),
        })
    }

    /// As a tensor.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Running::Host(values) => Tensor::new(values.as_slice(), &Device::Cpu),
            Running::Device(tensor) => Ok(tensor.clone()),
        }
    }

    /// Takes in what a training pass has measured, layer by layer: PyTorch's momentum and unbiased variance.
    pub fn update(&mut self, measured: &[Measured]) -> Result<()> {
        let unbiased = |m: &Measured| m.count as f64 / (m.count as f64 - 1.0).max(1.0);
        match self {
            Running::Host(running) => {
                let mix = |old: &mut f32, new: f64| *old = ((1.0 - MOMENTUM) * f64::from(*old) + MOMENTUM * new) as f32;
                let mut rest = running.as_mut_slice();
                for m in measured {
                    let (means, more) = rest.split_at_mut(m.mean.elem_count());
                    let (vars, more) = more.split_at_mut(m.var.elem_count());
                    rest = more;
                    means.iter_mut().zip(m.mean.to_vec1::<f64>()?).for_each(|(old, new)| mix(old, new));
                    let factor = unbiased(m);
                    vars.iter_mut().zip(m.var.to_vec1::<f64>()?).for_each(|(old, new)| mix(old, new * factor));
                }
            }
            Running::Device(running) if !measured.is_empty() => {
                let new = measured.iter().map(|m| Tensor::cat(&[m.mean.clone(), (&m.var * unbiased(m))?], 0));
                let new = Tensor::cat(&new.collect::<Result<Vec<_>>>()?, 0)?;
                let old = running.to_dtype(new.dtype())?;
                *running = ((old * (1.0 - MOMENTUM))? + (new * MOMENTUM)?)?.to_dtype(DType::F32)?.detach();
            }
            Running::Device(_) => {}
        }
        Ok(())
    }
}
