//! All that resuming needs, in one file that is always whole.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::checkpoint::{Entry, File, Metadata, write_tensors};

/// A training run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps done, over all epochs.
    pub step: usize,
    /// Flat parameters.
    pub parameters: Vec<f32>,
    /// Flat running statistics.
    pub running: Vec<f32>,
    /// Momentum.
    pub momentum: Vec<f32>,
    /// Moving average of parameters and of running statistics; empty if off.
    pub ema: [Vec<f32>; 2],
    /// Sums over the current epoch: images, wrong, total loss, ce, kd, explanation, attention.
    pub sums: [f64; 7],
    /// Best validation error so far.
    pub best: f64,
    /// Training time so far.
    pub seconds: f64,
}

impl State {
    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let vectors = [
            ("parameters", &self.parameters),
            ("running", &self.running),
            ("momentum", &self.momentum),
            ("ema.parameters", &self.ema[0]),
            ("ema.running", &self.ema[1]),
        ];
        let mut tensors: BTreeMap<String, Entry> =
            vectors.iter().map(|(name, v)| (name.to_string(), Entry::f32(&[v.len()], v))).collect();
        let scalars = [self.best, self.seconds];
        tensors.insert("sums".into(), Entry::f64(&[7], &self.sums));
        tensors.insert("scalars".into(), Entry::f64(&[2], &scalars));
        let metadata = Metadata::from([("step".to_string(), self.step.to_string())]);
        write_tensors(path, &tensors, &metadata)
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<State> {
        let file = File::read(path)?;
        let sums = file.f64("sums")?;
        let scalars = file.f64("scalars")?;
        ensure!(sums.len() == 7 && scalars.len() == 2, "{} is not a training state of this version", path.display());
        Ok(State {
            step: file.get("step")?.parse().context("the step in the training state")?,
            parameters: file.f32("parameters")?,
            running: file.f32("running")?,
            momentum: file.f32("momentum")?,
            ema: [file.f32("ema.parameters")?, file.f32("ema.running")?],
            sums: std::array::from_fn(|i| sums[i]),
            best: scalars[0],
            seconds: scalars[1],
        })
    }
}
