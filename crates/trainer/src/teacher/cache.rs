//! What a teacher says about a view, kept.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::write_atomically;
use crate::config::Config;
use crate::data::Images;
use crate::data::fetch::sha256;
use crate::data::loader::Batch;
use crate::objective::Signal;

/// Signals on disk: a file a view, holding logits and maps of every training image, exact.
///
/// The folder's name is a hash of all that the signals depend on, so students with the same teacher and
/// views share it and others cannot meet it. A file is written whole, after a full epoch, with a checksum.
pub(crate) struct Cache {
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
    pub(crate) fn new(dir: PathBuf, config: &Config, checkpoint: &[u8], images: &Images) -> Result<Cache> {
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

    /// What it knows about a batch, if it knows all of it.
    pub(crate) fn read(&mut self, batch: &Batch, device: &Device) -> Result<Option<Signal>> {
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

    /// Keeps what the teacher said about a batch; once it has said everything about a view, on disk.
    pub(crate) fn remember(&mut self, batch: &Batch, signal: &Signal) -> Result<()> {
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
