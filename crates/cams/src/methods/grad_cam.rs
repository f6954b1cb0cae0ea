use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::weighted_sum;
use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Interpreter, Score};

/// Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2).
///
/// `alpha_k = mean_p G_k(p)` with `G = d y / d A`, `map = ReLU(sum_k alpha_k A_k)`. With a linear head and the logit G
/// is `W_ck / n`, a formula that candle can differentiate once more; for the other scores `(d y / d z) W / n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradCam {
    /// What is explained.
    pub score: Score,
}

impl GradCam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for GradCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let gradient = forward.gradient(self.score, classes)?;
        let map = weighted_sum(&gradient.mean()?, &forward.features)?;
        Explanation::new(map, gradient.estimator(), gradient.evaluations())
    }

    fn is_of_gradients(&self) -> bool {
        true
    }

    fn sees_class_maps_alone(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
