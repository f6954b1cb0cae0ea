//! What a student has in common with its teacher on images that neither was trained on.

use std::collections::BTreeMap;

use anyhow::Result;
use cams::Interpreter;
use cams::methods::{Fill, GradCam, GradCamPp, ScoreCam, ShapCam, Space};
use cams::metrics::{cosine, is_finite, pearson, spearman, top_overlap};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use crate::data::Images;
use crate::data::loader::Loader;
use crate::nn::{Model, Network};

/// Of a student and its teacher, means over the test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Images on which both name the same class, in percent.
    pub same_class: f64,
    /// KL(teacher || student) of the probabilities, in nats.
    pub kl: f64,
    /// Of the maps of the labels' classes at the last layer, by method.
    pub maps: BTreeMap<String, Alike>,
}

/// How alike two sets of maps are: means over the images where the figure is defined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alike {
    /// Pearson correlation of the signed maps.
    pub pearson: f64,
    /// Correlation of the signed maps' ranks.
    pub spearman: f64,
    /// Cosine of the maps after ReLU.
    pub cosine: f64,
    /// Intersection over union of the highest fifth of the signed maps.
    pub top20: f64,
    /// Images on which the correlation is defined.
    pub n: usize,
}

/// Images a forward pass.
const BATCH: usize = 250;

/// Sums, and how many numbers are in each.
#[derive(Default)]
struct Sums([(f64, usize); 4]);

impl Sums {
    fn add(&mut self, own: &[f64], teacher: &[f64]) {
        // What is no number has a place in an order, and max(NaN, 0) is 0: neither says how alike two maps are.
        if !is_finite(own) || !is_finite(teacher) {
            return;
        }
        let positive = |map: &[f64]| map.iter().map(|v| v.max(0.0)).collect::<Vec<_>>();
        let figures = [
            pearson(own, teacher),
            spearman(own, teacher),
            cosine(&positive(own), &positive(teacher)),
            Some(top_overlap(own, teacher, 0.2)),
        ];
        for ((sum, n), figure) in self.0.iter_mut().zip(figures) {
            if let Some(figure) = figure {
                (*sum, *n) = (*sum + figure, *n + 1);
            }
        }
    }

    fn means(&self) -> Alike {
        let [pearson, spearman, cosine, top20] = self.0.map(|(sum, n)| sum / n.max(1) as f64);
        Alike { pearson, spearman, cosine, top20, n: self.0[0].1 }
    }
}

/// Measures a student and its teacher, in full precision. The methods are always the same four, so that runs can be
/// compared whatever they were trained to match; two of them where a network's head is not pooling and one linear layer:
/// masked features are not defined there, and sampled Shapley values would take hours.
pub fn measure(student: &Network, teacher: &Network, images: &Images) -> Result<Agreement> {
    let methods: [(&str, &dyn Interpreter); 4] = [
        ("grad_cam", &GradCam::default()),
        ("grad_cam_pp", &GradCamPp::default()),
        ("score_cam", &ScoreCam { space: Space::Features, ..ScoreCam::default() }),
        ("shap_cam", &ShapCam { fill: Fill::ChannelMean, ..ShapCam::default() }),
    ];
    let networks = [student, teacher];
    let mut sums: BTreeMap<&str, Sums> = methods.iter().map(|(name, _)| (*name, Sums::default())).collect();
    let (mut same, mut kl) = (0usize, 0.0);
    let cuts = [student.cut("last")?, teacher.cut("last")?];
    let linear = cuts.iter().all(|cut| cut.linear_head().is_some());
    let methods = if linear { &methods[..] } else { &methods[..2] };
    for batch in Loader::each(images, BATCH) {
        let (_, batch) = batch?;
        let pixels = &batch.pixels;
        let passes = [student.observe(&student.images(pixels)?)?, teacher.observe(&teacher.images(pixels)?)?];
        let top = |t: &Tensor| t.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>();
        let (own, said) = (top(&passes[0].logits)?, top(&passes[1].logits)?);
        same += own.iter().zip(&said).filter(|(a, b)| a == b).count();
        kl += divergence(&passes[1].logits, &passes[0].logits)?;
        for &(name, method) in methods {
            let mut maps = Vec::new();
            for ((network, cut), pass) in networks.iter().zip(&cuts).zip(&passes) {
                let labels = batch.labels_on(network.device())?;
                let signed = method.signed(&pass.seen(&**cut, "last", &batch.ids)?, &labels)?.map;
                maps.push(signed.detach().to_dtype(DType::F64)?.flatten_from(1)?);
            }
            if maps[0].dims() != maps[1].dims() {
                continue; // Layers of different sizes have no positions in common.
            }
            let (own, said) = (maps[0].to_vec2::<f64>()?, maps[1].to_vec2::<f64>()?);
            let of = sums.entry(name).or_default();
            own.iter().zip(&said).for_each(|(a, b)| of.add(a, b));
        }
    }
    let n = images.len() as f64;
    Ok(Agreement {
        same_class: 100.0 * same as f64 / n,
        kl: kl / n,
        maps: sums.into_iter().filter(|(_, s)| s.0[3].1 > 0).map(|(name, s)| (name.into(), s.means())).collect(),
    })
}

/// `sum_i KL(softmax(a_i) || softmax(b_i))`, in f64.
fn divergence(a: &Tensor, b: &Tensor) -> Result<f64> {
    let log = |t: &Tensor| log_softmax(&t.to_dtype(DType::F64)?, D::Minus1);
    let (a, b) = (log(a)?, log(b)?);
    Ok((a.exp()? * (&a - b)?)?.sum_all()?.to_scalar()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_is_not_finite_is_like_no_other() {
        let mut sums = Sums::default();
        for broken in [f64::NAN, f64::INFINITY] {
            sums.add(&[broken, 1.0, 2.0], &[1.0, 2.0, 3.0]);
            sums.add(&[1.0, 2.0, 3.0], &[broken, 1.0, 2.0]);
        }
        assert_eq!(sums.0, [(0.0, 0); 4]);
        sums.add(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]);
        assert!(sums.0.iter().all(|(sum, n)| (sum - 1.0).abs() < 1e-12 && *n == 1));
    }
}
