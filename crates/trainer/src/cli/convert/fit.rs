//! The weights of a file that fit an architecture.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use trainer::checkpoint::pth::Pth;
use trainer::checkpoint::{self, File, Metadata, Named};
use trainer::models::Architecture;
use trainer::nn::StateDict;

use super::{CLASSES, ConvertArgs};

fn is_safetensors(args: &ConvertArgs) -> bool {
    args.input.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

/// A file's metadata and its tensors.
pub(super) fn read(args: &ConvertArgs) -> Result<(Metadata, Tensors)> {
    if is_safetensors(args) {
        let file = File::read(&args.input)?;
        let tensors = file.named()?;
        ensure!(!tensors.is_empty(), "{} holds no tensors", args.input.display());
        return Ok((file.metadata, Tensors::One(tensors)));
    }
    Ok((Metadata::new(), Tensors::Several(Pth::open(&args.input)?)))
}

/// What is read from: one mapping of tensors, or a file with several, which are read one at a time.
pub(super) enum Tensors {
    One(Named),
    Several(Pth),
}

/// A mapping that fits.
pub(super) struct Fitted {
    pub(super) architecture: Architecture,
    pub(super) weights: StateDict,
    /// The names that the architecture does not know.
    pub(super) unexpected: Vec<String>,
    /// Its key, in a file with several.
    pub(super) taken: Option<String>,
}

/// The length of the last parameter of an architecture's classifier, its bias.
fn classes_of(architecture: &Architecture, tensors: &Named) -> Option<usize> {
    let (shape, _) = tensors.get(&architecture.graph.parameters.last()?.name)?;
    shape.first().copied().filter(|n| CLASSES.contains(n))
}

/// The first mapping that fits the architecture made for so many classes, or for as many as the mapping has.
pub(super) fn fit(
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
