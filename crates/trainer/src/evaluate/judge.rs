//! The loop that every table of maps shares: images, a few at a time, times methods; each image's figures are kept as
//! they are measured.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use cams::metrics::faithfulness::probabilities;
use cams::{CamModel, SampleId};
use candle_core::{Device, Tensor};
use serde::Serialize;

use super::record::{Figures, Record};
use super::subject::{Named, Subject};
use crate::data::Object;
use crate::data::loader::Loader;
use crate::explain::{Class, Outcome, explain};
use crate::nn::Model as _;
use crate::report::statistics::{Interval, bootstrap};

/// The map that calls everything important: it drops nothing, and its energy in a box is the box's area.
pub const ONES: &str = "ones";

/// A method's figures over all images.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub method: String,
    /// Images of which it was measured.
    pub n: usize,
    /// Means, standard errors and 95 % intervals, by figure.
    pub figures: BTreeMap<String, Interval>,
    /// Mean seconds of a map.
    pub seconds: f64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// One for each method, the map of ones at the end.
    pub rows: Vec<Row>,
    /// What whoever reads it should know.
    pub notes: Vec<String>,
}

/// Some images, and what the model says of them.
pub struct Seen<'a> {
    /// The model, cut where it is explained.
    pub cut: &'a dyn CamModel,
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
}

impl Seen<'_> {
    /// Maps (n, h, w) at their own resolution.
    pub fn maps(&self, outcome: &Outcome) -> Result<Tensor> {
        let [h, w] = outcome.shape;
        Ok(Tensor::from_vec(outcome.values.clone(), (self.ids.len(), h, w), self.images.device())?)
    }
}

/// Each image's figures of one method's maps, by name; a figure that is not defined is absent.
pub type Measure<'m> = dyn Fn(&Seen, &Outcome) -> Result<Vec<BTreeMap<String, f64>>> + 'm;

/// How to go through the images.
pub struct Plan<'p> {
    /// The layer that is explained.
    pub layer: &'p str,
    /// The class that is explained.
    pub class: &'p Class,
    /// Images at a time.
    pub batch: usize,
    /// Where figures are kept, and what they depend on.
    pub record: Option<&'p Path>,
    /// See [`Record::open`].
    pub key: &'p str,
    /// Of the intervals.
    pub seed: u64,
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
    let Subject { network, images } = subject;
    let mut methods = named.each();
    let mut record = Record::open(plan.record, plan.key)?;
    let names: Vec<String> = methods.iter().map(|(name, _)| name.to_string()).chain([ONES.to_string()]).collect();
    ensure!(
        names.iter().filter(|name| *name == ONES).count() == 1,
        "\"{ONES}\" is the map of ones: choose another name"
    );
    let mut notes = images.notes.clone();
    let cut = network.cut(plan.layer)?;
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let done = record.done(&wanted);
    let left: Vec<usize> = (0..images.len()).filter(|i| !done.contains(&images.index[*i])).collect();
    for (at, positions) in left.chunks(plan.batch).enumerate() {
        say(done.len() + at * plan.batch, images.len());
        let few = images.select(positions);
        let found = explain(&methods, network, plan.layer, &few, plan.class)?;
        // A method that cannot explain this layer is left out of the table, and named once.
        notes.extend(found.skipped.iter().map(|skipped| format!("left out: {skipped}")));
        methods.retain(|(name, _)| found.outcomes.iter().any(|outcome| outcome.method == *name));
        wanted.retain(|name| *name == ONES || methods.iter().any(|(other, _)| other == name));
        let batch = Loader::plain(few.len()).batch(&few, &(0..few.len()).collect::<Vec<_>>(), 0)?;
        let seen = network.images(&batch.pixels)?;
        let classes = Tensor::new(found.classes.as_slice(), device)?;
        let whole = probabilities(&*cut, &seen, &classes)?;
        let (_, _, h, w) = seen.dims4()?;
        let seen = Seen {
            cut: &*cut,
            images: &seen,
            classes: &classes,
            whole: &whole,
            ids: &batch.ids,
            objects: few.objects.as_deref(),
        };
        let ones = Outcome::constant(ONES, few.len(), [h, w], 1.0);
        let mut figures = Vec::new();
        for outcome in found.outcomes.iter().chain([&ones]) {
            let seconds = outcome.seconds / few.len() as f64;
            figures.extend(measure(&seen, outcome)?.into_iter().zip(&batch.ids).map(|(values, id)| Figures {
                image: id.sample,
                method: outcome.method.clone(),
                values,
                seconds,
            }));
        }
        record.add(figures)?;
    }
    say(images.len(), images.len());
    let rows = wanted.into_iter().map(|name| row(&record, name, plan.seed)).collect();
    Ok(Found { rows, notes })
}

fn row(record: &Record, method: &str, seed: u64) -> Row {
    let of = record.of(method);
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for f in of.values() {
        f.values.iter().for_each(|(name, value)| figures.entry(name.clone()).or_default().push(*value));
    }
    let seconds = of.values().map(|f| f.seconds).sum::<f64>() / of.len().max(1) as f64;
    let figures = figures.into_iter().map(|(name, values)| (name, bootstrap(&values, seed))).collect();
    Row { method: method.into(), n: of.len(), figures, seconds }
}
