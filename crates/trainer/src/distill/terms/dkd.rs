use anyhow::Result;
use cams::ranges::{Ranges, from};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::settings::TEMPERATURE;
use super::{Inputs, Term};

/// Decoupled knowledge distillation, DKD (Zhao et al., CVPR 2022, arXiv 2203.08679, equation 7): `alpha TCKD + beta NCKD`, see
/// [`decoupled`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dkd {
    /// Weight of TCKD: the target class against all others.
    pub alpha: f64,
    /// Weight of NCKD: the other classes among themselves.
    pub beta: f64,
    /// Softening of both outputs.
    pub temperature: f64,
}

impl Default for Dkd {
    fn default() -> Self {
        Dkd { alpha: 1.0, beta: 8.0, temperature: 4.0 }
    }
}

impl Dkd {
    pub(super) const ABOUT: &str =
        "decoupled KD: alpha times target against the rest, beta times the rest among themselves";
    pub(super) const RANGES: Ranges =
        &[("alpha", from(0.0, 1e6)), ("beta", from(0.0, 1e6)), ("temperature", TEMPERATURE)];
}

impl Term for Dkd {
    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(decoupled(&inputs.pass.logits, inputs.teacher()?.logits()?, inputs.labels, self)?)
    }
}

/// `T^2 / n sum_i (alpha KL(b_t || b_s) + beta KL(r_t || r_s))` of logits (n, classes) and labels (n,): b is the pair
/// (label's probability, the rest of it), r the distribution over the other classes, both softened by T. In f64, and
/// given back in the student's type.
pub fn decoupled(student: &Tensor, teacher: &Tensor, labels: &Tensor, options: &Dkd) -> candle_core::Result<Tensor> {
    let (n, classes) = student.dims2()?;
    let soft = |t: &Tensor| t.to_dtype(DType::F64)? / options.temperature;
    let (s, t) = (soft(student)?, soft(&teacher.detach())?);
    let index = labels.unsqueeze(1)?;
    let every = Tensor::arange(0u32, classes as u32, student.device())?.unsqueeze(0)?;
    let is_label = every.broadcast_eq(&index.to_dtype(DType::U32)?)?;
    // So far below that nothing of it is left, and finite, so that differences of it are 0.
    let absent = (Tensor::ones((n, classes), DType::F64, student.device())? * -1e100)?;
    let others = |z: &Tensor| is_label.where_cond(&absent, z);
    // log p of the label, and of all others together: differences of sums of exponentials, exact however certain one
    // is.
    let pair = |z: &Tensor| -> candle_core::Result<[Tensor; 2]> {
        let all = log_sum_exp(z)?;
        Ok([(z.gather(&index, 1)?.squeeze(1)? - &all)?, (log_sum_exp(&others(z)?)? - all)?])
    };
    let ([t_label, t_rest], [s_label, s_rest]) = (pair(&t)?, pair(&s)?);
    let target = ((t_label.exp()? * (t_label - s_label)?)? + (t_rest.exp()? * (t_rest - s_rest)?)?)?;
    let (log_p, log_q) = (log_softmax(&others(&t)?, D::Minus1)?, log_softmax(&others(&s)?, D::Minus1)?);
    let rest = (log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?;
    let sum = ((target * options.alpha)? + (rest * options.beta)?)?.sum_all()?;
    (sum * (options.temperature.powi(2) / n as f64))?.to_dtype(student.dtype())
}

/// Over each row of (n, classes).
fn log_sum_exp(z: &Tensor) -> candle_core::Result<Tensor> {
    let largest = z.detach().max_keepdim(D::Minus1)?;
    z.broadcast_sub(&largest)?.exp()?.sum(D::Minus1)?.log()? + largest.squeeze(D::Minus1)?
}
