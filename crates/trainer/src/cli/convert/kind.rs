//! The model that a file holds, by name or by its layers.

use anyhow::{Context, Result};
use trainer::config::document;
use trainer::error::unknown;
use trainer::models::{self, Choice, Layer, Options, Published};

use super::ConvertArgs;

/// What a file holds the weights of.
pub(super) enum Kind {
    /// One of `trainer list models`.
    Named(String),
    /// Layers of somebody's own.
    Layers(Vec<Layer>),
}

impl Kind {
    pub(super) fn of(args: &ConvertArgs) -> Result<Kind> {
        let Some(path) = &args.layers else {
            let name = args.arch.clone().context("--arch or --layers")?;
            models::choices(&name)?;
            return Ok(Kind::Named(name));
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let file = document(&text, path)?;
        let layers = file.get("layers").or_else(|| file.get("student")?.get("layers"));
        let expected = || format!("{}: expected [[layers]] or [[student.layers]]", path.display());
        let layers: Vec<Layer> = layers.with_context(expected)?.clone().try_into().with_context(expected)?;
        Ok(Kind::Layers(layers))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Kind::Named(name) => name,
            Kind::Layers(_) => models::LAYERS,
        }
    }

    /// What it leaves open.
    pub(super) fn choices(&self) -> Result<&'static [Choice]> {
        match self {
            Kind::Named(name) => models::choices(name),
            Kind::Layers(_) => Ok(&[]),
        }
    }

    /// The same, as it was said.
    pub(super) fn settle(&self, stated: &Options) -> Result<Options> {
        match self {
            Kind::Named(name) => models::settle(name, stated),
            Kind::Layers(_) => match stated.keys().next() {
                Some(key) => Err(unknown("option of one's own layers", key, &[])),
                None => Ok(Options::new()),
            },
        }
    }

    /// What such weights usually take.
    pub(super) fn published(&self) -> Result<Published> {
        match self {
            Kind::Named(name) => models::published(name),
            Kind::Layers(_) => Ok(models::OF_CIFAR10),
        }
    }
}
