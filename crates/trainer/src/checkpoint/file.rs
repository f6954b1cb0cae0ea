//! One safetensors file with PyTorch's names and layouts and a metadata map.
//!
//! Written by hand because the header must be in sorted order (the safetensors crate writes its metadata
//! from a hash map): the same run gives the same bytes. Read through the crate.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error;
use crate::files::write_atomically;

/// The metadata map.
pub type Metadata = BTreeMap<String, String>;

/// A tensor to write.
pub struct Entry<'a> {
    /// Its shape.
    pub shape: Vec<usize>,
    /// `F32`, `F64`, `I64`, `U8`.
    pub dtype: &'static str,
    /// Its elements, little-endian.
    pub bytes: std::borrow::Cow<'a, [u8]>,
}

impl Entry<'_> {
    /// An f32 tensor.
    pub fn f32(shape: &[usize], values: &[f32]) -> Entry<'static> {
        Entry { shape: shape.to_vec(), dtype: "F32", bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
    /// An f64 tensor.
    pub fn f64(shape: &[usize], values: &[f64]) -> Entry<'static> {
        Entry { shape: shape.to_vec(), dtype: "F64", bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
    /// An i64 tensor.
    pub fn i64(shape: &[usize], values: &[i64]) -> Entry<'static> {
        Entry { shape: shape.to_vec(), dtype: "I64", bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

/// The metadata key of [`sealed`].
const SEAL: &str = "sha256";

/// Metadata with a hash of everything: names, types, shapes, values, and the other metadata.
pub fn sealed(tensors: &BTreeMap<String, Entry>, mut metadata: Metadata) -> Metadata {
    let parts = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype.to_string(), &t.shape[..], &t.bytes[..]));
    let seal = seal(parts, &metadata);
    metadata.insert(SEAL.into(), seal);
    metadata
}

fn seal<'a>(parts: impl Iterator<Item = (&'a str, String, &'a [usize], &'a [u8])>, metadata: &Metadata) -> String {
    let mut hash = Sha256::new();
    for (name, dtype, shape, bytes) in parts {
        hash.update(format!("{name:?} {dtype} {shape:?} "));
        hash.update(bytes);
    }
    hash.update(format!("{metadata:?}"));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes tensors and metadata as safetensors, in sorted order.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Entry>, metadata: &Metadata) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut offset = 0;
    for (name, t) in tensors {
        let end = offset + t.bytes.len();
        header.insert(name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    tensors.values().for_each(|t| bytes.extend_from_slice(&t.bytes));
    write_atomically(path, &bytes)
}

/// A safetensors file in memory.
pub struct File {
    name: String,
    bytes: Vec<u8>,
    /// Its metadata map.
    pub metadata: Metadata,
}

impl File {
    /// Reads and checks the header.
    pub fn read(path: &Path) -> Result<File> {
        let name = path.display().to_string();
        let bytes = fs::read(path).with_context(|| format!("reading {name}")).context(error::Checkpoint)?;
        File::parse(name, bytes)
    }

    /// The same of bytes that are there already; `name` is for messages.
    pub fn parse(name: String, bytes: Vec<u8>) -> Result<File> {
        File::whole(name, bytes).context(error::Checkpoint)
    }

    fn whole(name: String, bytes: Vec<u8>) -> Result<File> {
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| anyhow!("{name} is not a whole safetensors file ({e}): it is truncated or damaged"))?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = File { name, bytes, metadata };
        file.tensors()?;
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|e| anyhow!("{} is not a whole safetensors file ({e}): it is truncated or damaged", self.name))
    }

    /// Refuses a file that is not what [`sealed`] metadata says, to the bit.
    pub fn check_seal(&self) -> Result<()> {
        let (tensors, mut metadata) = (self.tensors()?, self.metadata.clone());
        let expected = metadata.remove(SEAL);
        ensure!(expected.is_some(), "{} was written by an older version, whose files are not read", self.name);
        let all: BTreeMap<String, _> = tensors.iter().map(|(name, t)| (name.to_string(), t)).collect();
        let parts = all.iter().map(|(name, t)| (name.as_str(), format!("{:?}", t.dtype()), t.shape(), t.data()));
        let found = seal(parts, &metadata);
        ensure!(expected.as_deref() == Some(&found), "{} is damaged: its contents are not what was written", self.name);
        Ok(())
    }

    /// The tensors' names and shapes.
    pub fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        Ok(self.tensors()?.iter().map(|(name, t)| (name.to_string(), t.shape().to_vec())).collect())
    }

    /// A floating-point tensor as f64.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let tensors = self.tensors()?;
        let t = tensors.tensor(name).map_err(|_| anyhow!("{} has no tensor {name}", self.name))?;
        let data = t.data();
        Ok(match t.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|b| f64::from(half(u16::from_le_bytes(*b)))).collect(),
            Dtype::BF16 => data
                .as_chunks()
                .0
                .iter()
                .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)))
                .collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::I32 => data.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::U32 => data.as_chunks().0.iter().map(|b| f64::from(u32::from_le_bytes(*b))).collect(),
            Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
            other => bail!("{}: {name} is {other:?}; accepted are F32, F64, F16, BF16, I64, I32, U32, U8", self.name),
        })
    }

    /// A floating-point tensor as f32.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.f64(name)?.into_iter().map(|v| v as f32).collect())
    }

    /// A tensor of whole numbers from 0 to `largest`.
    pub fn integers(&self, name: &str, largest: u32) -> Result<Vec<u32>> {
        let whole = |v: f64| {
            let fits = v.fract() == 0.0 && (0.0..=f64::from(largest)).contains(&v);
            ensure!(fits, "{}: {name} holds {v}; accepted are whole numbers from 0 to {largest}", self.name);
            Ok(v as u32)
        };
        self.f64(name)?.into_iter().map(whole).collect()
    }

    /// A metadata value that must be there.
    pub fn get(&self, key: &str) -> Result<&str> {
        self.metadata
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| anyhow!("{} has no \"{key}\" in its metadata", self.name))
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// IEEE 754 half precision.
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, bits >> 10 & 31, f32::from(bits & 1023));
    let value = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(e) - 15),
    };
    if sign == 1 { -value } else { value }
}
