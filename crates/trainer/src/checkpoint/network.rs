//! Checkpoints of networks: which architecture a file holds, its weights, and what it knows of the training set.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kernels::graph::Shape;
use serde_json::json;

use super::file::{Entry, File, Metadata, write_tensors};
use crate::error;
use crate::models::{self, Architecture, LAYERS, Layer, Options};
use crate::nn::{Backend, Network, Normalization, StateDict};

impl File {
    fn list(&self, key: &str) -> Result<Vec<f64>> {
        serde_json::from_str(self.get(key)?)
            .with_context(|| format!("\"{key}\" in the metadata of {} is not a list of numbers", self.name()))
    }

    /// How its model sees pixels.
    pub fn normalization(&self) -> Result<Normalization> {
        let n = Normalization { mean: self.list("mean")?, std: self.list("std")? };
        let finite = n.mean.iter().chain(&n.std).all(|x| x.is_finite());
        let fits = n.mean.len() == 3 && n.std.len() == 3 && n.std.iter().all(|s| *s > 0.0);
        ensure!(fits && finite, "{}: mean and std must be three numbers each, std positive", self.name());
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
            .with_context(|| format!("the metadata of {}", self.name()))
    }

    /// Layers of somebody's own, for the images and classes that its metadata name.
    pub fn architecture_of(&self, layers: &[Layer]) -> Result<Architecture> {
        let (input, classes) = self.ends()?;
        Architecture::from_layers(layers, input, classes)
    }

    /// The images that go in and the number of classes that come out.
    fn ends(&self) -> Result<(Shape, usize)> {
        let text = self.get("num_classes")?;
        let classes: usize =
            text.parse().with_context(|| format!("{}: num_classes in the metadata is \"{text}\"", self.name()))?;
        ensure!((1..=100_000).contains(&classes), "{}: num_classes {classes} is not plausible", self.name());
        let input = input_shape(self.metadata.get("input_size").map_or("32", String::as_str))
            .with_context(|| format!("input_size in the metadata of {}", self.name()))?;
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
        if let Some(mean) = &network.feature_mean {
            let channels = network.architecture.channels();
            ensure!(
                mean.len() == channels,
                "{}: feature_mean in the metadata has {} numbers, one for each of {channels} channels was expected",
                self.name(),
                mean.len()
            );
            ensure!(mean.iter().all(|m| m.is_finite()), "{}: feature_mean in the metadata is not finite", self.name());
        }
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
        Ok(assemble(architecture, found).with_context(|| self.name().to_string()).context(error::Checkpoint)?.0)
    }

    /// Its weights for `architecture`; names what is missing, unexpected or of another shape.
    pub fn state_dict(&self, architecture: &Architecture) -> Result<StateDict> {
        let mut found = self.named()?;
        found.retain(|name, _| !name.ends_with("num_batches_tracked"));
        let assembled = assemble(architecture, found).with_context(|| self.name().to_string());
        let (weights, unexpected) = assembled.context(error::Checkpoint)?;
        ensure!(
            unexpected.is_empty(),
            "{} does not fit {}; unexpected: {}",
            self.name(),
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
        if let Some(bad) = values.iter().find(|v| **v < 0.0 && entry.name.ends_with("running_var")) {
            bail!("{} holds {bad}: no variance is negative, the checkpoint is damaged", entry.name);
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
