use anyhow::Result;
use cams::ranges::{Ranges, from};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use super::settings::TEMPERATURE;
use super::{Inputs, Term};

/// DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536, equations 6 to 10): relations instead of values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dist {
    /// Weight of the relation between an image's classes.
    pub beta: f64,
    /// Weight of the relation between a class's images.
    pub gamma: f64,
    /// Softening of both outputs.
    pub temperature: f64,
}

impl Default for Dist {
    fn default() -> Self {
        Dist { beta: 1.0, gamma: 1.0, temperature: 1.0 }
    }
}

impl Dist {
    pub(super) const ABOUT: &str =
        "DIST: beta times 1 - correlation over an image's classes, gamma times over a class's images";
    pub(super) const RANGES: Ranges =
        &[("beta", from(0.0, 1e6)), ("gamma", from(0.0, 1e6)), ("temperature", TEMPERATURE)];
}

impl Term for Dist {
    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(relations(&inputs.pass.logits, inputs.teacher()?.logits()?, self)?)
    }
}

/// `T^2 (beta mean_i (1 - r(p_i, q_i)) + gamma mean_j (1 - r(p_j, q_j)))` of logits (n, classes): p and q are the
/// softened probabilities of teacher and student, i runs over images, j over classes, r is Pearson's correlation. In
/// f64, and given back in the student's type.
pub fn relations(student: &Tensor, teacher: &Tensor, options: &Dist) -> candle_core::Result<Tensor> {
    let soft = |t: &Tensor| softmax(&(t.to_dtype(DType::F64)? / options.temperature)?, D::Minus1);
    let (q, p) = (soft(student)?, soft(&teacher.detach())?);
    let of_classes = (1.0 - correlation(&q, &p)?.mean_all()?)?;
    let of_images = (1.0 - correlation(&q.t()?.contiguous()?, &p.t()?.contiguous()?)?.mean_all()?)?;
    let sum = ((of_classes * options.beta)? + (of_images * options.gamma)?)?;
    (sum * options.temperature.powi(2))?.to_dtype(student.dtype())
}

/// Of the rows of two matrices, with the authors' epsilon beside the norms, which makes it 0 where a row is constant.
fn correlation(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    const EPS: f64 = 1e-8;
    let centred = |t: &Tensor| t.broadcast_sub(&t.mean_keepdim(1)?);
    let (a, b) = (centred(a)?, centred(b)?);
    // The root's slope at a constant row must stay finite.
    let norm = |t: &Tensor| (t.sqr()?.sum(1)? + f64::MIN_POSITIVE)?.sqrt();
    (&a * &b)?.sum(1)? / ((norm(&a)? * norm(&b)?)? + EPS)?
}
