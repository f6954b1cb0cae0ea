//! `trainer convert`.

mod fit;
mod kind;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use clap::Args;
use kernels::graph::Shape;
use serde_json::json;
use trainer::checkpoint::{self, Metadata};
use trainer::data::loader::Loader;
use trainer::data::{Source, Split};
use trainer::files::{check_output, make_parent};
use trainer::models::{Architecture, Layer, Options};
use trainer::nn::{Backend, Model, Network, Normalization, StateDict};

use super::Done;
use fit::{Fitted, fit, read};
use kind::Kind;

/// Arguments of `trainer convert`.
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// A PyTorch .pth or .pt file with a state dict, or a .safetensors file.
    pub(super) input: PathBuf,
    /// The .safetensors file to write.
    pub(super) output: PathBuf,
    /// The architecture it holds.
    #[arg(long, value_name = "NAME", required_unless_present = "layers")]
    pub(super) arch: Option<String>,
    /// Or its layers, if they are one's own: a TOML file with [[layers]] (or a configuration with [[student.layers]]). Their
    /// tensors are layers.0.weight, layers.1.weight, ..., a residual's layers.3.0.weight, and fc.weight and fc.bias.
    #[arg(long, value_name = "FILE.toml", conflicts_with = "arch")]
    pub(super) layers: Option<PathBuf>,
    /// A TOML file with a [rename] table: pattern = replacement, applied in order to every name.
    #[arg(long, value_name = "RULES.toml")]
    pub(super) rename: Option<PathBuf>,
    /// Mean of the pixels / 255 the model was trained with (default: the file's metadata, else what such models are
    /// usually trained with: CIFAR-10's, or ImageNet's for torchvision's).
    #[arg(long, value_name = "R,G,B")]
    pub(super) mean: Option<String>,
    /// Their standard deviation (default: likewise).
    #[arg(long, value_name = "R,G,B")]
    pub(super) std: Option<String>,
    /// What a WRN's 1x1 shortcut reads (default: the file's metadata, else preact).
    #[arg(long, value_parser = ["preact", "raw"])]
    pub(super) shortcut: Option<String>,
    /// Another choice that the architecture leaves open, as in classifier_padding=1 (default: the file's metadata).
    #[arg(long, value_name = "KEY=WORD")]
    pub(super) option: Vec<String>,
    /// Keep the mean activations of this set's training images with the weights (shap_cam's fill = "dataset_mean").
    #[arg(long, value_name = "NAME[:DIR]")]
    pub(super) calibrate: Option<String>,
    /// Number of classes (default: the file's metadata, else as many as its classifier has).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) classes: Option<u32>,
    /// Height and width of its images (default: the file's metadata, else 32, or 224 for torchvision's models).
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub(super) size: Option<u32>,
}

/// `trainer convert`.
pub(super) fn run(args: &ConvertArgs) -> Result<Done> {
    ensure!(args.input.is_file(), "{}: no such file", args.input.display());
    let inputs: Vec<_> = [&args.input].into_iter().chain(&args.layers).chain(&args.rename).cloned().collect();
    check_output(&args.output, &inputs)?;
    // A name that nobody knows is told before a large file is read.
    let kind = Kind::of(args)?;
    let (metadata, tensors) = read(args)?;
    let Plan { options, classes, input, normalization, mut assumed } = plan(args, &kind, &metadata)?;
    let make = |classes| match &kind {
        Kind::Named(name) => Architecture::named(name, input, classes, &options),
        Kind::Layers(layers) => Architecture::from_layers(layers, input, classes),
    };
    let Fitted { architecture, weights, unexpected, taken } = fit(tensors, classes, &make, args)?;
    let parameters = architecture.parameters();
    let mut text = format!("{}: {parameters} parameters as {}\n", args.output.display(), kind.name());
    if classes.is_none() {
        assumed.insert(0, format!("{} classes, as its classifier has (--classes)", architecture.classes));
    }
    if !assumed.is_empty() {
        text += &format!("the file does not say it, so assumed: {}\n", assumed.join("; "));
    }
    if let Some(key) = taken.as_ref().filter(|key| !key.is_empty()) {
        text += &format!("taken from the file's \"{key}\"\n");
    }
    let mut kept = metadata.clone();
    if let Kind::Layers(layers) = &kind {
        kept.insert("layers".into(), serde_json::to_string(layers)?);
    }
    if is_another(&metadata, &kept, &architecture, &normalization) {
        // What was measured of a model holds for that model alone.
        for key in ["test_error", "feature_mean"] {
            if kept.remove(key).is_some() {
                text += &format!("{key} of the file was another model's: it is not kept\n");
            }
        }
    }
    if let Some(source) = &args.calibrate {
        let (mean, n) = calibrate(Source::parse(source)?, &architecture, &weights, &normalization)?;
        kept.insert("feature_mean".into(), serde_json::to_string(&mean)?);
        text += &format!("mean activations of {n} training images of {source} kept\n");
    }
    make_parent(&args.output)?;
    checkpoint::save(&args.output, &architecture, &weights, &normalization, &kept)?;
    if !unexpected.is_empty() {
        text += &format!("not used: {}\n", unexpected.join(", "));
    }
    let missing: [&str; 0] = []; // a model with holes is an error, not a result
    let value = json!({
        "parameters": parameters, "missing": missing, "unexpected": unexpected, "taken": taken, "assumed": assumed,
    });
    Ok(Done::Result(text, value))
}

/// What a model may tell apart.
const CLASSES: RangeInclusive<usize> = 1..=100_000;

/// What the file is to become.
struct Plan {
    options: Options,
    /// None where they are to be counted.
    classes: Option<usize>,
    input: Shape,
    normalization: Normalization,
    /// What neither an option nor the file has said.
    assumed: Vec<String>,
}

/// By the options, else by a safetensors file's own metadata, else as is usual for such models.
fn plan(args: &ConvertArgs, kind: &Kind, metadata: &Metadata) -> Result<Plan> {
    let known = |key: &str| metadata.get(key).map(String::as_str);
    let file = args.input.display();
    let said = kind.choices()?.iter();
    let said = said.filter_map(|c| Some((c.name.to_string(), known(c.name)?.to_string())));
    let shortcut = args.shortcut.iter().map(|word| ("shortcut".to_string(), word.clone()));
    let given: Vec<_> = args
        .option
        .iter()
        .map(|text| {
            let pair = text.split_once('=').map(|(key, word)| (key.trim().to_string(), word.trim().to_string()));
            pair.with_context(|| format!("--option {text}: expected KEY=WORD"))
        })
        .collect::<Result<_>>()?;
    let stated: Options = said.chain(shortcut).chain(given).collect();
    let settled = kind.settle(&stated);
    let options = settled.with_context(|| format!("{file}: its metadata, --shortcut or --option"))?;
    let classes =
        match (args.classes, known("num_classes")) {
            (Some(n), _) => Some(n as usize),
            (None, Some(text)) => Some(text.parse().ok().filter(|n| CLASSES.contains(n)).with_context(|| {
                format!("{file}: num_classes \"{text}\" in its metadata; say how many with --classes")
            })?),
            (None, None) => None,
        };
    let usual = kind.published()?;
    let open = options.iter().filter(|(key, _)| !stated.contains_key(*key));
    let mut assumed: Vec<String> = open.map(|(key, word)| format!("{key} = {word} (--option)")).collect();
    let square = |side: usize| Shape { channels: 3, h: side, w: side };
    let input = match (args.size, known("input_size")) {
        (Some(side), _) => square(side as usize),
        (None, Some(text)) => {
            checkpoint::input_shape(text).with_context(|| format!("input_size in the metadata of {file}"))?
        }
        (None, None) => {
            assumed.push(format!("{0}x{0} pixels (--size)", usual.side));
            square(usual.side)
        }
    };
    let mut statistics = |given: &Option<String>, key: &str, usually: [f64; 3]| match (given, known(key)) {
        (Some(text), _) => triple(text).with_context(|| format!("--{key} {text}: {TRIPLE}")),
        (None, Some(text)) => {
            triple(text).with_context(|| format!("{key} in the metadata of {file}: {text}: {TRIPLE}"))
        }
        (None, None) => {
            assumed.push(format!("{}'s {key} (--{key})", usual.of));
            Ok(usually.to_vec())
        }
    };
    let mean = statistics(&args.mean, "mean", usual.statistics[0])?;
    let std = statistics(&args.std, "std", usual.statistics[1])?;
    // As the network computes with them.
    ensure!(
        std.iter().all(|s| (*s as f32).is_normal() && *s > 0.0),
        "--std {std:?}: standard deviations are positive, and no smaller than 1.2e-38"
    );
    Ok(Plan { options, classes, input, normalization: Normalization { mean, std }, assumed })
}

/// Whether the metadata are of another model than this.
fn is_another(
    metadata: &Metadata,
    kept: &Metadata,
    architecture: &Architecture,
    normalization: &Normalization,
) -> bool {
    let known = |key: &str| metadata.get(key).map(String::as_str);
    let changed = |key: &str, now: &str| known(key).is_some_and(|before| before != now);
    // As layers, not as text: what a list leaves out, its defaults say.
    let layers = |of: &Metadata| serde_json::from_str::<Vec<Layer>>(of.get("layers")?).ok();
    let input = architecture.graph.shapes[0];
    changed("arch", &architecture.name)
        || architecture.options.iter().any(|(choice, word)| changed(choice, word))
        || layers(metadata).is_some_and(|before| Some(before) != layers(kept))
        || changed("num_classes", &architecture.classes.to_string())
        || known("input_size").is_some_and(|before| checkpoint::input_shape(before).ok() != Some(input))
        || [("mean", &normalization.mean), ("std", &normalization.std)]
            .iter()
            .any(|(key, now)| known(key).is_some_and(|text| triple(text).as_ref() != Some(now)))
}

/// Training images that mean activations are taken from, spread evenly over the set.
const CALIBRATION: usize = 2000;

/// The channels' mean activations at the last layer, and over how many images.
fn calibrate(
    source: Source,
    architecture: &Architecture,
    weights: &StateDict,
    normalization: &Normalization,
) -> Result<(Vec<f32>, usize)> {
    let train = source.of_size(architecture.graph.shapes[0].h).load(Split::Train)?;
    let count = CALIBRATION.min(train.len());
    let backend = Backend::f32(&Device::Cpu);
    let network = Network::new(architecture.clone(), weights.clone(), normalization.clone(), &[], false, backend)?;
    let positions: Vec<usize> = (0..count).map(|i| i * train.len() / count).collect();
    let mut mean = vec![0.0f64; architecture.channels()];
    for batch in Loader::each(&train.select(&positions), 200) {
        let pass = network.observe(&network.images(&batch?.1.pixels)?)?;
        let features = cams::ops::pool(pass.at("last")?)?.sum(0)?;
        let sums: Vec<f64> = features.to_dtype(DType::F64)?.to_vec1()?;
        mean.iter_mut().zip(sums).for_each(|(m, s)| *m += s / count as f64);
    }
    Ok((mean.into_iter().map(|m| m as f32).collect(), count))
}

/// `0.49,0.48,0.45`, in brackets or without.
fn triple(text: &str) -> Option<Vec<f64>> {
    let numbers = text.trim().trim_matches(['[', ']']).split(',').map(|n| n.trim().parse().ok());
    numbers.collect::<Option<Vec<f64>>>().filter(|n| n.len() == 3 && n.iter().all(|x| x.is_finite()))
}

/// What is said where it is something else.
const TRIPLE: &str = "expected three finite numbers, as in 0.49,0.48,0.45";
