//! Table 3: whether maps find the object. The boxes of the explained class count, difficult ones left out.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use cams::metrics::faithfulness::Probability;
use cams::metrics::localization::{area, energy, hit, inside};
use cams::ranges::{Ranges, SEED, above, from};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::judge::{Found, Maps, OfImage, Plan, Published, Seen, Share, Walk, judge};
use super::subject::{Judged, Model, Named};
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
    pub localization: Options,
    /// What others have found, to be set beside it.
    pub published: Option<Published>,
}

/// `[localization]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Methods, by name or with settings of their own; all, where none are named.
    #[serde(skip_serializing)]
    pub methods: Vec<Judged>,
    /// The layer that is explained.
    pub layer: String,
    /// The largest part of an image that its boxes may cover: above it, whatever a map shows lies inside (Wang et al.
    /// 2020).
    pub largest: f64,
    /// Whether images with several boxes of the class are left out, as in Wang et al. 2020.
    pub single: bool,
    /// How far the highest pixel may be from a box in the pointing game, in pixels.
    pub tolerance: f64,
    /// Of random maps.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
    /// A file that keeps the figures of single images, so that an evaluation goes on where it was left.
    #[serde(skip_serializing)]
    pub record: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            methods: vec![],
            layer: "last".into(),
            largest: 0.5,
            single: true,
            tolerance: 0.0,
            seed: 0,
            batch: 8,
            record: None,
        }
    }
}

impl Options {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("largest", above(0.0, 1.0)),
        ("tolerance", from(0.0, 1000.0)),
        ("seed", SEED),
        ("batch", above(0.0, 4096.0)),
    ];
}

/// Measures every method on every image whose boxes fit, from where the record was left.
pub fn run(
    settings: &Settings,
    share: Option<Share>,
    device: &Device,
    say: &mut dyn FnMut(usize, usize),
) -> Result<Found> {
    let o = &settings.localization;
    check_table("localization", o, Options::RANGES)?;
    let named = Named::new(&o.methods, &settings.interpreter)?;
    let mut subject = settings.model.load(std::slice::from_ref(&o.layer), &Class::Label, device)?;
    let [_, h, w] = subject.images.shape;
    let boxes = |i: usize| -> Vec<[u32; 4]> {
        let objects = subject.images.objects.as_ref().map_or(&[][..], |objects| &objects[i]);
        let label = subject.images.labels[i];
        objects.iter().filter(|o| o.class == label && !o.difficult).map(|o| o.bounds).collect()
    };
    ensure!(subject.images.objects.is_some(), "{} has no boxes to find objects in", settings.model.images);
    let fits = |i: &usize| {
        let boxes = boxes(*i);
        let covered = area(&inside(&boxes, h, w));
        !boxes.is_empty() && (boxes.len() == 1 || !o.single) && covered <= o.largest
    };
    let (all, fitting) = (subject.images.len(), (0..subject.images.len()).filter(fits).collect::<Vec<_>>());
    ensure!(
        !fitting.is_empty(),
        "none of the {all} images has {} of its class covering at most {} of it",
        if o.single { "exactly one box" } else { "boxes" },
        o.largest
    );
    let mut notes = subject.images.notes.clone();
    notes.push(format!(
        "{} of {all} images have {} of their class covering at most {} %",
        fitting.len(),
        if o.single { "exactly one box" } else { "boxes" },
        100.0 * o.largest
    ));
    subject.images = subject.images.select(&fitting);
    subject.images.notes = notes;
    let key = subject.key(&settings.model, &(o, format!("{:?}", o.methods), &settings.interpreter))?;
    let record = o.record.as_deref();
    let plan = Plan {
        layer: &o.layer,
        class: &Class::Label,
        probability: Probability::Softmax,
        walk: Walk { share, batch: o.batch, record, key: &key, seed: o.seed },
    };
    judge(&subject, &named, &plan, device, say, &|seen, maps| measure(o, seen, maps))
}

fn measure(options: &Options, seen: &Seen, maps: &Maps) -> Result<Vec<OfImage>> {
    let (_, _, h, w) = seen.images.dims4()?;
    let classes = seen.classes.to_vec1::<u32>()?;
    let of = |(i, map): (usize, &Vec<f64>)| {
        let objects = seen.objects.map_or(&[][..], |objects| &objects[i]);
        let own = objects.iter().filter(|o| o.class == classes[i] && !o.difficult).map(|o| o.bounds);
        let inside = inside(&own.collect::<Vec<_>>(), h, w);
        let percent = |part: f64| 100.0 * part;
        let figures = [
            ("proportion", energy(map, &inside).map(percent)),
            ("hit", hit(map, &inside, w, options.tolerance).map(percent)),
            ("box_area", Some(percent(area(&inside)))),
        ];
        let values = figures.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect();
        OfImage { values, ..OfImage::default() }
    };
    Ok(maps.large.iter().enumerate().map(of).collect())
}
