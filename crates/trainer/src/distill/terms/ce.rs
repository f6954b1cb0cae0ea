use anyhow::Result;
use cams::methods::Methods;
use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use super::{Inputs, Loss, Part, Term};
use crate::nn::Model;

/// Cross-entropy with the labels.
pub struct CrossEntropy {
    smoothing: f64,
}

impl CrossEntropy {
    pub(super) const ABOUT: &str = "cross-entropy with the labels";

    pub(super) fn new(loss: &Loss, _: &Methods) -> Result<CrossEntropy> {
        Ok(CrossEntropy { smoothing: loss.label_smoothing })
    }
}

impl Term for CrossEntropy {
    fn parts(&self, _: &dyn Model) -> Result<Vec<Part>> {
        Ok(vec![])
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(cross_entropy(&inputs.pass.logits, inputs.labels, self.smoothing)?)
    }
}

/// Mean over images of `-(1 - s) log p_y - s mean_j log p_j`, p the softmax of `logits` (n, classes), y the `labels` (n,) and s the
/// label `smoothing` (Szegedy et al. 2016).
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> candle_core::Result<Tensor> {
    let log_p = log_softmax(logits, D::Minus1)?;
    let nll = log_p.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()?;
    if smoothing == 0.0 {
        return Ok(nll);
    }
    (nll * (1.0 - smoothing))? - (log_p.mean_all()? * smoothing)?
}
