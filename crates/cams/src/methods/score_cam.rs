use candle_core::{D, Result, Tensor, bail};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use crate::ops::{class_maps, weighted_sum};
use crate::ranges::{MEMORY_MB, Ranges};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, images_per_pass, maps};

/// What Score-CAM's masks are applied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The images, as in the paper: one forward pass of the network for every channel.
    #[default]
    Image,
    /// The activations: the head alone is evaluated. Needs a linear head; far cheaper, another method.
    Features,
}

/// Score-CAM (Wang et al. 2020, arXiv 1910.01279, algorithm 1).
///
/// `M_k = minmax(resize(A_k))`, `s_k` = score of class c on `image * M_k`, `alpha = softmax_k(s)`,
/// `map = ReLU(sum_k alpha_k A_k)`. The softmax runs over all channels; a constant channel is a zero mask and
/// keeps its weight. The baseline of the paper's "increase of confidence" cancels in the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreCam {
    /// What is explained.
    pub score: Score,
    /// What the masks are applied to. In a loss the default is `features`.
    pub space: Space,
    /// Memory for one pass, in MB.
    pub memory_mb: f64,
}

impl Default for ScoreCam {
    fn default() -> Self {
        ScoreCam { score: Score::Logit, space: Space::Image, memory_mb: 256.0 }
    }
}

impl ScoreCam {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("memory_mb", MEMORY_MB)];
}

/// Each channel's masks, scaled to [0, 1]: (n, k, h, w).
fn masks(features: &Tensor) -> Result<Tensor> {
    let (n, k, h, w) = features.dims4()?;
    maps::minmax(&features.reshape((n * k, h, w))?)?.reshape((n, k, h, w))
}

impl ScoreCam {
    /// `s` (n, k): the score of each image under each of its masks.
    fn image_scores(&self, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
        let (n, k, _, _) = forward.features.dims4()?;
        let (_, _, height, width) = forward.images.dims4()?;
        let images = forward.images.detach();
        let chunk = images_per_pass(forward, self.memory_mb);
        let mut rows = Vec::with_capacity(n);
        for i in 0..n {
            let features = forward.features.detach().narrow(0, i, 1)?;
            let masks = masks(&maps::resize(&features, height, width)?)?.squeeze(0)?.unsqueeze(1)?; // (k, 1, h, w)
            let class = classes.narrow(0, i, 1)?;
            let mut row = Vec::new();
            for start in (0..k).step_by(chunk) {
                let masks = masks.narrow(0, start, chunk.min(k - start))?;
                let masked = images.narrow(0, i, 1)?.broadcast_mul(&masks)?;
                let logits = forward.model.head(&forward.model.features(&masked)?)?.detach();
                row.push(self.score.of(&logits, &class.broadcast_as(logits.dim(0)?)?.contiguous()?)?);
            }
            rows.push(Tensor::cat(&row, 0)?);
        }
        Tensor::stack(&rows, 0)
    }

    /// The same with the masks on the activations: logits `b + mean_p M_k(p) W A(p)`.
    fn feature_scores(&self, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
        let Some(head) = forward.model.linear_head() else {
            bail!(
                "score_cam with space = \"features\" needs average pooling and a linear layer behind the explained layer: use layer = \"last\" or space = \"image\""
            );
        };
        let features = forward.features.detach();
        let (n, k, h, w) = features.dims4()?;
        let (positions, count) = (h * w, forward.logits.dim(1)?);
        let cams = class_maps(&head.weight.detach(), &features)?.flatten_from(2)?;
        let masked = masks(&features)?.flatten_from(2)?.matmul(&cams.transpose(1, 2)?.contiguous()?)?; // (n, k, classes)
        let logits = (masked / positions as f64)?.broadcast_add(&head.bias.detach())?;
        let repeated = classes.unsqueeze(1)?.broadcast_as((n, k))?.contiguous()?.flatten_all()?;
        self.score.of(&logits.reshape((n * k, count))?, &repeated)?.reshape((n, k))
    }
}

impl Interpreter for ScoreCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let (scores, evaluations) = match self.space {
            Space::Image => (self.image_scores(forward, classes)?, forward.features.dim(1)?),
            Space::Features => (self.feature_scores(forward, classes)?, 0),
        };
        let alpha = softmax(&scores, D::Minus1)?.detach();
        let map = weighted_sum(&alpha, &forward.features)?;
        Explanation::new(map, Estimator::Perturbation, evaluations)
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::WeightsConstant
    }

    /// A loss wants a map at every step: masks then act on the features, unless said otherwise.
    fn settle_in_loss(&mut self, given: &dyn Fn(&str) -> bool) {
        if !given("space") {
            self.space = Space::Features;
        }
    }
}
