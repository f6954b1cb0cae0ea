//! Maps of somebody's own model: pixels that it weighs itself, seen by every method.
//!
//!     cargo run --release --example explain
use cams::methods::Methods;
use cams::{CamModel, Forward, LinearHead};
use candle_core::{Device, Result, Tensor};

/// One convolution, average pooling and a linear layer.
struct Own {
    kernel: Tensor,
    classifier: LinearHead,
}

impl CamModel for Own {
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        images.conv2d(&self.kernel, 1, 1, 1, 1)?.relu()
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        self.classifier.logits(features)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        Some(self.classifier.clone())
    }
}

fn main() -> Result<()> {
    let draw = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
    let model =
        Own { kernel: draw(&[8, 3, 3, 3])?, classifier: LinearHead { weight: draw(&[5, 8])?, bias: draw(&[5])? } };
    let forward = Forward::new(&model, &draw(&[2, 3, 6, 6])?)?;
    let classes = Tensor::new(&[4u32, 0], &Device::Cpu)?; // explained, one for each image
    let methods = Methods::default();
    for name in Methods::NAMES {
        let Some(method) = methods.get(name) else { continue };
        let found = method.explain(&forward, &classes)?;
        println!("{name}: {:?}, {:?}, {} evaluations", found.map.dims(), found.estimators[0], found.evaluations);
    }
    Ok(())
}
