//! The error of a network on labelled images.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor};

use crate::data::Images;
use crate::data::loader::Loader;
use crate::distill::distance::value;
use crate::distill::terms::cross_entropy;
use crate::nn::{Model, Network, Pass};

/// Errors in percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Of all images.
    pub error: f64,
    /// Of each class's images; None where there are none.
    pub error_per_class: Vec<Option<f64>>,
    /// Whether each image is classified wrongly.
    pub wrong: Vec<bool>,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Number of images.
    pub n: usize,
}

/// Images a forward pass.
const BATCH: usize = 250;

/// Evaluates `network` on images as they are, in full precision: for what is reported.
pub fn evaluate(network: &Network, images: &Images) -> Result<Evaluation> {
    run(network, images, |images| network.observe(images))
}

/// The same as fast as the network trains, in its own precision: for a curve.
pub fn evaluate_quickly(network: &Network, images: &Images) -> Result<Evaluation> {
    run(network, images, |images| network.glance(images))
}

/// The mean loss is summed in f64, in order.
fn run(network: &Network, images: &Images, pass: impl Fn(&Tensor) -> Result<Pass>) -> Result<Evaluation> {
    let classes = network.architecture.classes;
    ensure!(
        classes == images.classes,
        "the model has {classes} classes, the data {}: they do not belong together",
        images.classes
    );
    ensure!(!images.is_empty(), "there are no images to evaluate");
    let mut wrong = vec![0usize; classes];
    let mut count = vec![0usize; classes];
    let mut loss = 0.0;
    let mut each = Vec::with_capacity(images.len());
    for batch in Loader::each(images, BATCH) {
        let (_, batch) = batch?;
        let pass = pass(&network.images(&batch.pixels)?)?;
        let ce = cross_entropy(&pass.logits, &batch.labels_on(network.device())?, 0.0)?;
        loss += value(&ce)? * batch.len() as f64;
        let predicted = pass.logits.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        for (p, l) in predicted.iter().zip(&batch.labels) {
            count[*l as usize] += 1;
            wrong[*l as usize] += usize::from(p != l);
            each.push(p != l);
        }
    }
    let percent = |wrong: usize, n: usize| 100.0 * wrong as f64 / n as f64;
    let n = images.len();
    Ok(Evaluation {
        error: percent(wrong.iter().sum(), n),
        error_per_class: wrong.iter().zip(&count).map(|(w, n)| (*n > 0).then(|| percent(*w, *n))).collect(),
        wrong: each,
        loss: loss / n as f64,
        n,
    })
}
