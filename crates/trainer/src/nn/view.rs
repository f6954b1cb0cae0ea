//! A network cut in two, for explanations.

use std::sync::Arc;

use cams::{CamModel, LinearHead, Score};
use candle_core::Tensor;
use kernels::stage::{Mode, Precision};

use super::{Network, Pass, second_order};

/// A network cut at a layer.
pub struct View<'n> {
    pub(super) network: &'n Network,
    pub(super) layer: usize,
    pub(super) second_order: bool,
}

impl View<'_> {
    /// The same view, whose gradients at inner layers can be differentiated once more.
    pub fn with_second_order(self) -> Self {
        View { second_order: true, ..self }
    }

    /// This view of a pass that was made already.
    pub fn forward(&self, pass: &Pass, ids: Vec<cams::SampleId>) -> cams::Forward<'_> {
        cams::Forward {
            model: self,
            images: pass.images.clone(),
            features: pass.layers[self.layer].clone(),
            logits: pass.logits.clone(),
            ids,
        }
    }
}

impl CamModel for View<'_> {
    fn features(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let mut out = Vec::new();
        self.network.run(
            images.clone(),
            &self.network.parameters.trunk,
            0..self.layer + 1,
            Mode::Eval,
            Precision::Full,
            &mut out,
        )?;
        out.pop().ok_or_else(|| candle_core::Error::msg("the model has no layers"))
    }

    fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        let mut out = Vec::new();
        let n = self.network.segments.len();
        self.network.run(
            features.clone(),
            &self.network.parameters.trunk,
            self.layer + 1..n,
            Mode::Eval,
            Precision::Full,
            &mut out,
        )?;
        self.network.linear_head()?.logits(out.last().unwrap_or(features))
    }

    fn differentiable_gradient(
        &self,
        features: &Tensor,
        gradient: &Tensor,
        score: Score,
        classes: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        if !self.second_order || !features.track_op() {
            return Ok(None);
        }
        let (head, parameters) = (Arc::new(self.network.head(self.layer)), &self.network.parameters);
        second_order::differentiable(head, features, parameters, gradient, score, classes).map(Some)
    }

    fn mean_features(&self) -> Option<Tensor> {
        if self.layer + 1 < self.network.segments.len() {
            return None;
        }
        let mean = self.network.feature_mean.as_ref()?;
        Tensor::new(mean.as_slice(), self.network.device()).ok()
    }

    fn linear_head(&self) -> Option<LinearHead> {
        if self.layer + 1 < self.network.segments.len() {
            return None;
        }
        self.network.linear_head().ok()
    }
}
