use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::{pool, weighted_sum};
use crate::ranges::{MEMORY_MB, Ranges};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, images_per_pass};

/// Ablation-CAM (Desai & Ramaswamy 2020, WACV, eq. 3): `alpha_k = (y - y_k) / y`, y_k the score with channel k set to 0;
/// `map = ReLU(sum_k alpha_k A_k)`. Where y is 0, alpha is 0; an |y| below a thousandth of the largest `|y - y_k|` is replaced by
/// that thousandth, with y's sign, since rounding would be all that is left of the quotient.
///
/// With a linear head `z_k = z - W_k f_k`, no pass is needed; elsewhere the head is evaluated once and once more for every channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AblationCam {
    /// What is explained.
    pub score: Score,
    /// Memory for one pass, in MB.
    pub memory_mb: f64,
}

impl Default for AblationCam {
    fn default() -> Self {
        AblationCam { score: Score::Logit, memory_mb: 256.0 }
    }
}

impl AblationCam {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("memory_mb", MEMORY_MB)];
}

impl AblationCam {
    /// Scores (n, k) without each channel, by formula.
    fn linear(&self, forward: &Forward, head: &crate::LinearHead, classes: &Tensor) -> Result<Tensor> {
        let (n, k, _, _) = forward.features.dims4()?;
        let pooled = pool(&forward.features)?;
        if self.score == Score::Logit {
            let taken = (head.class_weight(classes)? * pooled)?;
            return self.score.of(&forward.logits, classes)?.unsqueeze(1)?.broadcast_sub(&taken);
        }
        let taken = pooled.unsqueeze(2)?.broadcast_mul(&head.weight.t()?.unsqueeze(0)?)?; // (n, k, classes)
        let left = forward.logits.unsqueeze(1)?.broadcast_sub(&taken)?;
        let count = forward.logits.dim(1)?;
        let repeated = classes.unsqueeze(1)?.broadcast_as((n, k))?.contiguous()?.flatten_all()?;
        self.score.of(&left.reshape((n * k, count))?, &repeated)?.reshape((n, k))
    }

    /// The score (n, 1) and those without each channel (n, k) by passes of the head, as constants. The score too, and not
    /// from the pass that is explained: in training that one normalises otherwise than the head alone.
    fn by_passes(&self, forward: &Forward, classes: &Tensor) -> Result<(Tensor, Tensor)> {
        let (n, k, h, w) = forward.features.dims4()?;
        let features = forward.features.detach();
        let chunk = images_per_pass(forward, self.memory_mb);
        let mut rows = Vec::with_capacity(n);
        for i in 0..n {
            let mut row = Vec::new();
            for start in (0..k).step_by(chunk) {
                let count = chunk.min(k - start);
                let keep: Vec<f32> =
                    (0..count * k).map(|at| if at % k == start + at / k { 0.0 } else { 1.0 }).collect();
                let keep = Tensor::from_vec(keep, (count, k, 1, 1), features.device())?.to_dtype(features.dtype())?;
                let ablated = features.narrow(0, i, 1)?.broadcast_as((count, k, h, w))?.broadcast_mul(&keep)?;
                let class = classes.narrow(0, i, 1)?.broadcast_as(count)?.contiguous()?;
                row.push(self.score.of(&forward.model.head(&ablated)?, &class)?.detach());
            }
            rows.push(Tensor::cat(&row, 0)?);
        }
        let whole = self.score.of(&forward.model.head(&features)?, classes)?.detach().unsqueeze(1)?;
        Ok((whole, Tensor::stack(&rows, 0)?))
    }
}

/// The least |y|, as a part of the largest fall.
const LEAST: f64 = 1e-3;

impl Interpreter for AblationCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let (y, without, estimator, evaluations) = match forward.model.linear_head() {
            Some(head) => {
                let y = self.score.of(&forward.logits, classes)?.unsqueeze(1)?;
                (y, self.linear(forward, &head, classes)?, Estimator::Exact, 0)
            }
            None => {
                let (y, without) = self.by_passes(forward, classes)?;
                (y, without, Estimator::Perturbation, forward.features.dim(1)? + 1)
            }
        };
        let fall = y.broadcast_sub(&without)?;
        // A y near 0 is a difference of large numbers: divided by it, rounding would be all that is left of the map.
        let floor = (fall.detach().abs()?.max_keepdim(1)? * LEAST)?;
        let sign = (y.gt(0.0)?.to_dtype(y.dtype())? - y.lt(0.0)?.to_dtype(y.dtype())?)?;
        let small = y.abs()?.detach().le(&floor)?;
        let none = y.eq(0.0)?.to_dtype(y.dtype())?;
        let divisor = small.where_cond(&(&floor * &sign)?, &y)?;
        let some = none.affine(-1.0, 1.0)?;
        let safe = (divisor + (none * floor.affine(1.0, 1.0)?)?)?;
        let alpha = fall.broadcast_div(&safe)?.broadcast_mul(&some)?;
        Explanation::new(weighted_sum(&alpha, &forward.features)?, estimator, evaluations)
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
