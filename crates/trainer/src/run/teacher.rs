//! The teacher of a run: loaded, checked against what its file says of it, with the cache of its outputs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};

use super::state::Inputs;
use crate::checkpoint::File;
use crate::config::{Config, Dtype, Teacher as Section};
use crate::data::augment::Augment;
use crate::data::{Images, Split};
use crate::distill::cache::{self, Cache, Key};
use crate::distill::teacher::Frozen;
use crate::distill::terms::Class;
use crate::distill::{Objective, Part};
use crate::evaluate::evaluate;
use crate::files::sha256;
use crate::models::Architecture;
use crate::nn::{Backend, Model, Network};

/// The teacher of a run.
pub struct Loaded {
    /// Who is asked.
    pub teacher: Frozen<Network>,
    /// Its test error in percent, from its metadata or measured.
    pub test_error: f64,
    /// That error in words, and where it comes from.
    pub note: String,
}

/// Images on which a teacher's stated error is checked.
const SPOT_CHECK: usize = 500;

/// The network of a configuration's teacher, and its file.
pub fn network(config: &Config, objective: &Objective, backend: Backend) -> Result<(File, Network)> {
    let section = config.teacher.as_ref().context("there is no [teacher]")?;
    let file = File::read(&section.checkpoint).context("the teacher's checkpoint")?;
    let network = network_of(section, &file, |a| objective.layers(&a.attention_layers()), backend)?;
    Ok((file, network))
}

/// The network of a teacher's file, which hands out `layers`.
pub fn network_of(
    section: &Section,
    file: &File,
    layers: impl FnOnce(&Architecture) -> Vec<String>,
    backend: Backend,
) -> Result<Network> {
    let architecture = match &section.layers {
        Some(own) => file.architecture_of(own).context("teacher.layers")?,
        None => file.architecture(section.arch.as_deref())?,
    };
    file.network_of(architecture, layers, backend)
}

/// Loads the teacher of a configuration.
pub fn load(
    section: &Section,
    config: &Config,
    objective: &Objective,
    images: &Images,
    backend: Backend,
) -> Result<Loaded> {
    ensure!(
        section.cache.is_none() || backend.dtype == DType::F32,
        "teacher.cache keeps f32 tensors: use train.dtype = \"f32\" with it"
    );
    let key = cache_of(config).map(|dir| Ok::<_, anyhow::Error>((dir, key(config, images, &backend)?))).transpose()?;
    let device = backend.device.clone();
    let (file, network) = network(config, objective, backend)?;
    let classes = network.architecture.classes;
    ensure!(
        classes == images.classes,
        "the teacher {} has {classes} classes, the data {}",
        file.name(),
        images.classes
    );
    if let Class::Number(class) = config.loss.class {
        ensure!((class as usize) < classes, "loss.class is {class}; there are {classes} classes, 0 to {}", classes - 1);
    }
    let (test_error, mut note) = check_error(&file, &network, config)?;
    let parts = objective.parts(&network)?;
    let mut cache = None;
    if let Some((dir, key)) = key {
        let made = Cache::new(dir, &key, names(&parts)?, images, &device)?;
        note += "\n";
        note += &sized(&made, views(config), &shapes(&parts, &network)?, section.cache_limit_mb, images.len())?;
        cache = Some(made);
    }
    let teacher = Frozen::new(network, parts);
    Ok(Loaded { teacher: if let Some(cache) = cache { teacher.with_cache(cache) } else { teacher }, test_error, note })
}

/// The parts' names among files.
pub fn names(parts: &[Part]) -> Result<Vec<String>> {
    parts.iter().map(Part::name).collect()
}

/// The shapes of one image's parts.
pub fn shapes(parts: &[Part], network: &Network) -> Result<Vec<Vec<usize>>> {
    let input = network.architecture.graph.shapes[0];
    let pixels = Tensor::zeros((1, input.channels, input.h, input.w), DType::U8, &Device::Cpu)?;
    let pass = network.glance(&network.images(&pixels)?)?;
    parts.iter().map(|part| part.shape(&pass)).collect()
}

/// Views of the training images that a run shows.
pub fn views(config: &Config) -> u64 {
    let (views, epochs) = (config.data.views, config.train.epochs as u64);
    if views == 0 { epochs } else { views.min(epochs) }
}

/// The folder of a run's cache, if it has one and ever asks its teacher.
pub fn cache_of(config: &Config) -> Option<&Path> {
    config.teacher.as_ref().and_then(|t| t.cache.as_deref()).filter(|_| config.distils())
}

/// All that the outputs of this run's teacher depend on.
pub fn key(config: &Config, images: &Images, backend: &Backend) -> Result<Key> {
    let section = config.teacher.as_ref().context("a run without a teacher has no outputs to keep")?;
    let checkpoint = &section.checkpoint;
    let bytes = fs::read(checkpoint).with_context(|| format!("reading {}", checkpoint.display()))?;
    Ok(Key {
        format: cache::FORMAT,
        teacher: sha256(&bytes),
        arch: arch(section)?,
        images: images.fingerprint()?,
        augment: config.data.augment,
        view_seed: config.data.seed,
        engine: engine(backend, config.train.dtype.in_effect(&backend.device)),
    })
}

/// The architecture that a configuration gives to the teacher's file.
fn arch(section: &Section) -> Result<Option<String>> {
    Ok(section.layers.as_ref().map(serde_json::to_string).transpose()?.or_else(|| section.arch.clone()))
}

fn engine(backend: &Backend, precision: Dtype) -> String {
    format!("{:?} {:?} {precision:?} {:?}", backend.engine, kernels::Isa::best(), backend.device.location())
}

/// What the teacher says of the test images as they are, in full precision, beside what it says of the training images' views;
/// none where there is no cache or no room for it. Teacher and images are those that the run has read, whatever lies in their
/// files by now.
pub fn cache_of_test(
    section: &Section,
    inputs: &Inputs,
    teacher: &Network,
    parts: &[Part],
    test: &Images,
) -> Result<Option<Cache>> {
    let Some(dir) = &section.cache else { return Ok(None) };
    let numbers: usize = shapes(parts, teacher)?.iter().map(|shape| shape.iter().product::<usize>()).sum();
    if (test.len() * numbers * 4) as u64 > section.cache_limit_mb.saturating_mul(MB) {
        return Ok(None);
    }
    let hash =
        |of: &str| inputs.get(of).cloned().with_context(|| format!("the run does not know the hash of its {of}"));
    let key = Key {
        format: cache::FORMAT,
        teacher: hash("teacher")?,
        arch: arch(section)?,
        images: hash("test images")?,
        augment: Augment::default(),
        view_seed: 0,
        engine: engine(&Backend::f32(teacher.device()), Dtype::F32Direct),
    };
    Cache::new(&dir.join("test"), &key, names(parts)?, test, teacher.device()).map(Some)
}

const MB: u64 = 1_000_000;

/// Says what the cache will take on disk; more than its limit is refused before anything is written.
pub fn sized(cache: &Cache, views: u64, shapes: &[Vec<usize>], limit_mb: u64, images: usize) -> Result<String> {
    let (whole, there) = cache.size(views, shapes);
    ensure!(
        whole <= limit_mb.saturating_mul(MB),
        "teacher.cache would take {} MB for {views} views of {images} images in {}, teacher.cache_limit_mb allows {limit_mb}: set \
         data.views to fewer views (every one is stored once), raise the limit, or leave the cache out",
        whole.div_ceil(MB),
        cache.dir().display()
    );
    Ok(format!(
        "teacher's cache {}: {} MB for {views} views, {} MB of them there already",
        cache.dir().display(),
        whole.div_ceil(MB),
        there / MB
    ))
}

/// The error on this data set: what its metadata states, spot-checked, where that is for this very set; measured in
/// full elsewhere. A stated error of the set that this one is a part of is checked too, but is not this set's.
fn check_error(file: &File, network: &Network, config: &Config) -> Result<(f64, String)> {
    let test = config.data.source().load(Split::Test)?;
    let name = &network.architecture.name;
    let own = file.metadata.get("dataset").map(String::as_str);
    let same = own == Some(&config.data.name);
    let part = own.is_some() && own == config.data.source().entry()?.part_of;
    let stated = file.metadata.get("test_error").and_then(|e| e.parse::<f64>().ok()).filter(|_| same || part);
    let count = if same && stated.is_some() { SPOT_CHECK.min(test.len()) } else { test.len() };
    let found = evaluate(network, &test.spread(count))?;
    ensure!(
        found.loss.is_finite(),
        "the teacher {} answers some images with {}: its weights overflow, or mean and std are not what it was trained with",
        file.name(),
        found.loss
    );
    let found = found.error;
    if let Some(stated) = stated {
        let p = (stated / 100.0).clamp(0.01, 0.99);
        let margin = 500.0 * (p * (1.0 - p) / count as f64).sqrt();
        if (found - stated).abs() > margin {
            bail!(
                "the teacher {} should have {stated:.2} % test error, but has {found:.2} % on {count} test images of {}: its \
                 normalisation, its shortcut (preact or raw) or the data is not what it was trained with",
                file.name(),
                config.data.name
            );
        }
    }
    Ok(match stated.filter(|_| same) {
        Some(stated) => (
            stated,
            format!(
                "teacher {name}: test error {stated:.2} % (its metadata; {found:.2} % on {count} test images here)"
            ),
        ),
        None => (found, format!("teacher {name}: test error {found:.2} % (measured, n = {count})")),
    })
}
