//! One safetensors file with PyTorch's names and layouts and a metadata map.
//!
//! Written by hand because the header must be in sorted order (the safetensors crate writes its metadata
//! from a hash map): the same run gives the same bytes. Read through the crate.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernels::graph::Shape;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error;
use crate::files::write_atomically;
use crate::models::{self, Architecture, LAYERS, Layer, Options};
use crate::nn::{Backend, Network, Normalization, StateDict};

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

    fn list(&self, key: &str) -> Result<Vec<f64>> {
        serde_json::from_str(self.get(key)?)
            .with_context(|| format!("\"{key}\" in the metadata of {} is not a list of numbers", self.name))
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its model sees pixels.
    pub fn normalization(&self) -> Result<Normalization> {
        let n = Normalization { mean: self.list("mean")?, std: self.list("std")? };
        let finite = n.mean.iter().chain(&n.std).all(|x| x.is_finite());
        let fits = n.mean.len() == 3 && n.std.len() == 3 && n.std.iter().all(|s| *s > 0.0);
        ensure!(fits && finite, "{}: mean and std must be three numbers each, std positive", self.name);
        Ok(n)
    }

    /// The channels' mean activations over the training set at the last layer, if it keeps them.
    pub fn feature_mean(&self) -> Result<Option<Vec<f32>>> {
        let list = self.metadata.contains_key("feature_mean").then(|| self.list("feature_mean")).transpose()?;
        Ok(list.map(|l| l.into_iter().map(|v| v as f32).collect()))
    }

    /// The architecture its metadata names (or `arch`, with the rest from the metadata).
    pub fn architecture(&self, arch: Option<&str>) -> Result<Architecture> {
        let name = match arch {
            Some(a) => a,
            None => self.get("arch").context("name the architecture with --arch and --weights")?,
        };
        if name == LAYERS {
            let layers: Vec<Layer> = serde_json::from_str(self.get("layers")?).context("\"layers\" in the metadata")?;
            return self.architecture_of(&layers);
        }
        let (input, classes) = self.ends()?;
        Architecture::named(name, input, classes, &self.options(name)?)
            .with_context(|| format!("the metadata of {}", self.name))
    }

    /// Layers of somebody's own, for the images and classes that its metadata name.
    pub fn architecture_of(&self, layers: &[Layer]) -> Result<Architecture> {
        let (input, classes) = self.ends()?;
        Architecture::from_layers(layers, input, classes)
    }

    /// The images that go in and the number of classes that come out.
    fn ends(&self) -> Result<(Shape, usize)> {
        let classes: usize = self.get("num_classes")?.parse().context("num_classes in the metadata")?;
        ensure!((1..=100_000).contains(&classes), "{}: num_classes {classes} is not plausible", self.name);
        let input = input_shape(self.metadata.get("input_size").map_or("32", String::as_str))
            .with_context(|| format!("input_size in the metadata of {}", self.name))?;
        Ok((input, classes))
    }

    /// What its metadata says of the choices that the family of `arch` leaves open.
    pub fn options(&self, arch: &str) -> Result<Options> {
        let said = |c: &models::Choice| Some((c.name.to_string(), self.metadata.get(c.name)?.clone()));
        Ok(models::choices(arch)?.iter().filter_map(said).collect())
    }

    /// The frozen model that it holds (as `arch`, where its metadata does not say), with what it knows of the training
    /// set. `layers` says what the model hands out.
    pub fn network(
        &self,
        arch: Option<&str>,
        layers: impl FnOnce(&Architecture) -> Vec<String>,
        backend: Backend,
    ) -> Result<Network> {
        self.network_of(self.architecture(arch)?, layers, backend)
    }

    /// The same of an architecture that is known.
    pub fn network_of(
        &self,
        architecture: Architecture,
        layers: impl FnOnce(&Architecture) -> Vec<String>,
        backend: Backend,
    ) -> Result<Network> {
        let (weights, layers) = (self.state_dict(&architecture)?, layers(&architecture));
        let mut network = Network::new(architecture, weights, self.normalization()?, &layers, false, backend)?;
        network.feature_mean = self.feature_mean()?;
        Ok(network)
    }

    /// All its tensors, as rows of f32.
    pub fn named(&self) -> Result<Named> {
        self.shapes()?.into_iter().map(|(name, shape)| Ok((name.clone(), (shape, self.f32(&name)?)))).collect()
    }

    /// The same with the classifier of `fresh`, whatever its own is.
    pub fn state_dict_under(&self, architecture: &Architecture, fresh: &StateDict) -> Result<StateDict> {
        let mut found = self.named()?;
        for (entry, _) in architecture.entries().filter(|(e, parameter)| *parameter && e.offset >= architecture.trunk) {
            found.insert(entry.name.clone(), (entry.shape.clone(), fresh.parameters[entry.range()].to_vec()));
        }
        Ok(assemble(architecture, found).with_context(|| self.name.clone()).context(error::Checkpoint)?.0)
    }

    /// Its weights for `architecture`; names what is missing, unexpected or of another shape.
    pub fn state_dict(&self, architecture: &Architecture) -> Result<StateDict> {
        let mut found = self.named()?;
        found.retain(|name, _| !name.ends_with("num_batches_tracked"));
        let assembled = assemble(architecture, found).with_context(|| self.name.clone());
        let (weights, unexpected) = assembled.context(error::Checkpoint)?;
        ensure!(
            unexpected.is_empty(),
            "{} does not fit {}; unexpected: {}",
            self.name,
            architecture.name,
            few(&unexpected)
        );
        Ok(weights)
    }
}

/// Tensors by name: shape and values.
pub type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The first names of a list.
fn few(names: &[String]) -> String {
    let more = names.len().saturating_sub(4);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names[..names.len().min(4)].join(", "))
}

/// Named tensors as the weights of `architecture`, and the names that it does not know. An error says which are missing
/// or of another shape.
pub fn assemble(architecture: &Architecture, mut found: Named) -> Result<(StateDict, Vec<String>)> {
    let (mut missing, mut shapes) = (Vec::new(), Vec::new());
    // Names and shapes first: a small file that names a huge model must not make room for it.
    for (entry, _) in architecture.entries() {
        match found.get(&entry.name) {
            None => missing.push(entry.name.clone()),
            Some((shape, _)) if *shape != entry.shape => {
                shapes.push(format!("{} is {shape:?} instead of {:?}", entry.name, entry.shape))
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&String> = architecture.entries().map(|(entry, _)| &entry.name).collect();
    let unexpected: Vec<String> = found.keys().filter(|name| !known.contains(name)).cloned().collect();
    if !missing.is_empty() || !shapes.is_empty() {
        let lists = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)];
        let parts = lists.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> = parts.map(|(what, names)| format!("{what}: {}", few(names))).collect();
        bail!("it does not fit {}; {}", architecture.name, parts.join("; "))
    }
    let mut weights = StateDict {
        parameters: vec![0.0; architecture.graph.parameter_len()],
        running: vec![0.0; architecture.graph.statistics_len()],
    };
    for (entry, parameter) in architecture.entries() {
        let (_, values) = found.remove(&entry.name).with_context(|| entry.name.clone())?;
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            bail!("{} holds the value {bad}: the checkpoint is damaged", entry.name);
        }
        let target = if parameter { &mut weights.parameters } else { &mut weights.running };
        target[entry.range()].copy_from_slice(&values);
    }
    Ok((weights, unexpected))
}

/// `32`, `[32, 32]` or `[3, 32, 32]`.
pub fn input_shape(text: &str) -> Result<Shape> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let side = |v: &serde_json::Value| v.as_u64().filter(|s| (1..=4096).contains(s)).map(|s| s as usize);
    let sides: Option<Vec<usize>> = match &value {
        serde_json::Value::Array(a) => a.iter().map(side).collect(),
        v => side(v).map(|s| vec![s, s]),
    };
    match sides.as_deref() {
        Some([h, w] | [3, h, w]) => Ok(Shape { channels: 3, h: *h, w: *w }),
        _ => bail!("\"{text}\" is not a size like 32 or [3, 32, 32]"),
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

/// Writes a network's weights with its metadata.
pub fn save(
    path: &Path,
    architecture: &Architecture,
    weights: &StateDict,
    normalization: &Normalization,
    extra: &Metadata,
) -> Result<()> {
    ensure!(
        normalization.mean.iter().chain(&normalization.std).all(|x| x.is_finite()),
        "mean {:?} and std {:?} must be finite",
        normalization.mean,
        normalization.std
    );
    let mut metadata = extra.clone();
    let input = architecture.graph.shapes[0];
    metadata.insert("arch".into(), architecture.name.clone());
    metadata.insert("num_classes".into(), architecture.classes.to_string());
    let size = if input.h == input.w { json!(input.h) } else { json!([input.channels, input.h, input.w]) };
    metadata.insert("input_size".into(), size.to_string());
    metadata.insert("mean".into(), json!(normalization.mean).to_string());
    metadata.insert("std".into(), json!(normalization.std).to_string());
    metadata.extend(architecture.options.clone());
    let tensors = architecture
        .entries()
        .map(|(e, parameter)| {
            let values = if parameter { &weights.parameters } else { &weights.running };
            (e.name.clone(), Entry::f32(&e.shape, &values[e.range()]))
        })
        .collect();
    write_tensors(path, &tensors, &metadata)
}
