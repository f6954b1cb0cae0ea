//! Tables 1 and 2: whether what maps call important is what the model uses. Every figure of every image is kept; the
//! floor (random maps) and the trap (a map that is 1 everywhere and so drops nothing) stand in the same table.

use std::path::PathBuf;

use anyhow::Result;
use cams::SampleId;
use cams::metrics::complexity::{adcc, coherency, complexity, entropy};
use cams::metrics::faithfulness::{Course, Mute, Probability, Ties, Way, area, curve, drops, increases, masks, order};
use cams::metrics::road::{NOISE, impute};
use cams::ranges::{Ranges, SEED, above, from};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use toml::Table;

use super::judge::{Found, Maps, ONES, OfImage, Plan, Published, Seen, Share, Walk, judge};
use super::pictures;
use super::subject::{Judged, Model, Named, word};
use crate::config::check_table;
use crate::explain::Class;

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What is explained.
    pub model: Model,
    /// Hyper-parameters of the methods.
    #[serde(default)]
    pub interpreter: Table,
    /// What is measured.
    #[serde(default)]
    pub faithfulness: Options,
    /// What others have found, to be set beside it.
    pub published: Option<Published>,
}

/// `[faithfulness]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Methods, by name or with settings of their own; all, where none are named.
    #[serde(skip_serializing)]
    pub methods: Vec<Judged>,
    /// The layer that is explained.
    pub layer: String,
    /// The class that is explained: `top1`, `label` or a number.
    #[serde(deserialize_with = "word")]
    pub class: String,
    /// How logits become probabilities: `softmax`, or `sigmoid` of a model that says of each class whether it is shown.
    pub probability: Probability,
    /// The part of the pixels that is muted in the muted figures.
    pub mute: f64,
    /// What the pixels that are left are multiplied with there, which the papers do not say.
    pub mute_values: MuteValues,
    /// Steps of the insertion and deletion curves; 0 for no curves.
    pub steps: usize,
    /// Whether ROAD is measured.
    pub road: bool,
    /// Whether coherency and ADCC are measured: the masked image is explained too, at the cost of a second map.
    pub adcc: bool,
    /// Of tied pixels' order, and of ROAD's noise.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
    /// A file that keeps the figures of single images, so that an evaluation goes on where it was left.
    #[serde(skip_serializing)]
    pub record: Option<PathBuf>,
    /// A folder for plots, and for the maps of the images on which methods agree least.
    #[serde(skip_serializing)]
    pub pictures: Option<PathBuf>,
}

/// What the pixels that are not muted are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MuteValues {
    /// The map's values, from 0 to 1.
    Soft,
    /// 1.
    Binary,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            methods: vec![],
            layer: "last".into(),
            class: "top1".into(),
            probability: Probability::Softmax,
            mute: 0.5,
            mute_values: MuteValues::Soft,
            steps: 32,
            road: false,
            adcc: false,
            seed: 0,
            batch: 8,
            record: None,
            pictures: None,
        }
    }
}

impl Options {
    /// What its numbers may be.
    pub const RANGES: Ranges =
        &[("mute", from(0.0, 0.999)), ("steps", from(0.0, 1000.0)), ("seed", SEED), ("batch", above(0.0, 4096.0))];
}

/// Measures every method on every image, from where the record was left.
pub fn run(
    settings: &Settings,
    share: Option<Share>,
    device: &Device,
    say: &mut dyn FnMut(usize, usize),
) -> Result<Found> {
    let o = &settings.faithfulness;
    check_table("faithfulness", o, Options::RANGES)?;
    let named = Named::new(&o.methods, &settings.interpreter)?;
    let class = Class::parse("faithfulness.class", Some(&o.class), true)?;
    let subject = settings.model.load(std::slice::from_ref(&o.layer), &class, device)?;
    let key = subject.key(&settings.model, &(o, format!("{:?}", o.methods), &settings.interpreter))?;
    let record = o.record.as_deref();
    let (layer, probability) = (&o.layer, o.probability);
    let walk = Walk { share, batch: o.batch, record, key: &key, seed: o.seed };
    let plan = Plan { layer, class: &class, probability, walk };
    let measure = |seen: &Seen, maps: &Maps| Measured { options: o, seen }.measure(maps);
    let found = judge(&subject, &named, &plan, device, say, &measure)?;
    if let (Some(dir), None) = (&o.pictures, share) {
        pictures::faithfulness(dir, &found)?;
        pictures::disputed(dir, &found, &subject, &named, &o.layer, &class)?;
    }
    Ok(found)
}

/// Some images under these options.
struct Measured<'a> {
    options: &'a Options,
    seen: &'a Seen<'a>,
}

impl Measured<'_> {
    /// Every figure of every image's map.
    fn measure(&self, maps: &Maps) -> Result<Vec<OfImage>> {
        let (o, Maps { outcome, large, method }) = (self.options, maps);
        let (Seen { images, classes, whole, ids, .. }, scorer) = (self.seen, self.seen.scorer());
        let (n, _, h, w) = images.dims4()?;
        let (ties, native) = (Ties::Shuffled(o.seed), self.seen.maps(outcome)?);
        let mut all = vec![OfImage::default(); n];
        let mut put = |name: &str, values: Vec<Option<f64>>| {
            for (of, value) in all.iter_mut().zip(values) {
                of.values.extend(value.map(|value| (name.to_string(), value)));
            }
        };
        for (suffix, mute) in
            [("", Mute::NONE), ("_muted", Mute { share: o.mute, binary: o.mute_values == MuteValues::Binary })]
        {
            // A map that is the same everywhere is 1 everywhere, not 0: it is the trap.
            let constant = outcome.method == ONES;
            let masks = if constant {
                Tensor::ones((n, h, w), DType::F32, images.device())?
            } else {
                masks(&native, [h, w], mute, ties, ids)?
            };
            let masked = images.broadcast_mul(&masks.to_dtype(images.dtype())?.unsqueeze(1)?)?;
            let left = scorer.probabilities(&masked, classes)?;
            let drops = drops(whole, &left);
            put(&format!("average_increase{suffix}"), increases(whole, &left));
            if suffix.is_empty() {
                let rows = masks.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
                let complexities: Vec<Option<f64>> = rows.iter().map(|mask| complexity(mask)).collect();
                if o.adcc && constant {
                    // Of complexity 1: 0, whatever the coherency.
                    put("adcc", (0..n).map(|i| Some(adcc(1.0, complexities[i]?, drops[i]? / 100.0))).collect());
                }
                if let (true, Some(method)) = (o.adcc, *method) {
                    let again = self.seen.large(&self.seen.explain(method, &masked)?)?;
                    let coherencies: Vec<_> = large.iter().zip(&again).map(|(a, b)| coherency(a, b)).collect();
                    let of = |i: usize| Some(adcc(coherencies[i]?, complexities[i]?, drops[i]? / 100.0));
                    put("adcc", (0..n).map(of).collect());
                    put("coherency", coherencies);
                }
                put("complexity", complexities);
            }
            put(&format!("average_drop{suffix}"), drops);
        }
        put("entropy", large.iter().map(|map| entropy(map)).collect());
        let classes = classes.to_vec1::<u32>()?;
        for i in 0..n {
            let order = order(&large[i], ties, ids[i]);
            let image = images.get(i)?;
            if o.steps > 0 {
                let step = (h * w).div_ceil(o.steps);
                let blurred = self.seen.blurred()?.get(i)?;
                for (name, baseline, way) in
                    [("deletion", image.zeros_like()?, Way::Deletion), ("insertion", blurred, Way::Insertion)]
                {
                    let course = Course { image: &image, baseline: &baseline, order: &order, step, way };
                    let found = curve(&scorer, &course, classes[i], o.batch)?;
                    all[i].values.extend(area(&found, step, h * w).map(|area| (name.to_string(), area)));
                    all[i].curves.insert(name.into(), found);
                }
            }
            if o.road {
                let road = self.road(&image, classes[i], &order, ids[i])?;
                all[i].values.extend(road.map(|road| ("road".to_string(), road)));
            }
        }
        Ok(all)
    }

    /// (LeRF - MoRF) / 2: how much more is lost where the important pixels go than where the others do, mean over 10 to
    /// 90 %; None where a probability is no number.
    fn road(&self, image: &Tensor, class: u32, order: &[usize], id: SampleId) -> Result<Option<f64>> {
        let (c, h, w) = image.dims3()?;
        let plain = image.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let mut stages = Vec::new();
        for percent in (10..100).step_by(10) {
            let count = h * w * percent / 100;
            for removed in [&order[..count], &order[h * w - count..]] {
                stages.extend(impute(&plain, [c, h, w], removed, NOISE, self.options.seed, id));
            }
        }
        let n = stages.len() / plain.len().max(1);
        let images = Tensor::from_vec(stages, (n, c, h, w), image.device())?.to_dtype(image.dtype())?;
        let found = self.seen.scorer().probabilities(&images, &Tensor::full(class, n, image.device())?)?;
        let halves = found.chunks_exact(2).map(|pair| (pair[1] - pair[0]) / 2.0);
        let road = halves.sum::<f64>() / (n / 2).max(1) as f64;
        Ok(road.is_finite().then_some(road))
    }
}
