//! What a student has in common with its teacher on images that neither was trained on.

use std::collections::BTreeMap;

use anyhow::Result;
use cams::methods::{Fill, Methods, ScoreCam, ShapCam, Space};
use cams::metrics::{cosine, is_finite, pearson, spearman, top_overlap};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use crate::data::loader::Batch;
use crate::distill::cache::Cache;
use crate::distill::terms::Class;
use crate::distill::{MapOf, Part};
use crate::error::sentence;
use crate::nn::{Model, Network, Pass};
use crate::terminal::say;

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

/// What both are asked for: the logits and the signed maps of the labels' classes at `last`, by methods that are always the same, so
/// that runs can be compared whatever they were trained to match. Two of the four where a network's head is not pooling and one
/// linear layer: masked features are not defined there, and sampled Shapley values would take hours.
pub fn parts(student: &Network, teacher: &Network) -> Result<Vec<Part>> {
    let methods = Methods {
        score_cam: ScoreCam { space: Space::Features, ..ScoreCam::default() },
        shap_cam: ShapCam { fill: Fill::ChannelMean, ..ShapCam::default() },
        ..Methods::default()
    };
    let mut linear = true;
    for network in [student, teacher] {
        linear &= network.cut("last")?.linear_head().is_some();
    }
    let names = ["grad_cam", "grad_cam_pp", "score_cam", "shap_cam"];
    let map = |method: &&str| {
        let (methods, method, layer) = (methods.clone(), method.to_string(), "last".to_string());
        Part::Map(Box::new(MapOf { methods, method, layer, class: Class::Label, relu: false }))
    };
    Ok(std::iter::once(Part::Logits).chain(names[..if linear { 4 } else { 2 }].iter().map(map)).collect())
}

/// Says that a teacher's answers are not kept.
pub fn without_cache(error: &anyhow::Error) {
    say(format!("what the teacher says of the test images is not kept: {}", sentence(error)));
}

/// Measures a student and its teacher, batch by batch, in full precision.
pub struct Comparison<'a> {
    student: &'a Network,
    teacher: &'a Network,
    parts: Vec<Part>,
    /// What the teacher says of the images, if that is kept.
    cache: Option<Cache>,
    sums: BTreeMap<String, Sums>,
    same: usize,
    kl: f64,
    n: usize,
}

impl<'a> Comparison<'a> {
    /// Of no image so far. `parts` are those of [`parts`], as those of the cache.
    pub fn new(student: &'a Network, teacher: &'a Network, parts: Vec<Part>, cache: Option<Cache>) -> Comparison<'a> {
        Comparison { student, teacher, parts, cache, sums: BTreeMap::new(), same: 0, kl: 0.0, n: 0 }
    }

    /// Counts a batch, of which the student has said `pass`.
    pub fn add(&mut self, batch: &Batch, pass: &Pass) -> Result<()> {
        let own = self.said(self.student, batch, pass)?;
        let said = match self.kept(|cache| cache.read(batch)).flatten() {
            Some(tensors) => tensors,
            None => {
                let pass = self.teacher.observe(&self.teacher.images(&batch.pixels)?)?;
                let said = self.said(self.teacher, batch, &pass)?;
                self.kept(|cache| cache.remember(batch, &said));
                said
            }
        };
        for ((part, own), said) in self.parts.iter().zip(&own).zip(&said) {
            let (own, said) = (own.to_dtype(DType::F64)?.flatten_from(1)?, said.to_dtype(DType::F64)?.flatten_from(1)?);
            if let Part::Map(map) = part {
                if own.dims() != said.dims() {
                    continue; // Layers of different sizes have no positions in common.
                }
                let of = self.sums.entry(map.method.clone()).or_default();
                own.to_vec2::<f64>()?.iter().zip(&said.to_vec2::<f64>()?).for_each(|(own, said)| of.add(own, said));
            } else {
                let top = |t: &Tensor| t.argmax(D::Minus1)?.to_vec1::<u32>();
                self.same += top(&own)?.iter().zip(&top(&said)?).filter(|(own, said)| own == said).count();
                self.kl += divergence(&said, &own)?;
            }
        }
        self.n += batch.len();
        Ok(())
    }

    /// What the cache gives, if there is one; one that fails is done without.
    fn kept<T>(&mut self, of: impl FnOnce(&mut Cache) -> Result<T>) -> Option<T> {
        let given = of(self.cache.as_mut()?);
        given
            .inspect_err(|error| {
                without_cache(error);
                self.cache = None;
            })
            .ok()
    }

    fn said(&self, network: &Network, batch: &Batch, pass: &Pass) -> Result<Vec<Tensor>> {
        let labels = batch.labels_on(network.device())?;
        let parts = self.parts.iter().map(|part| part.of(network, pass, &labels, &batch.ids));
        parts.map(|part| Ok(part?.detach())).collect()
    }

    /// The means over the images so far.
    pub fn finish(self) -> Agreement {
        let n = self.n as f64;
        let maps = self.sums.into_iter().filter(|(_, sums)| sums.0[3].1 > 0);
        Agreement {
            same_class: 100.0 * self.same as f64 / n,
            kl: self.kl / n,
            maps: maps.map(|(name, sums)| (name, sums.means())).collect(),
        }
    }
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
