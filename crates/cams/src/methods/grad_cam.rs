use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, weighted_sum};

/// Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2) of the logit.
///
/// `alpha_k = mean_p d logit_c / d A_k(p)`, `map = ReLU(sum_k alpha_k A_k)`. With a linear head the
/// gradient is `W_ck / n`, a formula that candle can differentiate once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradCam {}

impl Interpreter for GradCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let (_, _, h, w) = forward.features.dims4()?;
        let (alpha, estimator) = match forward.model.linear_head() {
            Some(head) => ((head.class_weight(classes)? / (h * w) as f64)?, Estimator::Exact),
            None => (forward.gradient(classes)?.mean((2, 3))?, Estimator::Gradient),
        };
        let map = weighted_sum(&alpha, &forward.features)?;
        Ok(Explanation { map, estimator, error: None, evaluations: 0 })
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
