//! The error of a network on labelled images.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor};

use crate::data::loader::{Batch, Loader};
use crate::data::{Images, UNSAID};
use crate::distill::distance::value;
use crate::distill::terms::{binary_cross_entropy, cross_entropy};
use crate::nn::{Model, Network, Pass};

/// Errors in percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Of all images.
    pub error: f64,
    /// Of each class's images; None where there are none.
    pub error_per_class: Vec<Option<f64>>,
    /// Whether each image is classified wrongly: the most probable class is not the label or, where images may show
    /// several classes, none of those.
    pub wrong: Vec<bool>,
    /// Mean cross-entropy; binary where images may show several classes.
    pub loss: f64,
    /// Where images may show several classes: the mean over classes of the average precision.
    pub mean_average_precision: Option<f64>,
    /// Number of images.
    pub n: usize,
}

/// Images a forward pass.
const BATCH: usize = 250;

/// Evaluates `network` on images as they are, in full precision: for what is reported.
pub fn evaluate(network: &Network, images: &Images) -> Result<Evaluation> {
    evaluate_with(network, images, |_, _| Ok(()))
}

/// The same; `look` is shown every batch and what the network says of it.
pub fn evaluate_with(
    network: &Network,
    images: &Images,
    look: impl FnMut(&Batch, &Pass) -> Result<()>,
) -> Result<Evaluation> {
    run(network, images, |images| network.observe(images), look)
}

/// The same as fast as the network trains, in its own precision: for a curve.
pub fn evaluate_quickly(network: &Network, images: &Images) -> Result<Evaluation> {
    run(network, images, |images| network.glance(images), |_, _| Ok(()))
}

/// The mean loss is summed in f64, in order.
fn run(
    network: &Network,
    images: &Images,
    pass: impl Fn(&Tensor) -> Result<Pass>,
    mut look: impl FnMut(&Batch, &Pass) -> Result<()>,
) -> Result<Evaluation> {
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
    let mut scores: Vec<Vec<(f32, f32)>> = vec![vec![]; classes];
    for batch in Loader::each(images, BATCH) {
        let (_, batch) = batch?;
        let pass = pass(&network.images(&batch.pixels)?)?;
        look(&batch, &pass)?;
        let of_batch = match batch.shown_on(network.device())? {
            Some(shown) => binary_cross_entropy(&pass.logits, &shown)?,
            None => cross_entropy(&pass.logits, &batch.labels_on(network.device())?, 0.0)?,
        };
        loss += value(&of_batch)? * batch.len() as f64;
        let logits = pass.logits.to_dtype(DType::F32)?;
        let predicted = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let shown = batch.shown.as_deref().map(|shown| shown.chunks_exact(classes).collect::<Vec<_>>());
        for (i, (p, l)) in predicted.iter().zip(&batch.labels).enumerate() {
            let is_wrong = shown.as_ref().map_or(p != l, |shown| shown[i][*p as usize] != 1.0);
            count[*l as usize] += 1;
            wrong[*l as usize] += usize::from(is_wrong);
            each.push(is_wrong);
        }
        for (shown, logits) in shown.iter().flatten().zip(logits.to_vec2::<f32>()?) {
            scores.iter_mut().zip(shown.iter().zip(logits)).for_each(|(all, (shown, z))| all.push((z, *shown)));
        }
    }
    let percent = |wrong: usize, n: usize| 100.0 * wrong as f64 / n as f64;
    let n = images.len();
    Ok(Evaluation {
        error: percent(wrong.iter().sum(), n),
        error_per_class: wrong.iter().zip(&count).map(|(w, n)| (*n > 0).then(|| percent(*w, *n))).collect(),
        wrong: each,
        loss: loss / n as f64,
        mean_average_precision: if images.several { mean_average_precision(scores) } else { None },
        n,
    })
}

/// Mean over the classes that are shown at all of the area under precision and recall, as the VOC challenge has it since 2010: a
/// step for every image that shows the class, in falling order of its score, each as high as the highest precision from
/// there on. Entries are (score, shown).
fn mean_average_precision(classes: Vec<Vec<(f32, f32)>>) -> Option<f64> {
    let mut each = vec![];
    for mut scores in classes {
        scores.retain(|(_, shown)| *shown != UNSAID);
        // Of equal scores those that are not shown come first: a constant is not rewarded.
        scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)));
        let ranks = scores.iter().enumerate().filter(|(_, (_, shown))| *shown == 1.0).map(|(at, _)| at + 1);
        let precision: Vec<f64> = ranks.zip(1..).map(|(rank, found)| f64::from(found) / rank as f64).collect();
        let mut highest: f64 = 0.0;
        let steps = precision.iter().rev().map(|p| {
            highest = highest.max(*p);
            highest
        });
        let sum: f64 = steps.sum();
        if !precision.is_empty() {
            each.push(100.0 * sum / precision.len() as f64);
        }
    }
    (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_by_hand() {
        // Ranks 1 and 3 of the first class, rank 2 of the second; the third is never shown.
        let first = vec![(0.9, 1.0), (0.1, 0.0), (0.5, 1.0), (0.7, 0.0), (0.8, UNSAID)];
        let second = vec![(0.2, 0.0), (0.2, 1.0)];
        let found = mean_average_precision(vec![first, second, vec![(0.3, 0.0)]]);
        let expected = 100.0 * ((1.0 + 2.0 / 3.0) / 2.0 + 0.5) / 2.0;
        assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?}");
        // Ranks 2 and 3: 1/2 there, but 2/3 from there on.
        let late = vec![(0.9, 0.0), (0.5, 1.0), (0.7, 1.0)];
        assert!((mean_average_precision(vec![late]).unwrap() - 100.0 * 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(mean_average_precision(vec![vec![]]), None);
    }
}
