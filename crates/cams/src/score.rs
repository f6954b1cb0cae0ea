//! What is explained: a number made of the logits.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use serde::{Deserialize, Serialize};

/// The explained score `y` of class c, from the logits z with P = softmax(z).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// `z_c`.
    #[default]
    Logit,
    /// `P_c`.
    Prob,
    /// `log P_c`.
    LogProb,
    /// `z_c - CE = 2 z_c - logsumexp(z)`, the "residual" score of ShapleyCAM (Cai 2025, arXiv 2501.06261).
    Rest,
}

impl Score {
    /// Logits (n, classes) and classes (n,) to scores (n,); differentiable.
    pub fn of(self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let at = |t: &Tensor| t.contiguous()?.gather(&classes.unsqueeze(1)?, 1)?.squeeze(1);
        match self {
            Score::Logit => at(logits),
            Score::Prob => at(&softmax(logits, D::Minus1)?),
            Score::LogProb => at(&log_softmax(logits, D::Minus1)?),
            Score::Rest => at(logits)? + at(&log_softmax(logits, D::Minus1)?)?,
        }
    }

    /// Its gradient with respect to the logits, (n, classes), by formula: differentiable once more.
    pub fn gradient(self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let one_hot = one_hot(logits, classes)?;
        if self == Score::Logit {
            return Ok(one_hot);
        }
        let p = softmax(logits, D::Minus1)?;
        match self {
            Score::Logit | Score::LogProb => &one_hot - &p,
            Score::Rest => (&one_hot * 2.0)? - &p,
            Score::Prob => {
                let of_class = (&p * &one_hot)?.sum_keepdim(1)?;
                (&one_hot - &p)?.broadcast_mul(&of_class)
            }
        }
    }

    /// The product of its Hessian with respect to the logits and `v` (n, classes).
    pub fn curvature(self, logits: &Tensor, classes: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self == Score::Logit {
            return v.zeros_like();
        }
        let p = softmax(logits, D::Minus1)?;
        // (diag P - P P^T) v, the softmax's own Jacobian.
        let mean = (&p * v)?.sum_keepdim(1)?;
        let spread = (&p * v.broadcast_sub(&mean)?)?;
        if self != Score::Prob {
            return spread.neg();
        }
        let one_hot = one_hot(logits, classes)?;
        let away = (&one_hot - &p)?;
        let of_class = (&p * &one_hot)?.sum_keepdim(1)?;
        let along = away.broadcast_mul(&(&away * v)?.sum_keepdim(1)?)?;
        (along - spread)?.broadcast_mul(&of_class)
    }

    /// [`Score::gradient`] on plain numbers.
    pub(crate) fn slope(self, z: &[f64], class: usize) -> Vec<f64> {
        let largest = z.iter().copied().fold(f64::MIN, f64::max);
        let grown: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
        let total: f64 = grown.iter().sum();
        let of_class = grown[class] / total;
        let slope = grown.iter().enumerate().map(|(j, grown)| {
            let (one, p) = (if j == class { 1.0 } else { 0.0 }, grown / total);
            match self {
                Score::Logit => one,
                Score::Prob => of_class * (one - p),
                Score::LogProb => one - p,
                Score::Rest => 2.0 * one - p,
            }
        });
        slope.collect()
    }

    /// [`Score::of`] on plain numbers.
    pub(crate) fn value(self, z: &[f64], class: usize) -> f64 {
        if self == Score::Logit {
            return z[class];
        }
        let largest = z.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = z.iter().map(|z| (z - largest).exp()).sum();
        let log_prob = z[class] - largest - total.ln();
        match self {
            Score::Logit => z[class],
            Score::Prob => log_prob.exp(),
            Score::LogProb => log_prob,
            Score::Rest => z[class] + log_prob,
        }
    }
}

fn one_hot(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let (n, count) = logits.dims2()?;
    let numbers = Tensor::arange(0u32, count as u32, logits.device())?.unsqueeze(0)?.broadcast_as((n, count))?;
    let classes = classes.to_dtype(candle_core::DType::U32)?.unsqueeze(1)?.broadcast_as((n, count))?;
    numbers.eq(&classes)?.to_dtype(logits.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    const ALL: [Score; 4] = [Score::Logit, Score::Prob, Score::LogProb, Score::Rest];

    #[test]
    fn formulas_equal_autograd_and_differences() -> Result<()> {
        let device = Device::Cpu;
        let z = [[1.0f64, -0.5, 2.0], [0.3, 0.1, -4.0]];
        let classes = Tensor::new(&[2u32, 0], &device)?;
        for score in ALL {
            let logits = Var::new(&z, &device)?;
            let values = score.of(&logits, &classes)?;
            let plain: Vec<f64> = z.iter().zip([2, 0]).map(|(z, c)| score.value(z, c)).collect();
            testkit::assert_close("value", &values.to_vec1::<f64>()?, &plain, 1e-14);
            let grads = values.sum_all()?.backward()?;
            let formula = score.gradient(&logits, &classes)?;
            let autograd = testkit::values(grads.get(&logits).unwrap())?;
            let plain: Vec<f64> = z.iter().zip([2, 0]).flat_map(|(z, c)| score.slope(z, c)).collect();
            testkit::assert_close("slope", &plain, &autograd, 1e-12);
            testkit::assert_close("gradient", &testkit::values(&formula)?, &autograd, 1e-12);
            let v = Tensor::new(&[[0.3f64, -1.0, 0.7], [2.0, 0.5, 0.1]], &device)?;
            let step = 1e-6;
            let moved = |s: f64| score.gradient(&(logits.as_tensor() + (&v * s)?)?, &classes);
            let numeric = ((moved(step)? - moved(-step)?)? / (2.0 * step))?;
            let product = score.curvature(&logits, &classes, &v)?;
            let difference = (product - numeric)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(difference < 1e-8, "{score:?}: {difference:.1e}");
        }
        Ok(())
    }
}
