//! All that resuming needs, in one file that is always whole.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::checkpoint::{Entry, File, Metadata, write_tensors};

/// What an epoch has added up so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Images seen.
    pub images: f64,
    /// Images classified wrongly.
    pub wrong: f64,
    /// Total loss, times images.
    pub total: f64,
    /// Terms of the loss, times images.
    pub terms: BTreeMap<String, f64>,
}

/// Hashes of what a run reads, by name.
pub type Inputs = BTreeMap<String, String>;

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
    /// Sums over the current epoch.
    pub sums: Sums,
    /// Best validation error so far.
    pub best: f64,
    /// Training time so far.
    pub seconds: f64,
    /// What the run reads.
    pub inputs: Inputs,
}

impl State {
    /// Writes the file; refuses numbers that are none, so that the last good state stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let finite = self.parameters.iter().chain(&self.running).all(|v| v.is_finite());
        ensure!(
            finite,
            "the weights are not finite after step {}: training has diverged. The last saved state is kept; a smaller \
             optim.lr or train.clip = 1.0 usually helps",
            self.step
        );
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
        tensors.insert("scalars".into(), Entry::f64(&[2], &scalars));
        // As numbers, not as text: a JSON number may come back one bit off.
        let sums: Vec<f64> = [self.sums.images, self.sums.wrong, self.sums.total]
            .into_iter()
            .chain(self.sums.terms.values().copied())
            .collect();
        tensors.insert("sums".into(), Entry::f64(&[sums.len()], &sums));
        let terms = serde_json::to_string(&self.sums.terms.keys().collect::<Vec<_>>())?;
        let inputs = serde_json::to_string(&self.inputs)?;
        let step = self.step.to_string();
        let metadata = Metadata::from([("step".to_string(), step), ("terms".into(), terms), ("inputs".into(), inputs)]);
        write_tensors(path, &tensors, &metadata)
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<State> {
        let file = File::read(path)?;
        let scalars = file.f64("scalars")?;
        let (sums, terms) = (file.f64("sums")?, file.get("terms")?);
        let terms: Vec<String> = serde_json::from_str(terms).context("the terms in the training state")?;
        let fits = scalars.len() == 2 && sums.len() == 3 + terms.len();
        ensure!(fits, "{} is not a training state of this version", path.display());
        Ok(State {
            step: file.get("step")?.parse().context("the step in the training state")?,
            parameters: file.f32("parameters")?,
            running: file.f32("running")?,
            momentum: file.f32("momentum")?,
            ema: [file.f32("ema.parameters")?, file.f32("ema.running")?],
            sums: Sums {
                images: sums[0],
                wrong: sums[1],
                total: sums[2],
                terms: terms.into_iter().zip(sums[3..].iter().copied()).collect(),
            },
            best: scalars[0],
            seconds: scalars[1],
            inputs: serde_json::from_str(file.get("inputs")?).context("the inputs in the training state")?,
        })
    }
}
