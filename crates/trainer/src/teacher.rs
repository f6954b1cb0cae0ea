//! The teacher: frozen, in eval mode, sees the student's view. What it says about a view can be kept.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{File, write_atomically};
use crate::config::{Config, Teacher as Section};
use crate::data::fetch::sha256;
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

/// Signals on disk: a file a view, holding logits and maps of every training image, exact.
///
/// The folder's name is a hash of all that the signals depend on, so students with the same teacher and
/// views share it and others cannot meet it. A file is written whole, after a full epoch, with a checksum.
struct Cache {
    dir: PathBuf,
    /// Image index to row.
    rows: HashMap<u64, usize>,
    view: Option<u64>,
    /// Shapes of the parts of a row: logits, map, attention maps.
    shapes: Vec<Vec<usize>>,
    values: Vec<f32>,
    filled: Vec<bool>,
    complete: bool,
}

impl Cache {
    fn new(dir: PathBuf, config: &Config, checkpoint: &[u8], images: &Images) -> Result<Cache> {
        let (l, d) = (&config.loss, &config.data);
        let mut key = format!("{} {} {:?} {:?}", sha256(checkpoint), d.name, d.augment, (d.seed, d.size));
        let (explains, attends) = (l.weights.explanation > 0.0, l.weights.attention > 0.0);
        if explains {
            key += &format!("{:?} {:?} {} {} {:?}", l.interpreter, l.distance, l.layer, l.relu, (l.class, l.control));
            key += &serde_json::to_string(&config.interpreter)?;
        }
        key += &format!(" attention {attends} images {} {:?}", images.fingerprint(), config.train.dtype.in_effect());
        let dir = dir.join(&sha256(key.as_bytes())[..16]);
        fs::create_dir_all(&dir).with_context(|| format!("creating the cache {}", dir.display()))?;
        let rows = images.index.iter().enumerate().map(|(row, i)| (*i, row)).collect();
        Ok(Cache { dir, rows, view: None, shapes: vec![], values: vec![], filled: vec![], complete: false })
    }

    fn path(&self, view: u64) -> PathBuf {
        self.dir.join(format!("view-{view}.signals"))
    }

    /// Makes `view` the one in memory: from disk, or empty.
    fn enter(&mut self, view: u64) -> Result<()> {
        if self.view == Some(view) {
            return Ok(());
        }
        self.view = Some(view);
        self.filled = vec![false; self.rows.len()];
        self.values.clear();
        self.complete = false;
        let path = self.path(view);
        let Ok(bytes) = fs::read(&path) else { return Ok(()) };
        match decode(&bytes, self.rows.len()) {
            Some((shapes, values)) => {
                (self.shapes, self.values, self.complete) = (shapes, values, true);
                self.filled.fill(true);
            }
            None => eprintln!("{} is damaged; the teacher is asked again", path.display()),
        }
        Ok(())
    }

    fn row_len(&self) -> usize {
        self.shapes.iter().map(|s| s.iter().product::<usize>()).sum()
    }

    fn read(&mut self, batch: &Batch, device: &Device) -> Result<Option<Signal>> {
        let Some(first) = batch.ids.first() else { return Ok(None) };
        self.enter(first.view)?;
        let rows = batch.ids.iter().map(|id| self.rows.get(&id.sample).copied()).collect::<Option<Vec<_>>>();
        let rows = rows.context("the batch holds an image that is not of the training set")?;
        if !rows.iter().all(|r| self.filled[*r]) {
            return Ok(None);
        }
        let len = self.row_len();
        let mut parts = Vec::new();
        let mut offset = 0;
        for shape in &self.shapes {
            let part: usize = shape.iter().product();
            let values: Vec<f32> =
                rows.iter().flat_map(|r| self.values[r * len + offset..][..part].iter().copied()).collect();
            let dims: Vec<usize> = std::iter::once(rows.len()).chain(shape.iter().copied()).collect();
            parts.push((part > 0).then(|| Tensor::from_vec(values, dims, device)).transpose()?);
            offset += part;
        }
        let mut parts = parts.into_iter();
        let logits = parts.next().flatten().context("a cached signal without logits")?;
        Ok(Some(Signal { logits, map: parts.next().flatten(), attention: parts.flatten().collect() }))
    }

    fn remember(&mut self, batch: &Batch, signal: &Signal) -> Result<()> {
        let mut parts = vec![Some(&signal.logits), signal.map.as_ref()];
        parts.extend(signal.attention.iter().map(Some));
        let shapes = parts.iter().map(|p| p.map_or(vec![0], |t| t.dims()[1..].to_vec())).collect();
        if self.values.is_empty() {
            self.shapes = shapes;
            self.values = vec![0.0; self.rows.len() * self.row_len()];
        }
        let len = self.row_len();
        let mut offset = 0;
        for (part, shape) in parts.into_iter().zip(self.shapes.clone()) {
            let width: usize = shape.iter().product();
            if let Some(t) = part {
                let values = t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                for (id, values) in batch.ids.iter().zip(values.chunks_exact(width)) {
                    self.values[self.rows[&id.sample] * len + offset..][..width].copy_from_slice(values);
                }
            }
            offset += width;
        }
        batch.ids.iter().for_each(|id| self.filled[self.rows[&id.sample]] = true);
        if !self.complete && self.filled.iter().all(|f| *f) {
            self.complete = true;
            if let Some(view) = self.view {
                write_atomically(&self.path(view), &encode(&self.shapes, &self.values)?)?;
            }
        }
        Ok(())
    }
}

/// A line of JSON with the shapes, the values, their hash.
fn encode(shapes: &[Vec<usize>], values: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(shapes)?;
    bytes.push(b'\n');
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let hash = sha256(&bytes);
    bytes.extend(hash.as_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8], rows: usize) -> Option<(Vec<Vec<usize>>, Vec<f32>)> {
    let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(64)?)?;
    if sha256(content).as_bytes() != hash {
        return None;
    }
    let line = content.iter().position(|b| *b == b'\n')?;
    let shapes: Vec<Vec<usize>> = serde_json::from_slice(&content[..line]).ok()?;
    let values: Vec<f32> = content[line + 1..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let len: usize = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
    (values.len() == rows * len).then_some((shapes, values))
}
