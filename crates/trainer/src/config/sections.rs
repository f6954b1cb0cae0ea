//! The tables that belong to a run alone: `[student]`, `[teacher]`, `[train]`, `[init]`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use cams::ranges::{Ranges, SEED, from};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::profiles;
use crate::error::unknown;
use crate::models::{self, Layer, Options};

/// `[student]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Student {
    /// An architecture of `trainer list models`.
    pub arch: Option<String>,
    /// One's own layers instead.
    pub layers: Option<Vec<Layer>>,
    /// Start from these weights.
    pub checkpoint: Option<PathBuf>,
    /// Draw the classifier anew: of the checkpoint only what stands in front of it is taken, so that it may have been
    /// trained for other classes.
    pub new_head: bool,
    /// What of it is trained.
    pub trained: Trained,
    /// What the architecture's family leaves open (a WRN: `shortcut`); the family checks it.
    #[serde(flatten)]
    pub options: Options,
}

impl Student {
    /// Refuses a key that is none, before its value is taken for the word of an option.
    pub(super) fn check_keys(table: &Table) -> Result<()> {
        let open = match table.get("arch").and_then(Value::as_str) {
            Some(arch) => models::choices(arch)?,
            None => &[],
        };
        let known = ["arch", "layers", "checkpoint", "new_head", "trained"];
        let accepted: Vec<&str> = known.into_iter().chain(open.iter().map(|c| c.name)).collect();
        match table.keys().find(|key| !accepted.contains(&key.as_str())) {
            Some(key) => Err(unknown("key in [student]", key, &accepted)),
            None => Ok(()),
        }
    }

    /// Fills and checks the options.
    pub(super) fn settle(&mut self) -> Result<()> {
        if let Some(arch) = &self.arch {
            self.options = models::settle(arch, &self.options)?;
        }
        Ok(())
    }
}

/// What of a student is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// Everything.
    #[default]
    All,
    /// The classifier alone.
    Head,
}

/// `[teacher]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Its weights.
    pub checkpoint: PathBuf,
    /// Its architecture, if the checkpoint does not name it.
    pub arch: Option<String>,
    /// Its layers, if they are one's own and the checkpoint does not hold them.
    pub layers: Option<Vec<Layer>>,
    /// A folder where its signals are kept and shared by runs with the same teacher and views.
    pub cache: Option<PathBuf>,
    /// The most that this run's views may take in it, in MB.
    #[serde(default = "cache_limit_mb")]
    pub cache_limit_mb: u64,
}

impl Teacher {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("cache_limit_mb", from(0.0, 1e12))];
}

fn cache_limit_mb() -> u64 {
    8000
}

/// What a step computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// Activations and products in bf16, sums, weights and the optimiser in f32: faster on a card and where the processor
    /// has AVX512_BF16 or AMX; the same as f32 on processors without AVX2.
    Bf16,
    /// Single precision whose products a card rounds to TF32.
    Tf32,
    /// Single precision, convolutions by their definition instead of Winograd's algorithm: slower, for comparisons.
    F32Direct,
    /// Double precision: slow, for checks.
    F64,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Fills the keys that are not given: one of [`profiles`](super::profiles).
    pub profile: String,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Fixes initial weights and order.
    pub seed: u64,
    /// Precision.
    pub dtype: Dtype,
    /// Stop (and save) after this long; 0 for no limit.
    pub max_minutes: f64,
    /// Steps between two logged steps.
    pub log_every: usize,
    /// Steps between two saved states, besides every epoch's end; 0 for none.
    pub save_every: usize,
    /// Epochs between two measurements of the error, besides the last epoch's; 0 for that one alone.
    pub evaluate_every: usize,
    /// Largest norm of a gradient; 0 for no limit.
    pub clip: f64,
    /// Decay of the moving average of the weights; 0 for none.
    pub ema: f64,
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Dtype, String> {
        serde_json::from_value(word.into()).map_err(|e| e.to_string())
    }
}

impl Dtype {
    /// Whether it can be had on a device, and if not, what can.
    pub fn check(self, device: &Device) -> Result<()> {
        let (cpu, ours) = (device.is_cpu(), device.is_cpu() || kernels::device::serves(device));
        match self {
            Dtype::Bf16 => ensure!(ours, "dtype bf16 is for our own kernels, on a CPU or an NVIDIA card: use f32"),
            Dtype::F32Direct => {
                ensure!(cpu, "dtype f32_direct is for the CPU; a card convolves by the definition: use f32")
            }
            Dtype::Tf32 => ensure!(ours && !cpu, "dtype tf32 is a way of NVIDIA's cards: use f32"),
            Dtype::F32 | Dtype::F64 => {}
        }
        Ok(())
    }

    /// What this machine makes of it on a device.
    pub fn in_effect(self, device: &Device) -> Dtype {
        let lacking = self == Dtype::Bf16 && device.is_cpu() && !kernels::Isa::best().has_bf16();
        if lacking { Dtype::F32 } else { self }
    }

    /// The tensors' type, and what our kernels make of f32 tensors.
    pub fn parts(self) -> (DType, kernels::Precision) {
        match self {
            Dtype::F32 => (DType::F32, kernels::Precision::F32),
            Dtype::Bf16 => (DType::F32, kernels::Precision::Bf16),
            Dtype::Tf32 => (DType::F32, kernels::Precision::Tf32),
            Dtype::F32Direct => (DType::F32, kernels::Precision::Full),
            Dtype::F64 => (DType::F64, kernels::Precision::F32),
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Train {
            profile: profiles::DEFAULT.into(),
            epochs: 24,
            batch: 128,
            seed: 0,
            dtype: Dtype::F32,
            max_minutes: 0.0,
            log_every: 50,
            save_every: 100,
            evaluate_every: 1,
            clip: 0.0,
            ema: 0.0,
        }
    }
}

impl Train {
    /// Whether the error after an epoch, counted from 0, is measured.
    pub fn measures(&self, epoch: usize) -> bool {
        let due = self.evaluate_every > 0 && (epoch + 1).is_multiple_of(self.evaluate_every);
        due || epoch + 1 == self.epochs
    }

    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("epochs", from(1.0, 1e6)),
        ("batch", from(1.0, 1e6)),
        ("seed", SEED),
        ("max_minutes", from(0.0, 1e9)),
        ("log_every", from(0.0, 1e12)),
        ("save_every", from(0.0, 1e12)),
        ("evaluate_every", from(0.0, 1e12)),
        ("clip", from(0.0, 1e12)),
        ("ema", from(0.0, 0.999_999_999)),
    ];
}

/// How BatchNorm's gamma starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BnGamma {
    /// Ones.
    #[default]
    Ones,
    /// Uniform in [0, 1), as in the attention-transfer code.
    Uniform,
}

/// `[init]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// BatchNorm's gamma.
    pub bn_gamma: BnGamma,
}
