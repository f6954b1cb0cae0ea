//! Distils one's own candle model on one's own tensors: `cargo run --release --example own_model`
use anyhow::Result;
use cams::{CamModel, LinearHead, methods::Methods};
use candle_core::{Device, Tensor, Var};
use trainer::config::{Loss, Optim, Weights};
use trainer::data::loader::Batch;
use trainer::distill::{Learner, Objective, teacher::Frozen};
use trainer::nn::{Mode, Model, Pass, linear_head};

/// Two convolutions, then average pooling and a linear layer.
struct Own(Vec<Var>);
impl Own {
    fn new(k: usize) -> Result<Own> {
        let shapes: [&[usize]; 4] = [&[k, 1, 3, 3], &[k, k, 3, 3], &[4, k], &[4]];
        Ok(Own(shapes.iter().map(|s| Var::randn(0f32, 0.3, *s, &Device::Cpu)).collect::<candle_core::Result<_>>()?))
    }
    fn layer(&self, i: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        x.conv2d(&self.0[i], 1, 1, 1, 1)?.relu()
    }
}
impl CamModel for Own {
    fn features(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        self.layer(1, &self.layer(0, images)?)
    }
    fn head(&self, features: &Tensor) -> candle_core::Result<Tensor> {
        self.linear_head().expect("it has one").logits(features)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        Some(LinearHead { weight: self.0[2].as_tensor().clone(), bias: self.0[3].as_tensor().clone() })
    }
}
impl Model for Own {
    fn forward(&self, images: &Tensor, _: Mode) -> Result<Pass> {
        let layer1 = self.layer(0, images)?;
        let last = self.layer(1, &layer1)?;
        let logits = linear_head(self)?.logits(&last)?;
        Ok(Pass::new(images, [("layer1", layer1), ("last", last)], logits))
    }
    fn cut<'m>(&'m self, _: &str) -> Result<Box<dyn CamModel + 'm>> {
        Ok(Box::new(self)) // at `last`; maps of layer1 would need another CamModel, cut there
    }
    fn variables(&self) -> &[Var] {
        &self.0
    }
    fn attention_layers(&self) -> Vec<String> {
        vec!["layer1".into()]
    }
}
fn main() -> Result<()> {
    let class = Tensor::arange(0f32, 64.0, &Device::Cpu)?.reshape((4, 16, 1, 1))?.transpose(0, 1)?.flatten_to(1)?;
    let images = Tensor::rand(0f32, 1.0, (64, 1, 8, 8), &Device::Cpu)?.broadcast_add(&class.unsqueeze(1)?)?;
    let batch = Batch::new((images / 16.0)?, (0..64).map(|i| i % 4).collect())?; // a class is a brightness
    let weights = Weights { ce: 0.1, kd: 0.9, explanation: 0.01, attention: 1.0, ..Weights::default() };
    let objective = Objective::new(&Loss { weights, ..Loss::default() }, &Methods::default())?;
    let asked = objective.parts(&Own::new(1)?)?;
    let (optim, teacher) = (Optim { lr: 0.05, ..Optim::default() }, Frozen::new(Own::new(16)?, asked));
    let mut student = Learner::new(Own::new(4)?, Some(teacher), objective, &optim, [100, 1])?;
    (0..100).try_for_each(|_| student.step(&batch).map(|m| println!("{:3}: {:.4} {:.4?}", m.step, m.total, m.terms)))
}
