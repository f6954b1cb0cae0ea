//! A moving average of a model: of what is trained, and of its running statistics.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use crate::nn::Model;

/// The average of a model after each of its steps, step i weighing `decay^(t - i) (1 - decay) / (1 - decay^t)`.
pub struct Average {
    decay: f64,
    parameters: Vec<Tensor>,
    statistics: Vec<Tensor>,
}

impl Average {
    /// Of a model that has not made a step yet.
    pub fn new(decay: f64, model: &dyn Model) -> Result<Average> {
        let parameters = model.variables().iter().map(|v| Ok(v.as_tensor().copy()?.detach())).collect::<Result<_>>()?;
        Ok(Average { decay, parameters, statistics: model.statistics()? })
    }

    /// Takes in the model after step `t`, counted from 1.
    pub fn update(&mut self, model: &dyn Model, t: usize) -> Result<()> {
        let share = share_of_step(self.decay, t);
        let now = model.variables().iter().map(|v| v.as_tensor().detach()).collect::<Vec<_>>();
        for (average, now) in
            self.parameters.iter_mut().zip(now).chain(self.statistics.iter_mut().zip(model.statistics()?))
        {
            // A network without BatchNorm has no statistics, and no card takes an op of no elements.
            if average.elem_count() > 0 {
                *average = (&*average + ((now - &*average)? * share)?)?;
            }
        }
        Ok(())
    }

    /// Parameters and statistics as flat numbers.
    pub fn values(&self) -> Result<[Vec<f32>; 2]> {
        let flat = |tensors: &[Tensor]| -> Result<Vec<f32>> {
            let each = tensors.iter().map(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
            Ok(each.collect::<candle_core::Result<Vec<_>>>()?.concat())
        };
        Ok([flat(&self.parameters)?, flat(&self.statistics)?])
    }

    /// The reverse.
    pub fn restore(&mut self, values: &[Vec<f32>; 2]) -> Result<()> {
        for (tensors, values) in [&mut self.parameters, &mut self.statistics].into_iter().zip(values) {
            let count: usize = tensors.iter().map(Tensor::elem_count).sum();
            ensure!(count == values.len(), "the moving average has {} elements, the model {count}", values.len());
            let mut rest = values.as_slice();
            for t in tensors {
                let (own, after) = rest.split_at(t.elem_count());
                *t = Tensor::from_slice(own, t.shape(), t.device())?.to_dtype(t.dtype())?;
                rest = after;
            }
        }
        Ok(())
    }
}

/// What step `t` (from 1) adds to a moving average that holds nothing of what was before the first: after t steps step
/// i weighs `decay^(t - i) (1 - decay) / (1 - decay^t)`, as Adam's averages are debiased.
fn share_of_step(decay: f64, t: usize) -> f64 {
    (1.0 - decay) / (1.0 - decay.powf(t as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moving_average_is_of_its_steps_alone() {
        let (decay, values) = (0.9f64, [3.0, -1.0, 4.0, 1.5]);
        let mut average = 1e9; // What was before the first step.
        for (i, value) in values.iter().enumerate() {
            average += share_of_step(decay, i + 1) * (value - average);
            let weight = |j: usize| decay.powi((i - j) as i32) * (1.0 - decay) / (1.0 - decay.powi(i as i32 + 1));
            let expected: f64 = (0..=i).map(|j| weight(j) * values[j]).sum();
            assert!((average - expected).abs() < 1e-6, "after step {}: {average}, not {expected}", i + 1);
        }
    }
}
