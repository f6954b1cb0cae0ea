use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::weighted_sum;
use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Gradient, Interpreter, Score};

/// XGrad-CAM (Fu et al. 2020, arXiv 2008.02312, eq. 7): `alpha_k = sum_p G_k(p) A_k(p) / sum_p A_k(p)`, 0 where that
/// sum is 0; `map = ReLU(sum_k alpha_k A_k)`, `G = d y / d A`.
///
/// Where G is the same at every position it is Grad-CAM. On a layer with negative values the quotient can be
/// ill-conditioned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct XgradCam {
    /// What is explained.
    pub score: Score,
}

impl XgradCam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for XgradCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let gradient = forward.gradient(self.score, classes)?;
        let alpha = match &gradient {
            Gradient::Uniform(g) => g.clone(),
            Gradient::AtPositions(g) => {
                // With a constant gradient the weights are constants whole.
                let features = if gradient.is_tracked() { forward.features.clone() } else { forward.features.detach() };
                let sum = features.sum((2, 3))?;
                let none = sum.eq(0.0)?.to_dtype(sum.dtype())?;
                let some = none.affine(-1.0, 1.0)?;
                (((g * features)?.sum((2, 3))? / (sum + none)?)? * some)?
            }
        };
        let map = weighted_sum(&alpha, &forward.features)?;
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
