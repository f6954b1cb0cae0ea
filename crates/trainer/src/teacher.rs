//! The teacher: frozen, in eval mode, sees the student's view. What it says about a view can be kept.

pub(crate) mod cache;

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use cache::Cache;
use candle_core::DType;

use crate::checkpoint::File;
use crate::config::{Config, Teacher as Section};
use crate::data::loader::Batch;
use crate::data::{Images, Split};
use crate::evaluate::evaluate;
use crate::nn::{Backend, Network};
use crate::objective::{self, Signal};

/// A frozen teacher, with or without a cache.
pub struct Teacher {
    /// The network.
    pub network: Network,
    /// Its test error in percent, from its metadata or measured.
    pub test_error: f64,
    /// That error in words, and where it comes from.
    pub note: String,
    cache: Option<Cache>,
}

/// Images on which a teacher's stated error is checked.
const SPOT_CHECK: usize = 500;

impl Teacher {
    /// Loads the teacher of a configuration.
    pub fn load(section: &Section, config: &Config, images: &Images, backend: Backend) -> Result<Teacher> {
        ensure!(
            section.cache.is_none() || backend.dtype == DType::F32,
            "teacher.cache keeps f32 signals: use train.dtype = \"f32\" with it"
        );
        let file = File::read(&section.checkpoint).context("the teacher's checkpoint")?;
        let architecture = file.architecture(section.arch.as_deref())?;
        let classes = architecture.classes;
        ensure!(
            classes == images.classes,
            "the teacher {} has {classes} classes, the data {}",
            file.name(),
            images.classes
        );
        let layers = objective::layers(&config.loss);
        let weights = file.weights(&architecture)?;
        let mut network = Network::new(architecture, weights, file.normalization()?, &layers, false, backend)?;
        network.feature_mean = file.feature_mean()?;
        let (test_error, note) = check_error(&file, &network, config)?;
        let cache = section
            .cache
            .as_ref()
            .map(|dir| Cache::new(dir.clone(), config, &fs::read(&section.checkpoint)?, images))
            .transpose()?;
        Ok(Teacher { network, test_error, note, cache })
    }

    /// What it says about a batch: read from the cache, or computed and remembered.
    pub fn signal(&mut self, config: &Config, batch: &Batch) -> Result<Signal> {
        if let Some(cache) = &mut self.cache
            && let Some(signal) = cache.read(batch, self.network.device())?
        {
            return Ok(signal);
        }
        let pass = self.network.signal_pass(&self.network.images(batch)?)?;
        let signal = objective::signal(config, &self.network, &pass, batch)?;
        if let Some(cache) = &mut self.cache {
            cache.remember(batch, &signal)?;
        }
        Ok(signal)
    }
}

/// The error its metadata states, spot-checked; measured in full where it states none.
fn check_error(file: &File, network: &Network, config: &Config) -> Result<(f64, String)> {
    let test = config.data.source().load(Split::Test)?;
    let name = &network.architecture.name;
    // What a checkpoint says holds for its own data set; cifar10-mini is a part of cifar10.
    let own = file.metadata.get("dataset").map(String::as_str);
    let same_data = own == Some(&config.data.name) || (own == Some("cifar10") && config.data.name == "cifar10-mini");
    let stated = file.metadata.get("test_error").and_then(|e| e.parse::<f64>().ok()).filter(|_| same_data);
    let Some(stated) = stated else {
        let error = evaluate(network, &test)?.error;
        let note = format!("teacher {name}: test error {error:.2} % (measured, n = {})", test.len());
        return Ok((error, note));
    };
    let count = SPOT_CHECK.min(test.len());
    let sample: Vec<usize> = (0..count).map(|i| i * test.len() / count).collect();
    let found = evaluate(network, &test.select(&sample))?.error;
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
    let note =
        format!("teacher {name}: test error {stated:.2} % (its metadata; {found:.2} % on {count} test images here)");
    Ok((stated, note))
}
