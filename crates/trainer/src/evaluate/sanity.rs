//! Whether maps depend on what the model has learned (Adebayo et al. 2018, section 3, cascading): its layers are drawn
//! anew one after another, from the classifier down, and each map is compared with that of the whole model. A method
//! whose maps stay the same explains the image, not the model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use cams::metrics::spearman;
use cams::ranges::{Ranges, SEED, above, from};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::judge::{Few, Found, Methods, Share, Walk};
use super::record::Figures;
use super::subject::{Judged, Model, Named, word};
use crate::config::check_table;
use crate::data::Images;
use crate::explain::{Class, Outcome, explain};
use crate::models::Architecture;
use crate::nn::{Backend, Network, StateDict};

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What is explained.
    pub model: Model,
    /// Hyper-parameters of the methods.
    #[serde(default)]
    pub interpreter: Table,
    /// What is compared.
    #[serde(default)]
    pub sanity: Options,
}

/// `[sanity]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Methods, by name or with settings of their own; all, where none are named.
    #[serde(skip_serializing)]
    pub methods: Vec<Judged>,
    /// The layer that is explained.
    pub layer: String,
    /// The class that is explained: `top1` (of the whole model, at every step), `label` or a number.
    #[serde(deserialize_with = "word")]
    pub class: String,
    /// Of the weights that are drawn.
    pub seed: u64,
    /// How often they are drawn; a figure of an image is the mean over the draws under which its map varies.
    pub draws: u32,
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
            class: "top1".into(),
            seed: 0,
            draws: 5,
            batch: 32,
            record: None,
        }
    }
}

impl Options {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("seed", SEED), ("draws", from(1.0, 1000.0)), ("batch", above(0.0, 4096.0))];
}

/// The figure that says for which part of draws and steps there is no correlation: where a map is the same everywhere.
const UNDEFINED: &str = "undefined";

/// What was found, and the steps in their order: each the name of a figure, the rank correlation (Spearman, signed) of a
/// map with that of the whole model once this part and all behind it are drawn anew.
pub struct Sanity {
    /// A row a method.
    pub found: Found,
    /// From the classifier down.
    pub steps: Vec<String>,
}

/// The parts of a model, from the classifier down: parameters that share their name up to its first number.
fn parts(architecture: &Architecture) -> Vec<String> {
    let mut parts: Vec<String> = vec![];
    for entry in &architecture.graph.parameters {
        let part = part(&entry.name);
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.reverse();
    parts
}

/// `layer1` of `layer1.0.conv1.weight`, `features.3` of `features.3.squeeze.bias`, `fc` of `fc.weight`.
fn part(name: &str) -> String {
    let words: Vec<&str> = name.split('.').collect();
    let numbered = words.iter().position(|word| word.contains(|c: char| c.is_ascii_digit()));
    words[..numbered.map_or(words.len().saturating_sub(1), |at| at + 1)].join(".")
}

/// Puts one part of `fresh` in the place of what `weights` have.
fn replace(architecture: &Architecture, weights: &mut StateDict, fresh: &StateDict, of: &str) {
    for (entry, parameter) in architecture.entries().filter(|(entry, _)| part(&entry.name) == of) {
        let (to, from) = if parameter {
            (&mut weights.parameters, &fresh.parameters)
        } else {
            (&mut weights.running, &fresh.running)
        };
        to[entry.range()].copy_from_slice(&from[entry.range()]);
    }
}

/// Of each image's two maps, where there is one.
fn correlations<'a>(whole: &'a Outcome, drawn: &'a Outcome) -> impl Iterator<Item = Option<f64>> + 'a {
    let size = (whole.shape[0] * whole.shape[1]).max(1);
    let wide = |map: &[f32]| map.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let pairs = whole.values.chunks_exact(size).zip(drawn.values.chunks_exact(size));
    pairs.map(move |(a, b)| spearman(&wide(a), &wide(b)))
}

/// The mean of every step, and how many of the correlations asked for are missing.
fn means(sums: BTreeMap<String, (f64, usize)>, asked: usize) -> BTreeMap<String, f64> {
    let found: usize = sums.values().map(|(_, n)| n).sum();
    let undefined = (UNDEFINED.to_string(), 1.0 - found as f64 / asked.max(1) as f64);
    sums.into_iter().map(|(step, (sum, n))| (step, sum / n as f64)).chain([undefined]).collect()
}

/// Compares every method's maps on every image, from where the record was left.
pub fn run(
    settings: &Settings,
    share: Option<Share>,
    device: &Device,
    say: &mut dyn FnMut(usize, usize),
) -> Result<Sanity> {
    let o = &settings.sanity;
    check_table("sanity", o, Options::RANGES)?;
    let named = Named::new(&o.methods, &settings.interpreter)?;
    let layers = std::slice::from_ref(&o.layer);
    let class = Class::parse("sanity.class", Some(&o.class), true)?;
    let subject = settings.model.load(layers, &class, device)?;
    let key = subject.key(&settings.model, &("sanity", o, format!("{:?}", o.methods), &settings.interpreter))?;
    let (network, images) = (&subject.network, &subject.images);
    let (architecture, whole) = (&network.architecture, network.state_dict()?);
    let steps = parts(architecture);
    let mut few = |few: &Images, methods: &Methods| {
        let before = explain(methods, network, &o.layer, few, &class)?;
        // Sum and number of correlations, for each method, image and step.
        let mut sums = vec![vec![BTreeMap::<String, (f64, usize)>::new(); few.len()]; before.outcomes.len()];
        for draw in 0..o.draws {
            // Not the numbers that a training starts from: where few steps were made, weights are still like them.
            let (mut weights, fresh) = (whole.clone(), StateDict::anew(architecture, o.seed, draw));
            for step in &steps {
                replace(architecture, &mut weights, &fresh, step);
                let (normalization, backend) = (network.normalization.clone(), Backend::f32(device));
                let drawn = Network::new(architecture.clone(), weights.clone(), normalization, layers, false, backend)?;
                let after = explain(methods, &drawn, &o.layer, few, &Class::Given(before.classes.clone()))?;
                for (outcome, sums) in before.outcomes.iter().zip(&mut sums) {
                    let Some(other) = after.outcomes.iter().find(|other| other.method == outcome.method) else {
                        continue;
                    };
                    for (sums, rho) in sums.iter_mut().zip(correlations(outcome, other)) {
                        let Some(rho) = rho else { continue };
                        let (sum, n) = sums.entry(step.clone()).or_default();
                        (*sum, *n) = (*sum + rho, *n + 1);
                    }
                }
            }
        }
        let asked = steps.len() * o.draws as usize;
        let values = sums.into_iter().map(|images| images.into_iter().map(|sums| means(sums, asked)));
        let figures = before.outcomes.iter().zip(values).flat_map(|(outcome, values)| {
            let seconds = outcome.seconds / few.len() as f64;
            let method = &outcome.method;
            values.zip(&few.index).map(move |(values, image)| Figures {
                image: *image,
                method: method.clone(),
                values,
                seconds,
                ..Figures::default()
            })
        });
        Ok(Few { figures: figures.collect(), skipped: before.skipped })
    };
    let walk = Walk { share, batch: o.batch, record: o.record.as_deref(), key: &key, seed: o.seed };
    let found = walk.run(images, &named, &[], say, &mut few)?;
    Ok(Sanity { found, steps })
}

#[cfg(test)]
mod tests {
    use kernels::graph::Shape;

    use super::*;
    use crate::models::Options;

    #[test]
    fn parts_go_from_the_classifier_down() -> Result<()> {
        let named = |name, side| {
            Architecture::named(name, Shape { channels: 3, h: side, w: side }, 10, &Options::new()).map(|a| parts(&a))
        };
        assert_eq!(named("wrn-10-1", 32)?, ["fc", "bn1", "layer3", "layer2", "layer1", "conv1"]);
        let squeezenet = named("squeezenet1_0", 64)?;
        assert_eq!((squeezenet.len(), squeezenet[0].as_str()), (10, "classifier.1"));
        assert_eq!((squeezenet[1].as_str(), squeezenet[9].as_str()), ("features.12", "features.0"));
        Ok(())
    }

    /// A training that begins with the same seed has other numbers, so has every other draw.
    #[test]
    fn no_training_starts_from_what_is_drawn() -> Result<()> {
        let input = Shape { channels: 3, h: 32, w: 32 };
        let architecture = Architecture::named("wrn-10-1", input, 10, &Options::new())?;
        let start = StateDict::init(&architecture, 3, false).parameters;
        let draws = [0, 1].map(|draw| StateDict::anew(&architecture, 3, draw).parameters);
        let fc = architecture.graph.parameters.iter().find(|e| e.name == "fc.weight").unwrap().range();
        for (a, b) in [(&start, &draws[0]), (&start, &draws[1]), (&draws[0], &draws[1])] {
            let both = a[fc.clone()].iter().zip(&b[fc.clone()]);
            assert!(both.filter(|(a, b)| a == b).count() == 0);
        }
        assert_eq!(StateDict::anew(&architecture, 3, 1).parameters, draws[1]);
        Ok(())
    }

    #[test]
    fn a_figure_is_the_mean_over_draws() {
        let sums = BTreeMap::from([("fc".to_string(), (1.5, 2)), ("conv1".to_string(), (0.25, 1))]);
        let expected = [("fc", 0.75), ("conv1", 0.25), (UNDEFINED, 0.25)].map(|(name, v)| (name.to_string(), v));
        assert_eq!(means(sums, 4), BTreeMap::from(expected));
    }

    #[test]
    fn a_part_is_drawn_with_its_statistics_and_nothing_else() -> Result<()> {
        let input = Shape { channels: 3, h: 32, w: 32 };
        let architecture = Architecture::named("wrn-10-1", input, 10, &Options::new())?;
        let fresh = StateDict::init(&architecture, 1, false);
        let mut weights =
            StateDict { parameters: vec![7.0; fresh.parameters.len()], running: vec![7.0; fresh.running.len()] };
        replace(&architecture, &mut weights, &fresh, "bn1");
        for (entry, parameter) in architecture.entries() {
            let (now, new) =
                if parameter { (&weights.parameters, &fresh.parameters) } else { (&weights.running, &fresh.running) };
            let expected =
                if entry.name.starts_with("bn1.") { &new[entry.range()] } else { &vec![7.0; entry.range().len()][..] };
            assert_eq!(&now[entry.range()], expected, "{}", entry.name);
        }
        Ok(())
    }
}
