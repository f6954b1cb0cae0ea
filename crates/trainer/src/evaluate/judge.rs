//! The loop that every table of maps shares: images, a few at a time, times methods; each image's figures are kept as
//! they are measured.

mod likeness;
mod rows;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use cams::metrics::faithfulness::{Probability, Scorer};
use cams::metrics::is_finite;
use cams::{CamModel, Interpreter, SampleId, maps};
use candle_core::{DType, Device, Tensor};
pub use likeness::LIKENESS;
use likeness::likenesses;
pub use rows::Row;
use rows::found;
use serde::{Deserialize, Serialize};

use super::record::{Figures, Record};
use super::subject::{Named, Subject};
use crate::data::loader::Loader;
use crate::data::{Images, Object};
use crate::explain::{Class, Outcome, explain};
use crate::nn::{Model as _, Network};

/// The map that calls everything important: it drops nothing, and its energy in a box is the box's area.
pub const ONES: &str = "ones";

/// Figures that somebody has published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Where.
    pub source: String,
    /// What of model, images and protocol is not theirs.
    pub differs: String,
    /// Theirs, by figure and method.
    pub figures: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// One for each method, the map of ones at the end.
    pub rows: Vec<Row>,
    /// Positions of the images whose maps are least alike, the least first.
    pub disputed: Vec<u64>,
    /// What whoever reads it should know.
    pub notes: Vec<String>,
}

/// Some images, and what the model says of them.
pub struct Seen<'a> {
    /// The model.
    pub network: &'a Network,
    /// The same, cut where it is explained.
    pub cut: &'a dyn CamModel,
    /// That layer.
    pub layer: &'a str,
    /// How its logits become probabilities.
    pub probability: Probability,
    /// Normalised (n, c, h, w).
    pub images: &'a Tensor,
    /// The explained classes (n,).
    pub classes: &'a Tensor,
    /// Their probabilities.
    pub whole: &'a [f64],
    /// Which images.
    pub ids: &'a [SampleId],
    /// The objects in each, if the data set says so.
    pub objects: Option<&'a [Vec<Object>]>,
    /// See [`Seen::blurred`].
    blurred: OnceCell<Tensor>,
}

impl<'a> Seen<'a> {
    /// Maps (n, h, w) at their own resolution.
    pub fn maps(&self, outcome: &Outcome) -> Result<Tensor> {
        let [h, w] = outcome.shape;
        Ok(Tensor::from_vec(outcome.values.clone(), (self.ids.len(), h, w), self.images.device())?)
    }

    /// Maps at the size of the images, a row each.
    pub fn large(&self, maps: &Tensor) -> Result<Vec<Vec<f64>>> {
        let (_, _, h, w) = self.images.dims4()?;
        Ok(maps::resize(maps, h, w)?.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2()?)
    }

    /// The images (n, c, h, w) blurred (RISE: kernel 11, sigma 5), once for all methods.
    pub fn blurred(&self) -> Result<&Tensor> {
        if let Some(blurred) = self.blurred.get() {
            return Ok(blurred);
        }
        let blurred = maps::blur(self.images, 11, 5.0)?;
        Ok(self.blurred.get_or_init(|| blurred))
    }

    /// What its logits say.
    pub fn scorer(&self) -> Scorer<'a> {
        Scorer { model: self.cut, probability: self.probability }
    }

    /// A method's maps (n, h, w) of other images (n, c, h, w) in these ones' place, for the same classes.
    pub fn explain(&self, method: &dyn Interpreter, images: &Tensor) -> Result<Tensor> {
        let pass = self.network.observe(images)?;
        let forward = pass.seen(self.cut, self.layer, self.ids)?;
        Ok(method.explain(&forward, self.classes)?.map.detach())
    }
}

/// One image's figures; a figure that is not defined is absent.
#[derive(Clone, Debug, Default)]
pub struct OfImage {
    /// By name.
    pub values: BTreeMap<String, f64>,
    /// Those of many points.
    pub curves: BTreeMap<String, Vec<f64>>,
}

impl OfImage {
    /// What is left of it for this map: nothing for one that is not finite. An order and a mask can be made of that too,
    /// and a ReLU makes a probability of an image of NaN.
    fn of_map(self, map: &[f64]) -> OfImage {
        if is_finite(map) { self } else { OfImage::default() }
    }
}

/// One method's maps of some images.
pub struct Maps<'a> {
    /// As they are.
    pub outcome: &'a Outcome,
    /// At the size of the images, a row each.
    pub large: Vec<Vec<f64>>,
    /// What made them; the map of ones is no method's.
    pub method: Option<&'a dyn Interpreter>,
}

/// Each image's figures of one method's maps.
pub type Measure<'m> = dyn Fn(&Seen, &Maps) -> Result<Vec<OfImage>> + 'm;

/// How to go through the images.
pub struct Plan<'p> {
    /// The layer that is explained.
    pub layer: &'p str,
    /// The class that is explained.
    pub class: &'p Class,
    /// How logits become probabilities.
    pub probability: Probability,
    /// The rest.
    pub walk: Walk<'p>,
}

/// One of several processes that measure the same images, each its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub at: usize,
    /// Of how many.
    pub of: usize,
}

/// How to go through images, a few at a time, and keep what is measured.
pub struct Walk<'p> {
    /// Which of them; without it all.
    pub share: Option<Share>,
    /// Images at a time.
    pub batch: usize,
    /// Where figures are kept, and what they depend on.
    pub record: Option<&'p Path>,
    /// See [`Record::open`].
    pub key: &'p str,
    /// Of the intervals.
    pub seed: u64,
}

/// A few images' figures, of methods that could explain them.
pub struct Few {
    /// Every method's of every image.
    pub figures: Vec<Figures>,
    /// Methods that cannot explain this model here, and why, in a sentence that names them.
    pub skipped: Vec<(String, String)>,
}

/// Named methods, as [`explain`] takes them.
pub type Methods<'m> = [(&'m str, &'m dyn Interpreter)];

impl Walk<'_> {
    /// Measures the images of which the record does not hold every method yet; `beside` are names in it that are no
    /// methods. `say` is told how many images of how many are done.
    pub fn run(
        &self,
        images: &Images,
        named: &Named,
        beside: &[&str],
        say: &mut dyn FnMut(usize, usize),
        measure: &mut dyn FnMut(&Images, &Methods) -> Result<Few>,
    ) -> Result<Found> {
        let mut methods = named.each();
        let mut record = Record::open(self.record, self.key)?;
        let taken = beside.iter().find(|name| methods.iter().any(|(other, _)| other == *name));
        ensure!(taken.is_none(), "\"{}\" has a meaning of its own here: choose another name", taken.unwrap_or(&""));
        let mut notes = images.notes.clone();
        // A method that cannot explain this layer is left out of the table, and named once.
        let mut leave_out = |methods: &mut Vec<(&str, &dyn Interpreter)>, name: &str, why: &str| {
            methods.retain(|(other, _)| *other != name);
            notes.push(format!("left out: {why}"));
        };
        record.left_out().iter().for_each(|(name, why)| leave_out(&mut methods, name, why));
        let wanted = |methods: &Methods<'_>| -> Vec<String> {
            methods.iter().map(|(name, _)| *name).chain(beside.iter().copied()).map(String::from).collect()
        };
        let done = record.done(&wanted(&methods));
        let ours = |i: &usize| self.share.is_none_or(|share| i % share.of == share.at);
        let mine: Vec<usize> = (0..images.len()).filter(ours).collect();
        let left: Vec<usize> = mine.iter().copied().filter(|i| !done.contains(&images.index[*i])).collect();
        let before = mine.len() - left.len();
        for (at, positions) in left.chunks(self.batch).enumerate() {
            say(before + at * self.batch, mine.len());
            let few = images.select(positions);
            let Few { mut figures, skipped } = measure(&few, &methods)?;
            for (name, why) in skipped {
                leave_out(&mut methods, &name, &why);
                figures.push(Figures { image: few.index[0], method: name, left_out: Some(why), ..Figures::default() });
            }
            record.add(figures)?;
        }
        say(mine.len(), mine.len());
        if self.share.is_some() {
            // The table is made once, of all shares.
            return Ok(Found { rows: vec![], disputed: vec![], notes });
        }
        Ok(found(&record, &wanted(&methods), self.seed, notes))
    }
}

/// Measures every method on every image that has not been measured yet. `say` is told how many of how many are done.
pub fn judge(
    subject: &Subject,
    named: &Named,
    plan: &Plan,
    device: &Device,
    say: &mut dyn FnMut(usize, usize),
    measure: &Measure,
) -> Result<Found> {
    let network = &subject.network;
    let cut = network.cut(plan.layer)?;
    let mut few = |few: &Images, methods: &Methods| {
        let found = explain(methods, network, plan.layer, few, plan.class)?;
        let batch = Loader::plain(few.len()).batch(few, &(0..few.len()).collect::<Vec<_>>(), 0)?;
        let images = network.images(&batch.pixels)?;
        let classes = Tensor::new(found.classes.as_slice(), device)?;
        let whole = Scorer { model: &*cut, probability: plan.probability }.probabilities(&images, &classes)?;
        let (_, _, h, w) = images.dims4()?;
        let seen = Seen {
            network,
            cut: &*cut,
            layer: plan.layer,
            probability: plan.probability,
            images: &images,
            classes: &classes,
            whole: &whole,
            ids: &batch.ids,
            objects: few.objects.as_deref(),
            blurred: OnceCell::new(),
        };
        let ones = Outcome::constant(ONES, few.len(), [h, w], 1.0);
        let maps = found.outcomes.iter().chain([&ones]).map(|outcome| {
            let method = methods.iter().find(|(name, _)| *name == outcome.method).map(|(_, method)| *method);
            Ok(Maps { outcome, large: seen.large(&seen.maps(outcome)?)?, method })
        });
        let maps = maps.collect::<Result<Vec<_>>>()?;
        let mut figures = Vec::new();
        for (maps, likeness) in maps.iter().zip(likenesses(&maps, few.len())) {
            let (outcome, measured) = (maps.outcome, measure(&seen, maps)?);
            let seconds = outcome.seconds / few.len() as f64;
            let of_images = measured.into_iter().zip(&maps.large).zip(&batch.ids).zip(likeness);
            figures.extend(of_images.map(|(((of, map), id), likeness)| {
                let OfImage { mut values, curves } = of.of_map(map);
                values.extend(likeness.map(|likeness| (LIKENESS.to_string(), likeness)));
                Figures { image: id.sample, method: outcome.method.clone(), values, curves, left_out: None, seconds }
            }));
        }
        Ok(Few { figures, skipped: found.skipped })
    };
    plan.walk.run(&subject.images, named, &[ONES], say, &mut few)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever was measured of a map that is no number counts for no image's figure.
    #[test]
    fn a_map_that_is_not_finite_has_no_figure() {
        let measured = || OfImage {
            values: BTreeMap::from([("average_drop".into(), 0.0)]),
            curves: BTreeMap::from([("insertion".into(), vec![0.5, 1.0])]),
        };
        let left = |map: &[f64]| {
            let OfImage { values, curves } = measured().of_map(map);
            (values.len(), curves.len())
        };
        assert_eq!(left(&[0.0, -1.0]), (1, 1));
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(left(&[0.0, broken]), (0, 0));
        }
    }
}
