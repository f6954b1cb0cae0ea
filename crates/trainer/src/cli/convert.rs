use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device};
use clap::Args;
use serde_json::json;
use trainer::checkpoint::pth::Pth;
use trainer::checkpoint::{self, File, Metadata, Named};
use trainer::data::loader::Loader;
use trainer::data::{Source, Split};
use trainer::models::{self, Architecture, Options};
use trainer::nn::{Backend, Model, Network, Normalization, StateDict};

use super::Done;

/// Arguments of `trainer convert`.
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// A PyTorch .pth or .pt file with a state dict, or a .safetensors file.
    pub(super) input: PathBuf,
    /// The .safetensors file to write.
    pub(super) output: PathBuf,
    /// The architecture it holds.
    #[arg(long, value_name = "NAME")]
    pub(super) arch: String,
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

/// `trainer convert`. What an option does not say, a safetensors file's own metadata says, else what is usual for such
/// models.
pub(super) fn run(args: &ConvertArgs) -> Result<Done> {
    ensure!(args.input.is_file(), "{}: no such file", args.input.display());
    // A name that nobody knows is told before a large file is read.
    let open = models::choices(&args.arch)?;
    let (metadata, tensors) = read(args)?;
    let known = |key: &str| metadata.get(key).map(String::as_str);
    let file = args.input.display();
    let said = open.iter().filter_map(|c| Some((c.name.to_string(), known(c.name)?.to_string())));
    let shortcut = args.shortcut.iter().map(|word| ("shortcut".to_string(), word.clone()));
    let given = args.option.iter().map(|text| {
        let pair = text.split_once('=').map(|(key, word)| (key.trim().to_string(), word.trim().to_string()));
        pair.with_context(|| format!("--option {text}: expected KEY=WORD"))
    });
    let options: Options = said.map(Ok).chain(shortcut.map(Ok)).chain(given).collect::<Result<_>>()?;
    let settled = models::settle(&args.arch, &options);
    let options = settled.with_context(|| format!("{file}: its metadata, --shortcut or --option"))?;
    let classes =
        match (args.classes, known("num_classes")) {
            (Some(n), _) => Some(n as usize),
            (None, Some(text)) => Some(text.parse().ok().filter(|n| CLASSES.contains(n)).with_context(|| {
                format!("{file}: num_classes \"{text}\" in its metadata; say how many with --classes")
            })?),
            (None, None) => None,
        };
    let usual = models::published(&args.arch)?;
    let side = args.size.map(|side| side.to_string()).or_else(|| known("input_size").map(String::from));
    let input = checkpoint::input_shape(side.as_deref().unwrap_or(&usual.side.to_string()))
        .with_context(|| format!("input_size in the metadata of {file}"))?;
    let [mean, std] = usual.statistics.map(Vec::from);
    let statistics = |option: &str, given: &Option<String>, key: &str, default: Vec<f64>| match given {
        Some(text) => triple(option, text),
        None => known(key).map_or(Ok(default), |text| {
            triple(&format!("{key} in the metadata of {file}:"), text.trim().trim_matches(['[', ']']))
        }),
    };
    let mean = statistics("--mean", &args.mean, "mean", mean)?;
    let std = statistics("--std", &args.std, "std", std)?;
    ensure!(std.iter().all(|s| *s > 0.0), "--std {std:?}: standard deviations are positive");
    let normalization = Normalization { mean, std };
    let make = |classes| Architecture::named(&args.arch, input, classes, &options);
    let Fitted { architecture, weights, unexpected, taken } = fit(tensors, classes, &make, args)?;
    let parameters = architecture.parameters();
    let mut text = format!("{}: {parameters} parameters as {}\n", args.output.display(), args.arch);
    let mut assumed = vec![];
    if classes.is_none() {
        assumed.push(format!("{} classes (--classes)", architecture.classes));
    }
    if side.is_none() {
        assumed.push(format!("{0}x{0} pixels (--size)", usual.side));
    }
    for (given, key) in [(&args.mean, "mean"), (&args.std, "std")] {
        if given.is_none() && known(key).is_none() {
            assumed.push(format!("{}'s {key} (--{key})", usual.of));
        }
    }
    if !assumed.is_empty() {
        text += &format!("the file does not say it, so taken for granted: {}\n", assumed.join(", "));
    }
    if let Some(key) = taken.as_ref().filter(|key| !key.is_empty()) {
        text += &format!("taken from the file's \"{key}\"\n");
    }
    let mut kept: Metadata = metadata.clone();
    // What was measured of a model holds for that model alone.
    let changed = |key: &str, now: &str| known(key).is_some_and(|before| before != now);
    let other = changed("arch", &args.arch)
        || open.iter().any(|c| known(c.name).unwrap_or(c.words[0]) != architecture.options[c.name])
        || changed("num_classes", &architecture.classes.to_string())
        || known("input_size").is_some_and(|before| checkpoint::input_shape(before).ok() != Some(input))
        || [("mean", &normalization.mean), ("std", &normalization.std)].iter().any(|(key, now)| {
            known(key).is_some_and(|text| triple(key, text.trim().trim_matches(['[', ']'])).ok().as_ref() != Some(now))
        });
    if other {
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
    checkpoint::save(&args.output, &architecture, &weights, &normalization, &kept)?;
    if !unexpected.is_empty() {
        text += &format!("not used: {}\n", unexpected.join(", "));
    }
    let missing: [&str; 0] = []; // a model with holes is an error, not a result
    let value = json!({ "parameters": parameters, "missing": missing, "unexpected": unexpected, "taken": taken, "assumed": assumed });
    Ok(Done::Result(text, value))
}

/// What is read from: one mapping of tensors, or a file with several, which are read one at a time.
enum Tensors {
    One(Named),
    Several(Pth),
}

/// What a model may tell apart.
const CLASSES: RangeInclusive<usize> = 1..=100_000;

/// A mapping that fits.
struct Fitted {
    architecture: Architecture,
    weights: StateDict,
    /// The names that the architecture does not know.
    unexpected: Vec<String>,
    /// Its key, in a file with several.
    taken: Option<String>,
}

/// The length of the last parameter of an architecture's classifier, its bias.
fn classes_of(architecture: &Architecture, tensors: &Named) -> Option<usize> {
    let (shape, _) = tensors.get(&architecture.graph.parameters.last()?.name)?;
    shape.first().copied().filter(|n| CLASSES.contains(n))
}

/// The first mapping that fits the architecture made for so many classes, or for as many as the mapping has.
fn fit(
    tensors: Tensors,
    classes: Option<usize>,
    make: &dyn Fn(usize) -> Result<Architecture>,
    args: &ConvertArgs,
) -> Result<Fitted> {
    let rules = args.rename.as_deref().map(rules).transpose()?.unwrap_or_default();
    let any = make(classes.unwrap_or(10))?;
    let fitted = |tensors: Named, taken: Option<String>| -> Result<Fitted> {
        let tensors = renamed(tensors, &rules);
        let architecture = match classes.or_else(|| classes_of(&any, &tensors)) {
            Some(classes) => make(classes)?,
            None => any.clone(),
        };
        let (weights, unexpected) = checkpoint::assemble(&architecture, tensors)?;
        Ok(Fitted { architecture, weights, unexpected, taken })
    };
    let file = args.input.display();
    let hint = "a --rename file can map names";
    let mut pth = match tensors {
        Tensors::One(tensors) => return fitted(tensors, None).with_context(|| format!("{file} ({hint})")),
        Tensors::Several(pth) => pth,
    };
    let least = any.entries().count();
    // The mapping that comes nearest says why none fits.
    let mut nearest: Option<(usize, anyhow::Error)> = None;
    for at in 0..pth.mappings.len() {
        let (key, len) = (pth.mappings[at].key.clone(), pth.mappings[at].len());
        if len < least && nearest.as_ref().is_some_and(|(of, _)| *of >= len) {
            continue;
        }
        match pth.tensors(at).and_then(|tensors| fitted(tensors, Some(key.clone()))) {
            Ok(found) => return Ok(found),
            Err(error) if nearest.as_ref().is_none_or(|(of, _)| *of < len) => {
                let key = if key.is_empty() { String::new() } else { format!(", its \"{key}\"") };
                nearest = Some((len, error.context(format!("{file}{key} ({hint})"))));
            }
            Err(_) => {}
        }
    }
    Err(nearest.map_or_else(
        || {
            anyhow!(
                "{file} holds no tensors (a state dict is read, alone or in dictionaries, not a whole pickled model)"
            )
        },
        |(_, error)| error,
    ))
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

fn is_safetensors(args: &ConvertArgs) -> bool {
    args.input.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

fn read(args: &ConvertArgs) -> Result<(Metadata, Tensors)> {
    if is_safetensors(args) {
        let file = File::read(&args.input)?;
        let tensors = file.named()?;
        ensure!(!tensors.is_empty(), "{} holds no tensors", args.input.display());
        return Ok((file.metadata, Tensors::One(tensors)));
    }
    Ok((Metadata::new(), Tensors::Several(Pth::open(&args.input)?)))
}

/// Tensors under their new names, without PyTorch's batch counters.
fn renamed(tensors: Named, rules: &[(String, String)]) -> Named {
    let new = |name: String| {
        let name = name.strip_prefix("module.").map(str::to_string).unwrap_or(name);
        rules.iter().fold(name, |name, (from, to)| name.replace(from, to))
    };
    let all = tensors.into_iter().map(|(name, tensor)| (new(name), tensor));
    all.filter(|(name, _)| !name.ends_with("num_batches_tracked")).collect()
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
        .filter(|n| n.len() == 3 && n.iter().all(|x| x.is_finite()))
        .with_context(|| format!("{option} {text}: expected three finite numbers, as in 0.49,0.48,0.45"))
}
