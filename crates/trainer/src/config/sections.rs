//! The other tables: `[data]`, `[student]`, `[teacher]`, `[train]`, `[optim]`, `[init]`, and the profiles.

use std::path::PathBuf;

use cams::ranges::{Ranges, SEED, above, from};
use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::data::Source;
use crate::data::augment::Augment;
use crate::models::{Layer, Shortcut};

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// A data set of `trainer list datasets`.
    pub name: String,
    /// Its folder; `data/<name>` if not given.
    pub dir: Option<PathBuf>,
    /// What a view of an image is.
    pub augment: Augment,
    /// Different views of an image; 0 for a new one each epoch.
    pub views: u64,
    /// Training images held out to choose `best.safetensors`; 0 for none.
    pub validation: usize,
    /// Use only this many images of the training set, spread evenly over it; 0 for all.
    pub limit: usize,
    /// Seed of the views and of the held-out images, shared by all runs that are to see the same ones.
    pub seed: u64,
    /// Height and width for `planted` and `folder`.
    pub size: Option<usize>,
}

impl Default for Data {
    fn default() -> Self {
        let augment = Augment::default();
        Data { name: "cifar10-mini".into(), dir: None, augment, views: 0, validation: 0, limit: 0, seed: 0, size: None }
    }
}

impl Data {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("views", from(0.0, 1e6)),
        ("validation", from(0.0, 1e9)),
        ("limit", from(0.0, 1e9)),
        ("seed", SEED),
        ("size", from(16.0, 1024.0)),
        ("augment.pad", from(0.0, 1024.0)),
        ("augment.cutout", from(0.0, 1024.0)),
    ];
}

impl Data {
    /// As the data module names it.
    pub fn source(&self) -> Source {
        Source { name: self.name.clone(), dir: self.dir.clone(), size: self.size, seed: self.seed }
    }
}

/// `[student]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Student {
    /// An architecture of `trainer list models`.
    pub arch: Option<String>,
    /// One's own layers instead.
    pub layers: Option<Vec<Layer>>,
    /// Start from these weights.
    pub checkpoint: Option<PathBuf>,
    /// What a WRN's 1x1 shortcut reads.
    pub shortcut: Shortcut,
}

impl Default for Student {
    fn default() -> Self {
        Student { arch: None, layers: None, checkpoint: None, shortcut: Shortcut::Preact }
    }
}

/// `[teacher]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Its weights.
    pub checkpoint: PathBuf,
    /// Its architecture, if the checkpoint does not name it.
    pub arch: Option<String>,
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

/// How long and how faithful a run is. Tables never mix profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The attention-transfer recipe: 200 epochs.
    Paper,
    /// 24 epochs with a triangular learning rate.
    #[default]
    Fast,
    /// Seconds, to see that everything works.
    Smoke,
}

impl Profile {
    /// Its word in files.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Paper => "paper",
            Profile::Fast => "fast",
            Profile::Smoke => "smoke",
        }
    }

    /// The keys it fills where they are not given.
    pub fn defaults(self) -> &'static str {
        match self {
            Profile::Paper => {
                "data.augment = { pad = 4, padding = 'reflect', flip = true }
                 train = { epochs = 200, batch = 128 }
                 optim = { lr = 0.1, schedule = 'multi_step', drops = [60, 120, 160], drop_factor = 0.2, warmup = 0.0, momentum = 0.9, nesterov = false, weight_decay = 5e-4, reset_momentum_at_drops = true }
                 init = { bn_gamma = 'uniform' }"
            }
            Profile::Fast => {
                "data.augment = { pad = 4, padding = 'reflect', flip = true }
                 train = { epochs = 24, batch = 128 }
                 optim = { lr = 0.2, schedule = 'linear', warmup = 2.0, momentum = 0.9, nesterov = true, weight_decay = 5e-4 }"
            }
            Profile::Smoke => {
                "data = { limit = 512, augment = { pad = 4, padding = 'reflect', flip = true } }
                 train = { epochs = 2, batch = 32 }
                 optim = { lr = 0.05, schedule = 'linear', warmup = 0.5, momentum = 0.9, nesterov = true, weight_decay = 5e-4 }"
            }
        }
    }
}

/// What a step computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Activations and products in bf16, sums, weights and the optimiser in f32: faster where the processor has
    /// AVX512_BF16, the same as f32 elsewhere.
    Bf16,
    /// Single precision, convolutions by their definition instead of Winograd's algorithm: slower, for comparisons.
    F32Direct,
    /// Double precision: slow, for checks.
    F64,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Fills the keys that are not given.
    pub profile: Profile,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch: usize,
    /// Fixes initial weights and order.
    pub seed: u64,
    /// Precision.
    pub dtype: Precision,
    /// Stop (and save) after this long; 0 for no limit.
    pub max_minutes: f64,
    /// Steps between two logged steps.
    pub log_every: usize,
    /// Steps between two saved states, besides every epoch's end; 0 for none.
    pub save_every: usize,
    /// Largest norm of a gradient; 0 for no limit.
    pub clip: f64,
    /// Decay of the moving average of the weights; 0 for none.
    pub ema: f64,
}

impl Precision {
    /// Whether only our own kernels can do it.
    pub fn is_for_cpu(self) -> bool {
        matches!(self, Precision::Bf16 | Precision::F32Direct)
    }

    /// What this machine makes of it.
    pub fn in_effect(self) -> Precision {
        let slow = self == Precision::Bf16 && kernels::Isa::best() < kernels::Isa::Avx512Bf16;
        if slow { Precision::F32 } else { self }
    }

    /// The tensors' type, and what the CPU kernels make of f32 tensors.
    pub fn parts(self) -> (DType, kernels::Precision) {
        match self {
            Precision::F32 => (DType::F32, kernels::Precision::F32),
            Precision::Bf16 => (DType::F32, kernels::Precision::Bf16),
            Precision::F32Direct => (DType::F32, kernels::Precision::Full),
            Precision::F64 => (DType::F64, kernels::Precision::F32),
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Train {
            profile: Profile::Fast,
            epochs: 24,
            batch: 128,
            seed: 0,
            dtype: Precision::F32,
            max_minutes: 0.0,
            log_every: 50,
            save_every: 100,
            clip: 0.0,
            ema: 0.0,
        }
    }
}

impl Train {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("epochs", from(1.0, 1e6)),
        ("batch", from(1.0, 1e6)),
        ("seed", SEED),
        ("max_minutes", from(0.0, 1e9)),
        ("log_every", from(0.0, 1e12)),
        ("save_every", from(0.0, 1e12)),
        ("clip", from(0.0, 1e12)),
        ("ema", from(0.0, 0.999_999_999)),
    ];
}

/// How the learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Up during the warm-up, then linearly to 0.
    #[default]
    Linear,
    /// Times `drop_factor` at the start of each epoch in `drops` (counted from 1).
    MultiStep,
    /// Up during the warm-up, then half a cosine to 0.
    Cosine,
    /// From 1/25 of `lr` up during the first 30 %, then half a cosine to 0 (Smith & Topin 2017).
    OneCycle,
    /// The same throughout.
    Constant,
}

/// `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Highest learning rate.
    pub lr: f64,
    /// How it changes.
    pub schedule: LrSchedule,
    /// Epochs of linear warm-up.
    pub warmup: f64,
    /// Epochs (from 1) at whose start `multi_step` drops.
    pub drops: Vec<usize>,
    /// Factor of a drop.
    pub drop_factor: f64,
    /// Momentum.
    pub momentum: f64,
    /// Nesterov's variant.
    pub nesterov: bool,
    /// On every parameter, BatchNorm's and biases too.
    pub weight_decay: f64,
    /// Forget the momentum at each drop, as the attention-transfer code does.
    pub reset_momentum_at_drops: bool,
}

impl Default for Optim {
    fn default() -> Self {
        Optim {
            lr: 0.2,
            schedule: LrSchedule::Linear,
            warmup: 0.0,
            drops: vec![],
            drop_factor: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            reset_momentum_at_drops: false,
        }
    }
}

impl Optim {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("lr", above(0.0, f64::MAX)),
        ("warmup", from(0.0, 1e6)),
        ("drops", from(1.0, 1e6)),
        ("drop_factor", above(0.0, 1.0)),
        ("momentum", from(0.0, 0.999_999_999)),
        ("weight_decay", from(0.0, 1e3)),
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
