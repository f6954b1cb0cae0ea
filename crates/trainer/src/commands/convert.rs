use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use kernels::graph::Shape;
use serde_json::json;

use crate::checkpoint::{self, File, Metadata, Named};
use crate::cli::{ConvertArgs, Done};
use crate::data::loader::Plan;
use crate::data::{Source, Split};
use crate::models::{Architecture, Shortcut};
use crate::nn::{Backend, Network, Normalization, Weights};

/// `trainer convert`. What an option does not say, a safetensors file's own metadata says, else CIFAR-10's statistics.
pub fn run(args: &ConvertArgs) -> Result<Done> {
    ensure!(args.input.is_file(), "{}: no such file", args.input.display());
    let metadata = if is_safetensors(args) { File::read(&args.input)?.metadata } else { Metadata::new() };
    let known = |key: &str| metadata.get(key).cloned();
    let shortcut = args.shortcut.clone().or(known("shortcut")).unwrap_or_else(|| "preact".into());
    let shortcut = if shortcut == "raw" { Shortcut::Raw } else { Shortcut::Preact };
    let classes = known("num_classes").and_then(|n| n.parse().ok()).filter(|n| (1..=100_000).contains(n));
    let classes = args.classes.or(classes).unwrap_or(10) as usize;
    let side = known("input_size").and_then(|s| s.parse().ok()).filter(|s| (1..=4096).contains(s)).unwrap_or(32);
    let input = Shape { channels: 3, h: side, w: side };
    let architecture = Architecture::named(&args.arch, input, classes, shortcut)?;
    let cifar = Normalization::cifar10();
    let statistics = |option: &str, given: &Option<String>, key: &str, default: Vec<f64>| match given {
        Some(text) => triple(option, text),
        None => known(key).map_or(Ok(default), |text| triple(key, text.trim_matches(['[', ']']))),
    };
    let mean = statistics("--mean", &args.mean, "mean", cifar.mean)?;
    let std = statistics("--std", &args.std, "std", cifar.std)?;
    ensure!(std.iter().all(|s| *s > 0.0), "--std {std:?}: standard deviations are positive");
    let (weights, unexpected) = checkpoint::assemble(&architecture, read(args)?)
        .with_context(|| format!("{} (a --rename file can map names)", args.input.display()))?;
    let normalization = Normalization { mean, std };
    let mut kept: Metadata = metadata.clone();
    let parameters = architecture.parameters();
    let mut text = format!("{}: {parameters} parameters as {}\n", args.output.display(), args.arch);
    if let Some(source) = &args.calibrate {
        let (mean, n) = calibrate(Source::parse(source)?, &architecture, &weights, &normalization)?;
        kept.insert("feature_mean".into(), serde_json::to_string(&mean)?);
        text += &format!("mean activations of {n} training images of {source} kept\n");
    }
    checkpoint::save(&args.output, &architecture, &weights, &normalization, &kept)?;
    if !unexpected.is_empty() {
        text += &format!("not used: {}\n", unexpected.join(", "));
    }
    let missing: [&str; 0] = []; // a model with holes is an error, not a result
    Ok(Done::Result(text, json!({ "parameters": parameters, "missing": missing, "unexpected": unexpected })))
}

/// Training images that mean activations are taken from, spread evenly over the set.
const CALIBRATION: usize = 2000;

/// The channels' mean activations at the last layer, and over how many images.
fn calibrate(
    source: Source,
    architecture: &Architecture,
    weights: &Weights,
    normalization: &Normalization,
) -> Result<(Vec<f32>, usize)> {
    let train = source.of_size(architecture.graph.shapes[0].h).load(Split::Train)?;
    let count = CALIBRATION.min(train.len());
    let weights = Weights { parameters: weights.parameters.clone(), running: weights.running.clone() };
    let backend = Backend::f32(&Device::Cpu);
    let network = Network::new(architecture.clone(), weights, normalization.clone(), &[], false, backend)?;
    let positions: Vec<usize> = (0..count).map(|i| i * train.len() / count).collect();
    let mut mean = vec![0.0f64; architecture.channels()];
    for positions in positions.chunks(200) {
        let batch = Plan::plain(1).batch(&train, positions, 0);
        let pass = network.observe(&network.images(&batch)?)?;
        let features = cams::ops::pool(pass.layers.last().context("the model has no layers")?)?.sum(0)?;
        let sums: Vec<f64> = features.to_dtype(DType::F64)?.to_vec1()?;
        mean.iter_mut().zip(sums).for_each(|(m, s)| *m += s / count as f64);
    }
    Ok((mean.into_iter().map(|m| m as f32).collect(), count))
}

fn is_safetensors(args: &ConvertArgs) -> bool {
    args.input.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

/// The file's tensors under their new names, without PyTorch's batch counters.
fn read(args: &ConvertArgs) -> Result<Named> {
    let context = || format!("reading {}", args.input.display());
    let tensors: Vec<(String, Tensor)> = if is_safetensors(args) {
        let map = candle_core::safetensors::load(&args.input, &Device::Cpu).with_context(context)?;
        map.into_iter().collect()
    } else {
        // A state dict, or a dictionary that holds one under the usual key.
        let plain = candle_core::pickle::read_all(&args.input).with_context(context)?;
        if plain.is_empty() {
            candle_core::pickle::read_all_with_key(&args.input, Some("state_dict")).with_context(context)?
        } else {
            plain
        }
    };
    ensure!(
        !tensors.is_empty(),
        "{} holds no tensors (a state dict is read, not a whole pickled model)",
        args.input.display()
    );
    let rules = args.rename.as_deref().map(rules).transpose()?.unwrap_or_default();
    let mut found = Named::new();
    for (name, tensor) in tensors {
        let name = name.strip_prefix("module.").map(str::to_string).unwrap_or(name);
        let name = rules.iter().fold(name, |name, (from, to)| name.replace(from, to));
        if !name.ends_with("num_batches_tracked") {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            found.insert(name, (tensor.dims().to_vec(), values));
        }
    }
    Ok(found)
}

/// (pattern, replacement) in the file's order.
fn rules(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let expected = || format!("{}: expected a [rename] table of 'pattern' = 'replacement'", path.display());
    let file: toml::Table = text.parse().with_context(expected)?;
    let table = file.get("rename").and_then(toml::Value::as_table).with_context(expected)?;
    let rule = |(from, to): (&String, &toml::Value)| {
        Ok((
            from.clone(),
            to.as_str().with_context(|| format!("{}: {from} = {to} is not a string", path.display()))?.into(),
        ))
    };
    table.iter().map(rule).collect()
}

fn triple(option: &str, text: &str) -> Result<Vec<f64>> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    numbers
        .filter(|n| n.len() == 3)
        .with_context(|| format!("{option} {text}: expected three numbers, as in 0.49,0.48,0.45"))
}
