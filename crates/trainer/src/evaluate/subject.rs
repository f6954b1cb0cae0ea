//! What is judged: a model, images, and methods.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cams::Interpreter;
use cams::methods::Methods;
use candle_core::Device;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};

use crate::checkpoint::File;
use crate::config::{check_methods, merge, typed};
use crate::data::{Images, Source};
use crate::error::unknown;
use crate::explain::Class;
use crate::files::sha256;
use crate::nn::{Backend, Network};

/// `[model]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its weights.
    pub checkpoint: PathBuf,
    /// Its architecture, if the checkpoint does not name it.
    pub arch: Option<String>,
    /// A slice of a data set, as in `cifar10:test[0..64]`.
    pub images: String,
    /// What the shorter side of an image file becomes before its middle is kept (at least the side that the model
    /// takes); the whole image is resized where it is not given.
    pub resize: Option<usize>,
}

/// A model and the images that it sees.
pub struct Subject {
    /// In single precision.
    pub network: Network,
    /// In the size that it takes.
    pub images: Images,
}

impl Model {
    /// Loads both; the network hands out `layers`. Where the images' own classes are explained they must be the model's.
    pub fn load(&self, layers: &[String], class: &Class, device: &Device) -> Result<Subject> {
        let file = File::read(&self.checkpoint)?;
        let network = file.network(self.arch.as_deref(), |_| layers.to_vec(), Backend::f32(device))?;
        let (source, split, range) = Source::slice(&self.images).with_context(|| {
            format!("model.images is \"{}\": expected a slice like cifar10:test[0..64]", self.images)
        })?;
        let input = network.architecture.graph.shapes[0];
        let source = Source { shorter: self.resize, ..source?.of_size(input.h) };
        let all = source.load(split)?;
        ensure!(
            !matches!(class, Class::Label) || all.classes == network.architecture.classes,
            "{} tells {} classes apart and {} has {}, whose numbers are not the model's: choose images of its \
             classes, or, where no labels are needed (evaluate faithfulness), explain the class that the model names: class = \"top1\"",
            self.checkpoint.display(),
            network.architecture.classes,
            self.images,
            all.classes
        );
        let positions: Vec<usize> = (range.start..range.end.min(all.len())).collect();
        ensure!(!positions.is_empty(), "model.images is \"{}\": the split has {} images", self.images, all.len());
        let mut images = all.select(&positions);
        images.notes = all.notes;
        let images = images.readable();
        ensure!(!images.is_empty(), "model.images is \"{}\": {}", self.images, images.notes.join("; "));
        Ok(Subject { network, images })
    }
}

/// Counts what a figure has meant: 2 since a map that is not finite has none and likeness is a median, 3 since a curve's last
/// step counts by its pixels.
const FIGURES: u32 = 3;

impl Subject {
    /// What an evaluation of this model depends on, as a short hash: weights, images, what its figures mean, and `what` else.
    pub fn key(&self, model: &Model, what: &impl Serialize) -> Result<String> {
        let bytes = std::fs::read(&model.checkpoint);
        let weights = sha256(&bytes.with_context(|| format!("reading {}", model.checkpoint.display()))?);
        let all = serde_json::json!([weights, self.images.fingerprint()?, FIGURES, serde_json::to_value(what)?]);
        Ok(sha256(all.to_string().as_bytes())[..16].to_string())
    }
}

/// A method as it is judged: by its name, or with settings of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a method's name, or a table such as { name = \"mean\", method = \"shap_cam\", set = { fill = \"channel_mean\" } }"
)]
pub enum Judged {
    /// As `[interpreter.<method>]` has it.
    Plain(String),
    /// With other settings, under another name.
    Variant {
        /// In tables.
        name: String,
        /// The method.
        method: String,
        /// On top of `[interpreter.<method>]`.
        #[serde(default)]
        set: Table,
    },
}

/// A class as it is given: a word, or a number with or without quotes.
pub(super) fn word<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(word) => Ok(word),
        Value::Integer(number) => Ok(number.to_string()),
        other => Err(D::Error::custom(format!("{other} is no class: expected label, top1 or a class's number"))),
    }
}

/// Methods with their settings, each under the name that tables show.
pub struct Named(Vec<(String, String, Methods)>);

impl Named {
    /// Those that are asked for; all, where none are named.
    pub fn new(judged: &[Judged], interpreter: &Table) -> Result<Named> {
        let all: Vec<Judged> = Methods::NAMES.iter().map(|name| Judged::Plain(name.to_string())).collect();
        let asked = if judged.is_empty() { &all[..] } else { judged };
        let mut named: Vec<(String, String, Methods)> = vec![];
        for one in asked {
            let (name, method, set) = match one {
                Judged::Plain(name) => (name, name, Table::new()),
                Judged::Variant { name, method, set } => (name, method, set.clone()),
            };
            if !Methods::NAMES.contains(&method.as_str()) {
                return Err(unknown("method", method, Methods::NAMES));
            }
            ensure!(
                !named.iter().any(|(other, ..)| other == name),
                "two methods are called \"{name}\": give each its name"
            );
            let mut table = interpreter.clone();
            merge(&mut table, Table::from_iter([(method.clone(), Value::Table(set))]));
            let methods: Methods = typed(table).with_context(|| format!("the settings of {name}"))?;
            check_methods(&methods)?;
            named.push((name.clone(), method.clone(), methods));
        }
        Ok(Named(named))
    }

    /// Names and methods.
    pub fn each(&self) -> Vec<(&str, &dyn Interpreter)> {
        self.0.iter().filter_map(|(name, method, methods)| Some((name.as_str(), methods.get(method)?))).collect()
    }
}
