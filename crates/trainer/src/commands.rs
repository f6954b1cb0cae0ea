//! One file a command.
#![allow(missing_docs)] // each module is its command; the commands are described in `cli`

pub mod ablate;
pub mod bench;
pub mod convert;
pub mod data;
pub mod eval;
pub mod evaluate;
pub mod explain;
mod interrupt;
pub mod list;
pub mod table;
pub mod train;

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;

use crate::checkpoint::File;
use crate::cli::ModelArgs;
use crate::nn::{Backend, Network};

/// The frozen model that `--checkpoint`, or `--arch` and `--weights`, name; hands out `layers`.
pub fn load_model(args: &ModelArgs, layers: &[&str], device: &Device) -> Result<Network> {
    let path =
        args.checkpoint.as_ref().or(args.weights.as_ref()).context("give --checkpoint, or --arch and --weights")?;
    load(path, args.arch.as_deref(), layers, device)
}

/// The frozen model of a file.
pub fn load(path: &Path, arch: Option<&str>, layers: &[&str], device: &Device) -> Result<Network> {
    let file = File::read(path)?;
    let architecture = file.architecture(arch)?;
    let weights = file.weights(&architecture)?;
    let mut network = Network::new(architecture, weights, file.normalization()?, layers, false, Backend::f32(device))?;
    network.feature_mean = file.feature_mean()?;
    Ok(network)
}
