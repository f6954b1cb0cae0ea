//! A classifier cut in two.

use candle_core::{Result, Tensor, bail};

use crate::{Score, ops};

/// A classifier cut at the layer to explain: `logits = head(features(images))`.
///
/// What every method relies on:
/// - A row of the output depends on its own image alone (BatchNorm and dropout in evaluation mode): methods pass masked copies of
///   an image together, in batches of any size.
/// - Tensors are f32 or f64.
/// - Without a linear head, `head` is made of candle ops that autograd follows: gradients are taken through it.
/// - The cut lies behind a ReLU, as a rule at the last map before pooling. On activations that can be negative the quotients of
///   Grad-CAM++ and XGrad-CAM may have a denominator near 0.
pub trait CamModel {
    /// Normalised images (n, c, h, w) to activations (n, k, h', w').
    fn features(&self, images: &Tensor) -> Result<Tensor>;
    /// Activations (n, k, h', w') to logits (n, classes).
    fn head(&self, features: &Tensor) -> Result<Tensor>;
    /// Some exactly when `head(A)` is the mean over positions of A, then a linear layer: the closed forms hold.
    fn linear_head(&self) -> Option<LinearHead>;
    /// What each position gives to each logit, (n, classes, h', w'), where the head treats every position by itself
    /// before it takes the mean, as SqueezeNet's does: `head(A)` is their sum, and a constant. Coalitions of positions
    /// then need no pass. None elsewhere, and where [`linear_head`](Self::linear_head) says the same.
    fn contributions(&self, _features: &Tensor) -> Option<Result<Tensor>> {
        None
    }
    /// Some where the head begins with a linear layer over all positions, as a VGG's does: what coalitions of positions
    /// add up there needs no pass through that layer.
    fn first_layer(&self) -> Option<FirstLayer> {
        None
    }
    /// What follows [`first_layer`](Self::first_layer): its outputs (n, hidden) to logits (n, classes).
    fn behind_first_layer(&self, _hidden: &Tensor) -> Result<Tensor> {
        bail!("a model with a first layer says what follows it")
    }
    /// `gradient` (n, k, h, w), the score's at `features`, as a tensor that can be differentiated once more, with
    /// respect to the features and the model's parameters. None: it is a constant.
    fn differentiable_gradient(
        &self,
        _features: &Tensor,
        _gradient: &Tensor,
        _score: Score,
        _classes: &Tensor,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// Each channel's mean over the training set, (k,), where it is known.
    fn mean_features(&self) -> Option<Tensor> {
        None
    }
}

impl<M: CamModel + ?Sized> CamModel for &M {
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        (**self).features(images)
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        (**self).head(features)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        (**self).linear_head()
    }
    fn contributions(&self, features: &Tensor) -> Option<Result<Tensor>> {
        (**self).contributions(features)
    }
    fn first_layer(&self) -> Option<FirstLayer> {
        (**self).first_layer()
    }
    fn behind_first_layer(&self, hidden: &Tensor) -> Result<Tensor> {
        (**self).behind_first_layer(hidden)
    }
    fn differentiable_gradient(
        &self,
        features: &Tensor,
        gradient: &Tensor,
        score: Score,
        classes: &Tensor,
    ) -> Result<Option<Tensor>> {
        (**self).differentiable_gradient(features, gradient, score, classes)
    }
    fn mean_features(&self) -> Option<Tensor> {
        (**self).mean_features()
    }
}

/// `hidden = sum_p weight_p A(p) + bias`.
#[derive(Clone, Debug)]
pub struct FirstLayer {
    /// (hidden, k, h, w).
    pub weight: Tensor,
    /// (hidden,).
    pub bias: Tensor,
}

/// `logits = weight mean_p A(p) + bias`.
#[derive(Clone, Debug)]
pub struct LinearHead {
    /// (classes, k).
    pub weight: Tensor,
    /// (classes,).
    pub bias: Tensor,
}

impl LinearHead {
    /// Activations (n, k, h, w) to logits (n, classes).
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        ops::rows(&ops::pool(features)?, &self.weight.t()?)?.broadcast_add(&self.bias)
    }
    /// `v W` for every image: (n, classes) to (n, k).
    pub fn channels(&self, v: &Tensor) -> Result<Tensor> {
        ops::rows(v, &self.weight)
    }
    /// The classes' rows of the weight, (n, k).
    pub fn class_weight(&self, classes: &Tensor) -> Result<Tensor> {
        self.weight.index_select(classes, 0)
    }
}

/// Which image, and which augmented view of it: the key of what is drawn for each image anew (permutations, noise, ties). `Random`
/// goes by `sample` alone; RISE's masks and Mask's jitter are the same for all images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleId {
    /// Index in its data set.
    pub sample: u64,
    /// Index of its augmented view.
    pub view: u64,
}
