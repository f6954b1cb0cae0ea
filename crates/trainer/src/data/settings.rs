//! `[data]`.

use std::path::PathBuf;

use cams::ranges::{Ranges, SEED, from};
use serde::{Deserialize, Serialize};

use super::Source;
use super::augment::Augment;

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
    /// Height and width, where a set lets one choose.
    pub size: Option<usize>,
    /// What the shorter side of an image file becomes before the middle `size` x `size` is kept; the whole image is
    /// resized where it is not given.
    pub resize: Option<usize>,
}

impl Default for Data {
    fn default() -> Self {
        let augment = Augment::default();
        let (size, resize) = (None, None);
        Data {
            name: "cifar10-mini".into(),
            dir: None,
            augment,
            views: 0,
            validation: 0,
            limit: 0,
            seed: 0,
            size,
            resize,
        }
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
        ("resize", from(16.0, 4096.0)),
        ("augment.pad", from(0.0, 1024.0)),
        ("augment.cutout", from(0.0, 1024.0)),
    ];

    /// As the data module names it.
    pub fn source(&self) -> Source {
        Source {
            name: self.name.clone(),
            dir: self.dir.clone(),
            size: self.size,
            shorter: self.resize,
            seed: self.seed,
        }
    }
}
