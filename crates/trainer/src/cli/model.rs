//! The model that `--checkpoint`, or `--arch` and `--weights`, name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Args;
use trainer::checkpoint::File;
use trainer::nn::{Backend, Network};

/// Which model.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelArgs {
    /// A checkpoint that names its architecture.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["arch", "weights"], required_unless_present_any = ["arch", "weights"])]
    pub(super) checkpoint: Option<PathBuf>,
    /// The architecture of --weights.
    #[arg(long, value_name = "NAME", requires = "weights")]
    pub(super) arch: Option<String>,
    /// Weights with mean, std and the rest in their metadata.
    #[arg(long, value_name = "FILE")]
    pub(super) weights: Option<PathBuf>,
}

impl ModelArgs {
    /// The frozen model, which hands out `layers`.
    pub(super) fn load(&self, layers: &[String], device: &Device) -> Result<Network> {
        load(self.path()?, self.arch.as_deref(), layers, device)
    }

    /// Its file.
    pub(super) fn path(&self) -> Result<&Path> {
        let path = self.checkpoint.as_deref().or(self.weights.as_deref());
        path.context("give --checkpoint, or --arch and --weights")
    }
}

/// The frozen model of a file.
pub(super) fn load(path: &Path, arch: Option<&str>, layers: &[String], device: &Device) -> Result<Network> {
    File::read(path)?.network(arch, |_| layers.to_vec(), Backend::f32(device))
}
