use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::ops::weighted_sum;
use crate::ranges::{Ranges, above};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score};

/// ShapleyCAM (Cai 2025, arXiv 2501.06261): not Shap-CAM, but Shapley values of channels to second order.
///
/// `alpha = mean_p (G - 1/2 H A)` with G and H the score's gradient and Hessian in A, `map = ReLU(sum_k alpha_k A_k)`.
/// With a linear head `H A = W^T H_z (z - b) / n`, a formula; elsewhere `H A` is the central difference of G between (1
/// + step) A and (1 - step) A.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapleyCam {
    /// What is explained.
    pub score: Score,
    /// Relative step of the difference, where there is no formula.
    pub step: f64,
}

impl Default for ShapleyCam {
    fn default() -> Self {
        ShapleyCam { score: Score::Rest, step: 1e-2 }
    }
}

impl ShapleyCam {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("step", above(0.0, 0.999))];
}

impl Interpreter for ShapleyCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let features = &forward.features;
        if !(self.step > 0.0 && self.step < 1.0) {
            bail!("interpreter.shapley_cam.step is {}; it must lie between 0 and 1", self.step);
        }
        let Some(head) = forward.model.linear_head() else {
            let at = |scale: f64| forward.gradient_at(&(features.detach() * scale)?, self.score, classes);
            let product = ((at(1.0 + self.step)? - at(1.0 - self.step)?)? / (2.0 * self.step))?;
            let alpha = (at(1.0)? - (product * 0.5)?)?.mean((2, 3))?;
            return Explanation::new(weighted_sum(&alpha, features)?, Estimator::Gradient, 3);
        };
        let (_, _, h, w) = features.dims4()?;
        let gradient = self.score.gradient(&forward.logits, classes)?;
        let reached = forward.logits.broadcast_sub(&head.bias)?;
        let second = self.score.curvature(&forward.logits, classes, &reached)?;
        let alpha = (head.channels(&(gradient - (second * 0.5)?)?)? / (h * w) as f64)?;
        Explanation::new(weighted_sum(&alpha, features)?, Estimator::Exact, 0)
    }

    fn sees_class_maps_alone(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
