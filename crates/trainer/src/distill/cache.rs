//! What a teacher says about a view, kept.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::data::Images;
use crate::data::augment::Augment;
use crate::data::loader::Batch;
use crate::files::{sha256, write_atomically};
use crate::terminal::say;

/// All that an output depends on beside the image and the number of its view, and beside what the part's own name says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Key {
    /// Of these files; raised whenever the same key would mean other bytes.
    pub format: u32,
    /// Hash of the teacher's checkpoint.
    pub teacher: String,
    /// Its architecture, where the checkpoint does not name it.
    pub arch: Option<String>,
    /// Hash of the images, their labels and their positions.
    pub images: String,
    /// What a view is.
    pub augment: Augment,
    /// Seed of the views.
    pub view_seed: u64,
    /// What computes: engine, instruction set, precision and kind of device.
    pub engine: String,
}

/// The format of [`Key::format`].
pub const FORMAT: u32 = 3;

/// A teacher's outputs on disk: a file for each view and part, holding that part of every image, exact.
///
/// A part is a tensor of an output (logits, every class's CAM, a method's map ...). The folder's name is a hash of the
/// [`Key`], so students with the same teacher and views share it and others cannot meet it; each takes the parts it
/// uses. A file is written whole, once every image of the view has been seen, with a checksum.
pub struct Cache {
    dir: PathBuf,
    /// Where its tensors go.
    device: Device,
    /// Image index to row.
    rows: HashMap<u64, usize>,
    parts: Vec<String>,
    view: Option<u64>,
    /// One for each part, of the view in memory.
    tables: Vec<Table>,
    /// Rows of the view in memory that hold all parts.
    filled: Vec<bool>,
}

/// A part of one view.
#[derive(Clone, Default)]
struct Table {
    /// Of a row.
    shape: Vec<usize>,
    /// (rows, shape).
    values: Vec<f32>,
    /// Whether it lies on disk.
    complete: bool,
}

impl Table {
    fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Cache {
    /// The part of the cache in `dir` that `key` names.
    pub fn new(dir: &Path, key: &Key, parts: Vec<String>, images: &Images, device: &Device) -> Result<Cache> {
        let key = serde_json::to_vec_pretty(key)?;
        let dir = dir.join(&sha256(&key)[..16]);
        fs::create_dir_all(&dir).with_context(|| format!("creating the cache {}", dir.display()))?;
        let about = dir.join("key.json");
        if !about.exists() {
            write_atomically(&about, &key)?;
        }
        let rows = images.index.iter().enumerate().map(|(row, i)| (*i, row)).collect();
        Ok(Cache { dir, device: device.clone(), rows, parts, view: None, tables: vec![], filled: vec![] })
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, view: u64, part: &str) -> PathBuf {
        self.dir.join(format!("view-{view}.{part}"))
    }

    /// Removes what killed processes were writing; for whoever has claimed the folder.
    pub fn tidy(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".partial") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The parts of `view` that are not on disk.
    pub fn missing(&self, view: u64) -> Vec<&str> {
        self.parts.iter().map(String::as_str).filter(|part| !self.path(view, part).exists()).collect()
    }

    /// Bytes that `views` views will take whose rows have these shapes, and bytes of those that are there already.
    pub fn size(&self, views: u64, shapes: &[Vec<usize>]) -> (u64, u64) {
        let of = |shape: &[usize]| (self.rows.len() * shape.iter().product::<usize>() * 4) as u64;
        let all =
            (0..views).flat_map(|view| self.parts.iter().zip(shapes).map(move |(part, shape)| (view, part, shape)));
        all.fold((0, 0), |(whole, there), (view, part, shape)| {
            let bytes = of(shape);
            (whole + bytes, there + if self.path(view, part).exists() { bytes } else { 0 })
        })
    }

    /// Makes `view` the one in memory: from disk as far as it is there.
    fn enter(&mut self, view: u64) -> Result<()> {
        if self.view == Some(view) {
            return Ok(());
        }
        self.view = Some(view);
        self.tables = self.parts.iter().map(|part| self.read_table(view, part)).collect::<Result<_>>()?;
        self.filled = vec![self.tables.iter().all(|t| t.complete); self.rows.len()];
        Ok(())
    }

    fn read_table(&self, view: u64, part: &str) -> Result<Table> {
        let path = self.path(view, part);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Table::default()),
            bytes => bytes.with_context(|| format!("reading {}", path.display()))?,
        };
        match decode(&bytes, self.rows.len()) {
            Some((shape, values)) => Ok(Table { shape, values, complete: true }),
            None => {
                say(format!("{} is damaged; the teacher is asked again", path.display()));
                Ok(Table::default())
            }
        }
    }

    /// The rows of a batch's images, which all show the same view.
    fn rows_of(&self, batch: &Batch) -> Result<Vec<usize>> {
        let view = batch.ids.first().map(|id| id.view);
        ensure!(batch.ids.iter().all(|id| Some(id.view) == view), "the batch holds images of several views");
        let rows = batch.ids.iter().map(|id| self.rows.get(&id.sample).copied()).collect::<Option<Vec<_>>>();
        rows.context("the batch holds an image that the cache is not of")
    }

    /// What it knows about a batch, a tensor for each part, if it knows all of it.
    pub fn read(&mut self, batch: &Batch) -> Result<Option<Vec<Tensor>>> {
        let Some(first) = batch.ids.first() else { return Ok(None) };
        self.enter(first.view)?;
        let rows = self.rows_of(batch)?;
        if !rows.iter().all(|r| self.filled[*r]) {
            return Ok(None);
        }
        let tensor = |table: &Table| {
            let mut values = Vec::with_capacity(rows.len() * table.width());
            rows.iter().for_each(|r| values.extend_from_slice(&table.values[r * table.width()..][..table.width()]));
            let dims: Vec<usize> = std::iter::once(rows.len()).chain(table.shape.iter().copied()).collect();
            Ok(Tensor::from_vec(values, dims, &self.device)?)
        };
        self.tables.iter().map(tensor).collect::<Result<_>>().map(Some)
    }

    /// Keeps what the teacher said about a batch, a tensor for each part; once it has said everything about a view, on
    /// disk.
    pub fn remember(&mut self, batch: &Batch, output: &[Tensor]) -> Result<()> {
        ensure!(output.len() == self.parts.len(), "an output of {} parts, not of {}", output.len(), self.parts.len());
        let Some(first) = batch.ids.first() else { return Ok(()) };
        self.enter(first.view)?;
        let (rows, count) = (self.rows_of(batch)?, self.rows.len());
        for (table, part) in self.tables.iter_mut().zip(output).filter(|(table, _)| !table.complete) {
            if table.values.is_empty() {
                table.shape = part.dims()[1..].to_vec();
                table.values = vec![0.0; count * table.width()];
            }
            let (width, values) = (table.width(), part.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
            for (row, values) in rows.iter().zip(values.chunks_exact(width)) {
                table.values[row * width..][..width].copy_from_slice(values);
            }
        }
        rows.iter().for_each(|row| self.filled[*row] = true);
        if self.filled.iter().all(|f| *f) {
            for at in 0..self.tables.len() {
                if !self.tables[at].complete {
                    let bytes = encode(&self.tables[at].shape, &self.tables[at].values)?;
                    write_atomically(&self.path(first.view, &self.parts[at]), &bytes)?;
                    self.tables[at].complete = true;
                }
            }
        }
        Ok(())
    }
}

/// A line of JSON with a row's shape, the values, their hash.
pub fn encode(shape: &[usize], values: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(shape)?;
    bytes.push(b'\n');
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let hash = sha256(&bytes);
    bytes.extend(hash.as_bytes());
    Ok(bytes)
}

/// The shape of a row and the values, if these are the bytes of a whole view of `rows` rows.
pub fn decode(bytes: &[u8], rows: usize) -> Option<(Vec<usize>, Vec<f32>)> {
    let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(64)?)?;
    if sha256(content).as_bytes() != hash {
        return None;
    }
    let line = content.iter().position(|b| *b == b'\n')?;
    let shape: Vec<usize> = serde_json::from_slice(&content[..line]).ok()?;
    let (chunks, rest) = content[line + 1..].as_chunks();
    let fits = rest.is_empty() && Some(chunks.len()) == shape.iter().try_fold(rows, |n, s| n.checked_mul(*s));
    fits.then(|| (shape, chunks.iter().map(|b| f32::from_le_bytes(*b)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_passes() -> Result<()> {
        let (shape, values): (Vec<usize>, Vec<f32>) = (vec![2, 3], (0..24).map(|v| v as f32 / 7.0).collect());
        let bytes = encode(&shape, &values)?;
        assert_eq!(decode(&bytes, 4), Some((shape, values)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, 4), None, "bit {bit}");
        }
        assert!((0..bytes.len()).all(|len| decode(&bytes[..len], 4).is_none()));
        assert_eq!(decode(&bytes, 5), None);
        Ok(())
    }
}
