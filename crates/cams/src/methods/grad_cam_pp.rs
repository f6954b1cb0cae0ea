use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::{self, weighted_sum};
use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Gradient, Interpreter, Score, maps};

/// Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063, eq. 5 and 12 to 20).
///
/// With G = d y / d A, S_k = sum_p A_k(p), a the paper's pixel weights alpha_ij^kc and alpha its channel weights w_k^c:
/// `a_k(p) = G^2 / (2 G^2 + S_k G^3)` (0 where G is 0), `alpha_k = sum_p a_k(p) ReLU(G)`, `map = ReLU(sum_k alpha_k A_k)`.
///
/// With a linear head G is the same at all n positions; with v = n G (W_c for the logit) and f the pooled feature
/// `alpha_k = ReLU(v_k) / (2 + v_k f_k)`, or `ReLU(v_k) / n` with `alpha_norm`. This form needs activations behind a ReLU: where f
/// is negative its denominator can vanish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradCamPp {
    /// What is explained.
    pub score: Score,
    /// Keep the paper's factor exp(y), which cancels in `a` but multiplies the map.
    pub exp_scale: bool,
    /// Divide `a` by its sum per channel, as the authors' code does.
    pub alpha_norm: bool,
}

impl GradCamPp {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl GradCamPp {
    /// With the same gradient (n, k) at every position.
    fn closed_form(&self, forward: &Forward, gradient: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = forward.features.dims4()?;
        let positive = maps::relu(&(gradient * (h * w) as f64)?)?;
        if self.alpha_norm {
            return positive / (h * w) as f64;
        }
        // Where v is negative alpha is 0 whatever the denominator, so its positive part will do, and
        // cannot vanish: the features are behind a ReLU.
        let pooled = ops::pool(&forward.features)?;
        &positive / ((&positive * pooled)? + 2.0)?
    }

    fn at_positions(&self, forward: &Forward, g: &Tensor) -> Result<Tensor> {
        // With a constant gradient the weights are constants whole.
        let features = if g.track_op() { forward.features.clone() } else { forward.features.detach() };
        let sum = features.sum_keepdim((2, 3))?;
        let denominator = (g.broadcast_mul(&sum)? + 2.0)?; // of 1 / (2 + S G): G^2 cancels
        let usable = (denominator.ne(0.0)? * g.ne(0.0)?)?.to_dtype(g.dtype())?;
        let safe = (&denominator + denominator.eq(0.0)?.to_dtype(g.dtype())?)?;
        let mut a = (usable / safe)?;
        if self.alpha_norm {
            let total = a.sum_keepdim((2, 3))?;
            let total = (&total + total.eq(0.0)?.to_dtype(g.dtype())?)?;
            a = a.broadcast_div(&total)?;
        }
        (a * maps::relu(g)?)?.sum((2, 3))
    }
}

impl Interpreter for GradCamPp {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let gradient = forward.gradient(self.score, classes)?;
        let mut alpha = match &gradient {
            Gradient::Uniform(g) => self.closed_form(forward, g)?,
            Gradient::AtPositions(g) => self.at_positions(forward, g)?,
        };
        if self.exp_scale {
            alpha = alpha.broadcast_mul(&self.score.of(&forward.logits, classes)?.exp()?.unsqueeze(1)?)?;
        }
        let map = weighted_sum(&alpha, &forward.features)?;
        Explanation::new(map, gradient.estimator(), gradient.evaluations())
    }

    fn is_of_gradients(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
