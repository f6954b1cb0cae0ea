//! A model small enough to know everything about.
#![allow(dead_code)] // Each test uses its part.

use cams::{CamModel, LinearHead};
use candle_core::{D, DType, Device, Result, Tensor};
use testkit::tensor;

/// Mixed channels behind a ReLU, then pooling and one linear layer, or pooling and two with a ReLU between them.
pub struct Toy {
    mix: Tensor,
    head: LinearHead,
    hidden: Tensor,
    pub linear: bool,
}

impl Toy {
    pub fn new(channels: usize, k: usize, classes: usize, linear: bool) -> Toy {
        let draw = |shape: &[usize], seed| tensor(shape, seed, DType::F64, &Device::Cpu).unwrap();
        Toy {
            mix: (draw(&[k, channels], 1) * 2.0).unwrap(),
            head: LinearHead { weight: (draw(&[classes, k], 2) * 3.0).unwrap(), bias: draw(&[classes], 3) },
            hidden: draw(&[k, k], 4),
            linear,
        }
    }
}

impl CamModel for Toy {
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = images.dims4()?;
        let k = self.mix.dim(0)?;
        let flat = images.reshape((n, 1, c, h * w))?;
        let mixed = flat.broadcast_mul(&self.mix.reshape((1, k, c, 1))?)?.sum(2)?;
        // 0.1 keeps features alive on zero images.
        (mixed + 0.1)?.relu()?.reshape((n, k, h, w))
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        if self.linear {
            return self.head.logits(features);
        }
        let pooled = features.sqr()?.mean((2, 3))?.unsqueeze(1)?;
        let hidden = pooled.broadcast_mul(&self.hidden.unsqueeze(0)?)?.sum(D::Minus1)?.tanh()?;
        self.head.logits(&hidden.unsqueeze(2)?.unsqueeze(3)?)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        self.linear.then(|| self.head.clone())
    }
    fn mean_features(&self) -> Option<Tensor> {
        let k = self.mix.dim(0).ok()?;
        Tensor::new(vec![0.3f64; k], &Device::Cpu).ok()
    }
}
