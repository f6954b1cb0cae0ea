//! A network cut in two, for explanations.

use std::sync::Arc;

use cams::{CamModel, FirstLayer, LinearHead, Score};
use candle_core::{Result, Tensor};
use kernels::graph::Shape;
use kernels::stage::{Mode, Precision};

use super::{Network, second_order};

/// A network cut behind one of its segments.
pub struct Cut<'n> {
    pub(super) network: &'n Network,
    pub(super) segment: usize,
}

impl Cut<'_> {
    /// Runs segments on `x` in eval mode; the last one's output, or `x` if there are none.
    fn run(&self, x: &Tensor, segments: std::ops::Range<usize>, precision: Precision) -> Result<Tensor> {
        let (mut out, trunk) = (Vec::new(), &self.network.parameters.trunk);
        self.network.run(x.clone(), trunk, segments, Mode::Eval, precision, &mut out)?;
        Ok(out.pop().unwrap_or_else(|| x.clone()))
    }

    fn is_last(&self) -> bool {
        self.segment + 1 == self.network.segments.len()
    }
}

impl CamModel for Cut<'_> {
    /// Of images that were changed, thousands of them where a method masks: what differs from the definition by one part
    /// in a million moves a score as little. The pass that is explained itself is [`Model::observe`](super::Model::observe)'s.
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, 0..self.segment + 1, Precision::F32)
    }

    fn head(&self, features: &Tensor) -> Result<Tensor> {
        let last = self.run(features, self.segment + 1..self.network.segments.len(), Precision::Full)?;
        self.network.tail().logits(&last)
    }

    fn differentiable_gradient(
        &self,
        features: &Tensor,
        gradient: &Tensor,
        score: Score,
        classes: &Tensor,
    ) -> Result<Option<Tensor>> {
        if !features.track_op() {
            return Ok(None);
        }
        let (head, parameters) = (Arc::new(self.network.head(self.segment)?), &self.network.parameters);
        second_order::differentiable(head, features, parameters, gradient, score, classes).map(Some)
    }

    fn mean_features(&self) -> Option<Tensor> {
        let mean = self.network.feature_mean.as_ref().filter(|_| self.is_last())?;
        Tensor::new(mean.as_slice(), self.network.device()).ok()
    }

    fn linear_head(&self) -> Option<LinearHead> {
        if self.is_last() { self.network.tail().linear_head()?.ok() } else { None }
    }

    fn contributions(&self, features: &Tensor) -> Option<Result<Tensor>> {
        if self.is_last() { self.network.tail().contributions(features) } else { None }
    }

    fn first_layer(&self) -> Option<FirstLayer> {
        let Shape { channels, h, w } = self.network.last();
        if self.is_last() { self.network.tail().first_layer([channels, h, w])?.ok() } else { None }
    }

    fn behind_first_layer(&self, hidden: &Tensor) -> Result<Tensor> {
        let Shape { h, w, .. } = self.network.last();
        self.network.tail().behind_first_layer(hidden, h, w)
    }
}
