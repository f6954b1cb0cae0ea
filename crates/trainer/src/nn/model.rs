//! What a student or a teacher must be able to do.

use anyhow::{Context, Result, bail};
use cams::{CamModel, LinearHead, SampleId};
use candle_core::{Tensor, Var};
pub use kernels::stage::Mode;

use super::Measured;
use crate::error::unknown;

/// A classifier that can be trained, asked and explained. [`Network`](super::Network) is ours; one's own candle model
/// needs the methods without a default.
pub trait Model {
    /// A batch's pixels (n, c, h, w) as this model takes them: normalised, in its type and on its device.
    fn images(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(pixels.clone())
    }

    /// One pass of images (n, c, h, w), recorded for backward: with the batch's statistics in train mode, with running
    /// ones in eval mode.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Pass>;

    /// A pass in eval mode and full precision of which nothing is recorded: for errors and maps that are reported.
    fn observe(&self, images: &Tensor) -> Result<Pass> {
        Ok(self.forward(images, Mode::Eval)?.detach())
    }

    /// The same as fast as the model trains: for what a teacher says during training, and for curves.
    fn glance(&self, images: &Tensor) -> Result<Pass> {
        self.observe(images)
    }

    /// The model cut at a layer that its passes name. Whatever a method computes there beyond the given pass is
    /// computed in eval mode: in train mode BatchNorm would mix the images of a batch.
    fn cut<'m>(&'m self, layer: &str) -> Result<Box<dyn CamModel + 'm>>;

    /// What is trained; nothing if the model is frozen.
    fn variables(&self) -> &[Var];

    /// Takes in what a pass in train mode has measured: BatchNorm's statistics.
    fn update_statistics(&mut self, _pass: &Pass) -> Result<()> {
        Ok(())
    }

    /// Running statistics, for a moving average of the model.
    fn statistics(&self) -> Result<Vec<Tensor>> {
        Ok(vec![])
    }

    /// Layers whose attention is transferred, in order: as many of a student as of its teacher.
    fn attention_layers(&self) -> Vec<String> {
        vec![]
    }
}

/// The gradient of a loss (a scalar) with respect to each of these variables.
pub fn gradient(of: &Tensor, variables: &[Var]) -> Result<Vec<Tensor>> {
    if variables.is_empty() {
        bail!("the network is not trained: it has no gradient");
    }
    let grads = of.backward()?;
    let found: Vec<_> = variables.iter().map(|v| grads.get(v.as_tensor())).collect();
    if found.iter().all(Option::is_none) {
        bail!("no gradient reached the network");
    }
    // A loss on maps of activations says nothing of the classifier.
    let each = variables.iter().zip(found);
    Ok(each.map(|(v, g)| g.cloned().map_or_else(|| v.zeros_like(), Ok)).collect::<candle_core::Result<_>>()?)
}

/// Pooling and linear layer behind `last`.
pub fn linear_head(model: &dyn Model) -> Result<LinearHead> {
    let head = model.cut("last")?.linear_head();
    head.context("average pooling and a linear layer must follow \"last\" for this: the model ends otherwise")
}

/// Everything that one pass gives.
pub struct Pass {
    /// Normalised images.
    pub images: Tensor,
    /// Activations by layer, in order; `last` is among them. One tensor may go by two names.
    pub features: Vec<(String, Tensor)>,
    /// (n, classes).
    pub logits: Tensor,
    /// What the batch has measured, in train mode.
    pub statistics: Vec<Measured>,
}

impl Pass {
    /// A pass of a model without statistics: its activations by layer, and its logits.
    pub fn new<const N: usize>(images: &Tensor, features: [(&str, Tensor); N], logits: Tensor) -> Pass {
        let features = features.map(|(name, t)| (name.to_string(), t)).into();
        Pass { images: images.clone(), features, logits, statistics: vec![] }
    }

    /// The activations (n, k, h, w) at a layer.
    pub fn at(&self, layer: &str) -> Result<&Tensor> {
        let found = self.features.iter().find(|(name, _)| name == layer).map(|(_, features)| features);
        let names = || self.features.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        found.ok_or_else(|| unknown("layer", layer, &names()))
    }

    /// The same numbers, of which nothing is recorded.
    pub fn detach(self) -> Pass {
        let features = self.features.into_iter().map(|(name, t)| (name, t.detach())).collect();
        Pass { features, logits: self.logits.detach(), ..self }
    }

    /// As explanation methods take it, seen from `cut`, the model cut at `layer`.
    pub fn seen<'m>(&self, cut: &'m dyn CamModel, layer: &str, ids: &[SampleId]) -> Result<cams::Forward<'m>> {
        Ok(cams::Forward {
            model: cut,
            images: self.images.clone(),
            features: self.at(layer)?.clone(),
            logits: self.logits.clone(),
            ids: ids.to_vec(),
            second_order: false,
        })
    }
}
