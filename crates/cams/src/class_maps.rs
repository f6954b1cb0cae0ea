//! Every class's CAM in the place of the activations.

use candle_core::{DType, Result, Tensor, bail};

use crate::{CamModel, Forward, LinearHead, SampleId, ops};

/// What a linear head makes of a layer's activations before they are pooled, and the head's bias: a model of its own,
/// whose channels are the classes and whose head is the mean over positions plus the bias.
///
/// With a linear head the logits, and what coalitions of positions add up to, depend on the activations through `W
/// A(p)` alone. A method that says so
/// ([`Interpreter::sees_class_maps_alone`](crate::Interpreter::sees_class_maps_alone)) finds its map here, for any
/// class and with any of its settings, without the activations: ten channels in the place of hundreds.
#[derive(Clone, Debug)]
pub struct ClassMaps {
    /// `sum_k W_ck A_k`, (n, classes, h, w).
    pub maps: Tensor,
    /// The head's bias, (classes,).
    pub bias: Tensor,
}

impl ClassMaps {
    /// Of activations (n, k, h, w).
    pub fn new(head: &LinearHead, features: &Tensor) -> Result<ClassMaps> {
        Ok(ClassMaps { maps: ops::class_maps(&head.weight, features)?, bias: head.bias.clone() })
    }

    /// As a pass to explain; the logits (n, classes) are those of the pass that the maps were made of.
    pub fn forward(&self, logits: &Tensor, ids: Vec<SampleId>) -> Forward<'_> {
        let (images, features) = (self.maps.clone(), self.maps.clone());
        Forward { model: self, images, features, logits: logits.clone(), ids, second_order: false }
    }

    fn head(&self) -> Result<LinearHead> {
        let identity = Tensor::eye(self.bias.dim(0)?, DType::F32, self.bias.device())?;
        Ok(LinearHead { weight: identity.to_dtype(self.bias.dtype())?, bias: self.bias.clone() })
    }
}

impl CamModel for ClassMaps {
    fn features(&self, _: &Tensor) -> Result<Tensor> {
        bail!("class maps are kept without the model that made them: they cannot be computed for other images")
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        self.head()?.logits(features)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        self.head().ok()
    }
}
