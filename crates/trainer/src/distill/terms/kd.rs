use anyhow::Result;
use cams::methods::Methods;
use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;

use super::{Inputs, Loss, Term};

/// Knowledge distillation (Hinton et al. 2015), with or without standardised logits (Sun et al. 2024).
pub struct Distillation {
    temperature: f64,
    standardise: bool,
}

impl Distillation {
    pub(super) const ABOUT: &str = "KL divergence from the teacher's softened output, times T^2";

    pub(super) fn new(loss: &Loss, _: &Methods) -> Result<Distillation> {
        Ok(Distillation { temperature: loss.temperature, standardise: loss.logit_std })
    }
}

impl Term for Distillation {
    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        let (student, teacher) = (&inputs.pass.logits, inputs.teacher()?.logits()?);
        if self.standardise {
            let standard = |logits: &Tensor| standardised(&logits.to_dtype(DType::F64)?);
            let term = distillation(&standard(student)?, &standard(teacher)?, self.temperature)?;
            return Ok(term.to_dtype(student.dtype())?);
        }
        Ok(distillation(student, teacher, self.temperature)?)
    }
}

/// Each row of `logits` (n, classes) less its mean, over its standard deviation (n - 1 in the denominator) plus 1e-7
/// (Sun et al., CVPR 2024, arXiv 2403.01427, section 4).
pub fn standardised(logits: &Tensor) -> candle_core::Result<Tensor> {
    let classes = logits.dim(D::Minus1)? as f64;
    let centred = logits.broadcast_sub(&logits.mean_keepdim(D::Minus1)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / (classes - 1.0).max(1.0))?;
    // Equal logits have no direction in which their deviation grows: the root's slope there must stay finite.
    let std = variance.maximum(f64::from(f32::MIN_POSITIVE))?.sqrt()?;
    centred.broadcast_div(&(std + 1e-7)?)
}

/// `T^2 / n sum_i KL(softmax(teacher / T) || softmax(student / T))` (Hinton et al. 2015), (n, classes) each, for any T.
///
/// At large T the divergence is a difference of nearly equal numbers, T^2 times too small to be seen among them. With
/// `d = (s - t) / T`, p the teacher's probabilities and `e = d - sum_j p_j d_j` it is
/// `log(1 + sum_j p_j (exp(e_j) - 1 - e_j))`, a sum of positive numbers that vanish like 1 / T^2; this form is used where
/// no e is large. In f64, and given back in the student's type.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> candle_core::Result<Tensor> {
    let n = student.dim(0)? as f64;
    let sum = divergences(student, teacher, temperature)?.sum_all()?;
    (sum * (temperature * temperature / n))?.to_dtype(student.dtype())
}

/// The divergence of each row, (n,), in f64 and without the factor T^2.
pub fn divergences(student: &Tensor, teacher: &Tensor, temperature: f64) -> candle_core::Result<Tensor> {
    let soft = |t: &Tensor| t.to_dtype(DType::F64)? / temperature;
    let (s, t) = (soft(student)?, soft(&teacher.detach())?);
    let (log_p, log_q) = (log_softmax(&t, D::Minus1)?, log_softmax(&s, D::Minus1)?);
    let p = log_p.exp()?;
    let far = (&p * (&log_p - log_q)?)?.sum(D::Minus1)?;
    let d = (s - t)?;
    let e = d.broadcast_sub(&(&p * &d)?.sum_keepdim(D::Minus1)?)?;
    let near = (&p * exp_minus_line(&e.clamp(-NEAR, NEAR)?)?)?.sum(D::Minus1)?;
    let near = (&near * log1p_over(&near)?)?;
    let is_near = e.detach().abs()?.max(D::Minus1)?.lt(NEAR)?;
    is_near.where_cond(&near, &far)
}

/// Up to here the series below are exact to rounding.
const NEAR: f64 = 0.1;

/// `exp(x) - 1 - x` for |x| up to [`NEAR`]: `x^2 (1/2! + x/3! + x^2/4! + ...)`.
fn exp_minus_line(x: &Tensor) -> candle_core::Result<Tensor> {
    let mut sum = x.affine(0.0, 1.0 / 39_916_800.0)?; // 1/11!
    for inverse in [3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0] {
        sum = (sum * x)?.affine(1.0, 1.0 / inverse)?;
    }
    sum * x.sqr()?
}

/// `log(1 + y) / y` for y from 0 to about 0.006, which [`NEAR`] bounds: `1 - y/2 + y^2/3 - ...`.
fn log1p_over(y: &Tensor) -> candle_core::Result<Tensor> {
    let mut sum = y.affine(0.0, 1.0 / 7.0)?;
    for inverse in [-6.0, 5.0, -4.0, 3.0, -2.0, 1.0] {
        sum = (sum * y)?.affine(1.0, 1.0 / inverse)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::distance::value;
    use candle_core::Device;
    use testkit::{gradcheck, tensor};

    /// In 40 digits, by Python's mpmath: logits 3 i - 8 and 5 - i^2 / 4 + sin(i), i from 0 to 9.
    const EXACT: [(f64, f64); 7] = [
        (0.05, 1.200000637683905),
        (0.5, 11.810963972026),
        (1.0, 22.735703091575),
        (4.0, 67.384061776868),
        (100.0, 113.109885148857),
        (1e4, 114.426780047191),
        (1e6, 114.439067766386),
    ];

    #[test]
    fn distillation_is_right_at_every_temperature() -> anyhow::Result<()> {
        let device = Device::Cpu;
        let student: Vec<f64> = (0..10).map(|i| 3.0 * f64::from(i) - 8.0).collect();
        let teacher: Vec<f64> = (0..10).map(|i| 5.0 - f64::from(i * i) / 4.0 + f64::from(i).sin()).collect();
        for (temperature, exact) in EXACT {
            for (dtype, allowed) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
                let row = |v: &[f64]| Tensor::new(v, &device)?.unsqueeze(0)?.to_dtype(dtype);
                let found = value(&distillation(&row(&student)?, &row(&teacher)?, temperature)?)?;
                assert!(
                    (found - exact).abs() <= allowed * exact,
                    "T = {temperature}, {dtype:?}: {found}, exactly {exact}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn distillation_s_gradient_is_its_slope() -> anyhow::Result<()> {
        let draw = |seed| tensor(&[4, 6], seed, DType::F64, &Device::Cpu);
        let (student, teacher) = ((draw(1)? * 5.0)?, (draw(2)? * 5.0)?);
        for temperature in [0.05, 1.0, 4.0, 40.0, 60.0, 1e3, 1e5] {
            let worst = gradcheck(&student, 24, 1e-4, |s| distillation(s, &teacher, temperature))?;
            assert!(worst < 1e-6, "T = {temperature}: off by {worst:.1e}");
        }
        Ok(())
    }
}
