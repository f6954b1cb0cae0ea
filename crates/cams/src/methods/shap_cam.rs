use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, LinearHead, weighted_sum};

/// What a position that is absent from a coalition gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Zero.
    #[default]
    Zero,
    /// Each channel's mean over positions.
    ChannelMean,
    /// The mean of the whole activation.
    ScalarMean,
    /// Each channel's mean over the positions that are present.
    PresentMean,
}

/// How the Shapley values are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Computation {
    /// Exactly, where that is possible; it is the only way so far.
    #[default]
    Auto,
    /// Exactly.
    Exact,
}

/// Shap-CAM (Zheng et al. 2022, arXiv 2208.03608) of the logit, exact.
///
/// The players are the n positions of A, each with all its channels; the map is their Shapley value. With
/// average pooling and a linear layer behind A the game is additive, so every marginal contribution is the
/// same in every coalition and the value has a closed form: `phi_p = (CAM(p) - CAM of the fill) / n` with
/// `CAM(p) = sum_k W_ck A_k(p)`. It is signed and sums to `v(all) - v(none)`. For `present_mean`, where the
/// fill depends on the coalition: `phi_p = (q_p + (H_n - 1)(q_p - mean_{r != p} q_r)) / n`, q = CAM, H_n the
/// n-th harmonic number, and v(none) = b_c.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapCam {
    /// What an absent position gets.
    pub fill: Fill,
    /// How the values are found.
    pub estimator: Computation,
}

impl ShapCam {
    /// Shapley values of the logits `head` computes, (n, h, w).
    fn exact(&self, head: &LinearHead, features: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = features.dims4()?;
        let n = h * w;
        let weight = head.class_weight(classes)?;
        let cam = weighted_sum(&weight, features)?;
        let value = match self.fill {
            Fill::Zero => cam,
            Fill::ChannelMean => cam.broadcast_sub(&cam.mean_keepdim((1, 2))?)?,
            Fill::ScalarMean => {
                let mean = features.mean((1, 2, 3))?;
                let fill = (weight.sum(1)? * mean)?;
                cam.broadcast_sub(&fill.reshape(((), 1, 1))?)?
            }
            Fill::PresentMean if n == 1 => cam,
            Fill::PresentMean => {
                let harmonic: f64 = (1..=n).map(|i| 1.0 / i as f64).sum();
                let others = (cam.sum_keepdim((1, 2))?.broadcast_sub(&cam)? / (n - 1) as f64)?;
                (&cam + ((&cam - others)? * (harmonic - 1.0))?)?
            }
        };
        value / n as f64
    }
}

impl Interpreter for ShapCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let Some(head) = forward.model.linear_head() else {
            bail!(
                "shap_cam is exact only where average pooling and a linear layer follow the explained layer, and has no sampled estimator yet: use layer = \"last\""
            );
        };
        let map = self.exact(&head, &forward.features, classes)?;
        Ok(Explanation { map, estimator: Estimator::Exact, error: None, evaluations: 0 })
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
