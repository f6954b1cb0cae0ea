use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use kernels::graph::Shape;
use serde_json::json;
use std::collections::BTreeMap;

use crate::checkpoint::{self, Metadata};
use crate::cli::{ConvertArgs, Done};
use crate::models::{Architecture, Shortcut};
use crate::nn::{Normalization, Weights};

/// `trainer convert`.
pub fn run(args: &ConvertArgs) -> Result<Done> {
    let shortcut = if args.shortcut == "raw" { Shortcut::Raw } else { Shortcut::Preact };
    let architecture = Architecture::named(&args.arch, Shape { channels: 3, h: 32, w: 32 }, args.classes, shortcut)?;
    let normalization = Normalization { mean: triple("--mean", &args.mean)?, std: triple("--std", &args.std)? };
    ensure!(normalization.std.iter().all(|s| *s > 0.0), "--std {}: standard deviations are positive", args.std);
    let mut found = read(args)?;
    let mut weights = Weights {
        parameters: vec![0.0; architecture.graph.parameter_len()],
        running: vec![0.0; architecture.graph.statistics_len()],
    };
    let mut missing = Vec::new();
    for (entry, parameter) in architecture.entries() {
        let Some(tensor) = found.remove(&entry.name) else {
            missing.push(entry.name.clone());
            continue;
        };
        ensure!(
            tensor.dims() == entry.shape,
            "{} is {:?}, but {} has {:?} there",
            entry.name,
            tensor.dims(),
            args.arch,
            entry.shape
        );
        let target = if parameter { &mut weights.parameters } else { &mut weights.running };
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        target[entry.range()].copy_from_slice(&values);
    }
    let unexpected: Vec<String> = found.into_keys().collect();
    ensure!(
        missing.is_empty(),
        "{} lacks {} of {}'s tensors: {}; left over: {}. A --rename file can map its names",
        args.input.display(),
        missing.len(),
        args.arch,
        missing[..missing.len().min(4)].join(", "),
        unexpected[..unexpected.len().min(4)].join(", ")
    );
    checkpoint::save(&args.output, &architecture, &weights, &normalization, &Metadata::new())?;
    let text = format!(
        "{}: {} parameters as {}\n{}",
        args.output.display(),
        architecture.parameters(),
        args.arch,
        if unexpected.is_empty() { String::new() } else { format!("not used: {}\n", unexpected.join(", ")) }
    );
    Ok(Done::Result(
        text,
        json!({ "parameters": architecture.parameters(), "missing": missing, "unexpected": unexpected }),
    ))
}

/// The file's tensors under their new names, without PyTorch's batch counters.
fn read(args: &ConvertArgs) -> Result<BTreeMap<String, Tensor>> {
    let extension = args.input.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let context = || format!("reading {}", args.input.display());
    ensure!(args.input.is_file(), "{}: no such file", args.input.display());
    let tensors: Vec<(String, Tensor)> = match extension.as_str() {
        "safetensors" => {
            let map = candle_core::safetensors::load(&args.input, &candle_core::Device::Cpu).with_context(context)?;
            map.into_iter().collect()
        }
        _ => {
            // A state dict, or a dictionary that holds one under the usual key.
            let plain = candle_core::pickle::read_all(&args.input).with_context(context)?;
            if plain.is_empty() {
                candle_core::pickle::read_all_with_key(&args.input, Some("state_dict")).with_context(context)?
            } else {
                plain
            }
        }
    };
    ensure!(
        !tensors.is_empty(),
        "{} holds no tensors (a state dict is read, not a whole pickled model)",
        args.input.display()
    );
    let rules = match &args.rename {
        Some(path) => {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Rules {
                rename: toml::map::Map<String, toml::Value>,
            }
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            toml::from_str::<Rules>(&text)
                .with_context(|| format!("{}: expected a [rename] table", path.display()))?
                .rename
        }
        None => toml::map::Map::new(),
    };
    let rename = |name: String| {
        let name = name.strip_prefix("module.").map(str::to_string).unwrap_or(name);
        rules.iter().fold(name, |name, (from, to)| name.replace(from.as_str(), to.as_str().unwrap_or_default()))
    };
    let renamed = tensors.into_iter().map(|(name, t)| (rename(name), t));
    Ok(renamed.filter(|(name, _)| !name.ends_with("num_batches_tracked")).collect())
}

fn triple(option: &str, text: &str) -> Result<Vec<f64>> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    numbers
        .filter(|n| n.len() == 3)
        .with_context(|| format!("{option} {text}: expected three numbers, as in 0.49,0.48,0.45"))
}
