//! The teacher: frozen, in eval mode, sees the student's view. What it says about a view can be kept.

pub(crate) mod cache;
pub mod prepare;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cache::{Cache, Key};
use candle_core::{DType, Tensor};

use crate::checkpoint::File;
use crate::config::{Config, Teacher as Section};
use crate::data::fetch::sha256;
use crate::data::loader::Batch;
use crate::data::{Images, Split};
use crate::evaluate::evaluate;
use crate::nn::{Backend, Network};
use crate::objective::{self, Part, Signal};

/// A frozen teacher, with or without a cache.
pub struct Teacher {
    /// The network.
    pub network: Network,
    /// Its test error in percent, from its metadata or measured.
    pub test_error: f64,
    /// That error in words, and where it comes from.
    pub note: String,
    /// The tensors of its signals.
    parts: Vec<Part>,
    /// Of its classifier, (classes,).
    bias: Tensor,
    cache: Option<Cache>,
}

/// Images on which a teacher's stated error is checked.
const SPOT_CHECK: usize = 500;

impl Teacher {
    /// The network of a configuration's teacher, and its file.
    pub fn network(config: &Config, backend: Backend) -> Result<(File, Network)> {
        let section = config.teacher.as_ref().context("there is no [teacher]")?;
        let file = File::read(&section.checkpoint).context("the teacher's checkpoint")?;
        let architecture = file.architecture(section.arch.as_deref())?;
        let weights = file.weights(&architecture)?;
        let layers = objective::layers(&config.loss);
        let mut network = Network::new(architecture, weights, file.normalization()?, &layers, false, backend)?;
        network.feature_mean = file.feature_mean()?;
        Ok((file, network))
    }

    /// Loads the teacher of a configuration.
    pub fn load(section: &Section, config: &Config, images: &Images, backend: Backend) -> Result<Teacher> {
        ensure!(
            section.cache.is_none() || backend.dtype == DType::F32,
            "teacher.cache keeps f32 signals: use train.dtype = \"f32\" with it"
        );
        let key =
            cache_of(config).map(|dir| Ok::<_, anyhow::Error>((dir, key(config, images, &backend)?))).transpose()?;
        let (file, network) = Teacher::network(config, backend)?;
        let classes = network.architecture.classes;
        ensure!(
            classes == images.classes,
            "the teacher {} has {classes} classes, the data {}",
            file.name(),
            images.classes
        );
        let (test_error, mut note) = check_error(&file, &network, config)?;
        let parts = objective::parts(config);
        let mut cache = None;
        if let Some((dir, key)) = key {
            let names = parts.iter().map(|part| part.name(config)).collect::<Result<Vec<_>>>()?;
            let shapes = parts.iter().map(|part| part.shape(config, &network)).collect::<Result<Vec<_>>>()?;
            let made = Cache::new(dir, &key, names, images)?;
            note += "\n";
            note += &sized(&made, views(config), &shapes, section.cache_limit_mb, images.len())?;
            cache = Some(made);
        }
        let bias = network.linear_head()?.bias;
        Ok(Teacher { network, test_error, note, parts, bias, cache })
    }

    /// What it says about a batch: read from the cache, or computed and remembered.
    pub fn signal(&mut self, config: &Config, batch: &Batch) -> Result<Signal> {
        if let Some(cache) = &mut self.cache
            && let Some(tensors) = cache.read(batch, self.network.device())?
        {
            return Signal::from_tensors(&self.parts, tensors, &self.bias);
        }
        let pass = self.network.signal_pass(&self.network.images(batch)?)?;
        let signal = objective::signal(config, &self.network, &pass, batch)?;
        if let Some(cache) = &mut self.cache {
            cache.remember(batch, &signal.tensors())?;
        }
        Ok(signal)
    }
}

/// Whether these are the bytes of a whole view of `rows` images in a cache.
pub fn is_view(bytes: &[u8], rows: usize) -> bool {
    cache::decode(bytes, rows).is_some()
}

/// The bytes of a view in a cache: rows of this shape.
pub fn view_bytes(shape: &[usize], values: &[f32]) -> Result<Vec<u8>> {
    cache::encode(shape, values)
}

/// Views of the training images that a run shows.
pub(crate) fn views(config: &Config) -> u64 {
    let (views, epochs) = (config.data.views, config.train.epochs as u64);
    if views == 0 { epochs } else { views.min(epochs) }
}

/// The folder of a run's cache, if it has one and ever asks its teacher.
pub(crate) fn cache_of(config: &Config) -> Option<&Path> {
    config.teacher.as_ref().and_then(|t| t.cache.as_deref()).filter(|_| config.distils())
}

/// All that the signals of this run's teacher depend on.
fn key(config: &Config, images: &Images, backend: &Backend) -> Result<Key> {
    let section = config.teacher.as_ref().context("a run without a teacher has no signals")?;
    let checkpoint = &section.checkpoint;
    let bytes = fs::read(checkpoint).with_context(|| format!("reading {}", checkpoint.display()))?;
    let (device, isa, precision) = (backend.device.location(), kernels::Isa::best(), config.train.dtype.in_effect());
    Ok(Key {
        format: cache::FORMAT,
        teacher: sha256(&bytes),
        arch: section.arch.clone(),
        images: images.fingerprint(),
        augment: config.data.augment,
        view_seed: config.data.seed,
        engine: format!("{:?} {isa:?} {precision:?} {device:?}", backend.engine),
    })
}

/// Says what the cache will take on disk; more than its limit is refused before anything is written.
fn sized(cache: &Cache, views: u64, shapes: &[Vec<usize>], limit_mb: u64, images: usize) -> Result<String> {
    const MB: u64 = 1_000_000;
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

/// The error on this data set: what its metadata states, spot-checked, where that is for this very set; measured in full elsewhere. A
/// stated error of the set that this one is a part of is checked too, but is not this set's.
fn check_error(file: &File, network: &Network, config: &Config) -> Result<(f64, String)> {
    let test = config.data.source().load(Split::Test)?;
    let name = &network.architecture.name;
    let own = file.metadata.get("dataset").map(String::as_str);
    let same = own == Some(&config.data.name);
    let part = own == Some("cifar10") && config.data.name == "cifar10-mini";
    let stated = file.metadata.get("test_error").and_then(|e| e.parse::<f64>().ok()).filter(|_| same || part);
    let count = if same && stated.is_some() { SPOT_CHECK.min(test.len()) } else { test.len() };
    let sample: Vec<usize> = (0..count).map(|i| i * test.len() / count).collect();
    let found = evaluate(network, &test.select(&sample))?.error;
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
