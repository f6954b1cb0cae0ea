//! A classifier's steps by candle's ops, on values alone or with tangents, and the closed forms that follow from them.

use cams::maps::{adaptive_average, gated, relu};
use cams::{FirstLayer, LinearHead};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor, bail};

use super::Mode;
use crate::models::{Classifier, LinearAt, Step};

/// A classifier with its parameters.
#[derive(Clone, Debug)]
pub struct Tail {
    classifier: Classifier,
    /// Flat.
    parameters: Tensor,
    /// Offset of the first of them among the network's.
    base: usize,
}

impl Tail {
    /// `parameters` are those behind offset `base`.
    pub fn new(classifier: &Classifier, parameters: Tensor, base: usize) -> Tail {
        Tail { classifier: classifier.clone(), parameters, base }
    }

    fn weight(&self, at: usize, rows: usize, columns: usize) -> Result<Tensor> {
        self.parameters.narrow(0, at - self.base, rows * columns)?.reshape((rows, columns))
    }

    fn bias(&self, at: usize, rows: usize) -> Result<Tensor> {
        self.parameters.narrow(0, at - self.base, rows)
    }

    /// Pooling and a linear layer, in either order, if that is all.
    pub fn linear_head(&self) -> Option<Result<LinearHead>> {
        let LinearAt { weight, bias, inputs, outputs } = self.classifier.linear_head()?;
        let head = || Ok(LinearHead { weight: self.weight(weight, outputs, inputs)?, bias: self.bias(bias, outputs)? });
        Some(head())
    }

    /// What each position of activations (n, k, h, w) gives to each logit, (n, classes, h, w), if every step before the
    /// final pooling sees one position alone.
    pub fn contributions(&self, features: &Tensor) -> Option<Result<Tensor>> {
        let (last, steps) = self.classifier.steps.split_last()?;
        let alone = |s: &Step| matches!(s, Step::Dropout(_) | Step::Relu | Step::Conv { .. } | Step::Pad(_));
        if *last != Step::Pool || !steps.iter().all(alone) {
            return None;
        }
        let padding: usize = steps.iter().map(|s| if let Step::Pad(by) = s { *by } else { 0 }).sum();
        let contributions = || {
            let (_, _, h, w) = features.dims4()?;
            let all = self.run(steps, features, &mut |_, x| Ok(x))?;
            // What the frame of zeros gives depends on no activation.
            let positions = (h + 2 * padding) * (w + 2 * padding);
            all.narrow(2, padding, h)?.narrow(3, padding, w)? / positions as f64
        };
        Some(contributions())
    }

    /// A linear layer over all positions of activations (k, h, w), if the classifier begins with one.
    pub fn first_layer(&self, [k, h, w]: [usize; 3]) -> Option<Result<FirstLayer>> {
        let (_, Step::Linear { weight, bias, inputs, outputs }) = self.first(h, w)? else { return None };
        if inputs != k * h * w {
            return None;
        }
        let layer = || {
            let weight = self.weight(weight, outputs, inputs)?.reshape((outputs, k, h, w))?;
            Ok(FirstLayer { weight, bias: self.bias(bias, outputs)? })
        };
        Some(layer())
    }

    /// The first step that changes anything of flattened activations of this size, and where it stands.
    fn first(&self, h: usize, w: usize) -> Option<(usize, Step)> {
        let changes = |s: &Step| match s {
            Step::Flatten | Step::Dropout(_) => false,
            Step::AdaptivePool(side) => (*side, *side) != (h, w),
            _ => true,
        };
        let at = self.classifier.steps.iter().position(changes)?;
        self.classifier.steps[..at].contains(&Step::Flatten).then(|| (at, self.classifier.steps[at]))
    }

    /// What follows a first layer.
    pub fn behind_first_layer(&self, hidden: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        let Some((at, _)) = self.first(h, w) else { bail!("the classifier does not begin with a linear layer") };
        self.run(&self.classifier.steps[at + 1..], hidden, &mut |_, x| Ok(x))
    }

    /// Activations (n, k, h, w) to logits (n, classes), without dropout.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        if let Some(head) = self.linear_head() {
            return head?.logits(features);
        }
        self.run(&self.classifier.steps, features, &mut |_, x| Ok(x))
    }

    /// The same in a mode; in training `drop(p, x)` is what is left of x.
    pub fn forward(
        &self,
        features: &Tensor,
        mode: Mode,
        drop: &mut dyn FnMut(f64, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let drops = self.classifier.steps.iter().any(|s| matches!(s, Step::Dropout(p) if *p > 0.0));
        if mode == Mode::Eval || !drops {
            self.logits(features)
        } else {
            self.run(&self.classifier.steps, features, drop)
        }
    }

    fn run(&self, steps: &[Step], x: &Tensor, drop: &mut dyn FnMut(f64, Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let mut x = x.clone();
        for step in steps {
            x = match *step {
                Step::Dropout(p) => drop(p, x)?,
                Step::Relu => relu(&x)?,
                _ => self.linear(step, &x, true)?,
            };
        }
        Ok(x)
    }

    /// A linear step, with or without its bias.
    fn linear(&self, step: &Step, x: &Tensor, biased: bool) -> Result<Tensor> {
        match *step {
            Step::Pool => cams::ops::pool(x),
            Step::AdaptivePool(side) => {
                let (n, k, h, w) = x.dims4()?;
                adaptive_average(&x.reshape((n * k, h, w))?, side, side)?.reshape((n, k, side, side))
            }
            Step::Pad(by) => x.pad_with_zeros(2, by, by)?.pad_with_zeros(3, by, by),
            Step::Flatten => x.flatten_from(1),
            Step::Linear { weight, bias, inputs, outputs } => {
                let weight = self.weight(weight, outputs, inputs)?;
                let y = if weight.track_op() { x.matmul(&weight.t()?)? } else { constant_product(x, weight)? };
                if biased { y.broadcast_add(&self.bias(bias, outputs)?) } else { Ok(y) }
            }
            Step::Conv { weight, bias, inputs, outputs } => {
                let (n, k, h, w) = x.dims4()?;
                let weight = self.weight(weight, outputs, inputs)?;
                // (outputs, inputs) times (inputs, positions), image by image.
                let weight = weight.unsqueeze(0)?.broadcast_as((n, outputs, k))?.contiguous()?;
                let y = weight.matmul(&x.reshape((n, k, h * w))?)?.reshape((n, outputs, h, w))?;
                if biased { y.broadcast_add(&self.bias(bias, outputs)?.reshape((1, outputs, 1, 1))?) } else { Ok(y) }
            }
            Step::Relu | Step::Dropout(_) => bail!("{step:?} is no linear step"),
        }
    }

    /// Logits and their derivative along a direction of the activations, both (n, classes).
    pub fn tangent(&self, value: &Tensor, tangent: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some(head) = self.linear_head() {
            let head = head?;
            let without_bias = LinearHead { weight: head.weight.clone(), bias: head.bias.zeros_like()? };
            return Ok((head.logits(value)?, without_bias.logits(tangent)?));
        }
        let (mut value, mut tangent) = (value.clone(), tangent.clone());
        for step in &self.classifier.steps {
            match step {
                Step::Dropout(_) => {}
                Step::Relu => (tangent, value) = (gated(&value, &tangent)?, relu(&value)?),
                _ => (value, tangent) = (self.linear(step, &value, true)?, self.linear(step, &tangent, false)?),
            }
        }
        Ok((value, tangent))
    }
}

/// `x` (n, inputs) times the transpose of a `weight` (outputs, inputs) that is not trained. candle's own product computes
/// the gradient of both its factors, wanted or not; that of a VGG's weight is 100 million numbers.
fn constant_product(x: &Tensor, weight: Tensor) -> Result<Tensor> {
    let y = x.detach().matmul(&weight.t()?)?;
    if x.track_op() { x.apply_op2(&y, ConstantProduct { weight }) } else { Ok(y) }
}

/// Of an `x` and its product with a constant: the product, with the gradient of `x` alone.
struct ConstantProduct {
    weight: Tensor,
}

impl CustomOp2 for ConstantProduct {
    fn name(&self) -> &'static str {
        "constant-product"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, y: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, y: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }
    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        y: &MetalStorage,
        layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Ok((y.try_clone(layout)?, layout.shape().clone()))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.matmul(&self.weight)?), None))
    }
}
