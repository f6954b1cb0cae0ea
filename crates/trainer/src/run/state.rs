//! All that resuming needs, in one file that is always whole.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::{Entry, File, Metadata, sealed, write_tensors};
use crate::distill::Measurements;
use crate::distill::optimizers::Slots;
use crate::error::Diverged;
use crate::nn::StateDict;

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

/// What a finished epoch has shown, errors in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EpochFigures {
    /// Of the training images as they were shown.
    pub train_error: f64,
    /// Mean of the total loss.
    pub train_loss: f64,
    /// Of the held-out images, or of the test images where none are held out; none where the epoch was not measured.
    pub curve_error: Option<f64>,
}

/// Hashes of what a run reads, by name.
pub type Inputs = BTreeMap<String, String>;

/// A training run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps done, over all epochs.
    pub step: usize,
    /// What the student has learned.
    pub student: StateDict,
    /// What the optimizer has gathered.
    pub optimizer: Slots,
    /// Moving average of parameters and of running statistics; empty if off.
    pub ema: [Vec<f32>; 2],
    /// Sums over the current epoch.
    pub sums: Sums,
    /// One for each epoch that is done.
    pub epochs: Vec<EpochFigures>,
    /// Norm of each term's gradient: its sum over the logged steps, and how many they are.
    pub norms: BTreeMap<String, [f64; 2]>,
    /// Commits of the programs that took part.
    pub commits: Vec<String>,
    /// Best validation error so far.
    pub best: f64,
    /// Training time so far.
    pub seconds: f64,
    /// What the run reads.
    pub inputs: Inputs,
}

/// In front of an optimizer's slots, among the file's tensors.
const SLOT: &str = "optimizer.";

impl State {
    /// Adds a step to the epoch's sums and to the run's norms.
    pub fn count(&mut self, measured: &Measurements) {
        self.step = measured.step;
        let (n, sums) = (measured.images as f64, &mut self.sums);
        sums.images += n;
        sums.wrong += measured.wrong as f64;
        sums.total += measured.total * n;
        for (name, value) in &measured.terms {
            *sums.terms.entry(name.to_string()).or_insert(0.0) += value * n;
        }
        for (name, norm) in measured.gradient_norms.iter().flatten() {
            let [sum, count] = self.norms.entry(name.to_string()).or_default();
            (*sum, *count) = (*sum + norm, *count + 1.0);
        }
    }

    /// Refuses weights that are not finite, so that the last good files stay.
    pub fn check(&self, weights: &StateDict) -> Result<()> {
        if weights.parameters.iter().chain(&weights.running).all(|v| v.is_finite()) {
            return Ok(());
        }
        let what = format!(
            "the weights are not finite after step {}: training has diverged. The last saved state is kept; a smaller optim.lr or \
             train.clip = 1.0 usually helps",
            self.step
        );
        bail!(Diverged { step: self.step, terms: vec![], what });
    }

    /// Writes the file; its weights are [`check`](Self::check)ed first.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check(&self.student)?;
        let StateDict { parameters, running } = &self.student;
        let vectors = [
            ("parameters", parameters),
            ("running", running),
            ("ema.parameters", &self.ema[0]),
            ("ema.running", &self.ema[1]),
        ];
        let mut tensors: BTreeMap<String, Entry> =
            vectors.iter().map(|(name, v)| (name.to_string(), Entry::f32(&[v.len()], v))).collect();
        let slots = self.optimizer.iter();
        tensors.extend(slots.map(|(name, v)| (format!("{SLOT}{name}"), Entry::f32(&[v.len()], v))));
        let scalars = [self.best, self.seconds];
        tensors.insert("scalars".into(), Entry::f64(&[2], &scalars));
        // As numbers, not as text: a JSON number may come back one bit off.
        let sums: Vec<f64> = [self.sums.images, self.sums.wrong, self.sums.total]
            .into_iter()
            .chain(self.sums.terms.values().copied())
            .collect();
        tensors.insert("sums".into(), Entry::f64(&[sums.len()], &sums));
        let figures = |e: &EpochFigures| [e.train_error, e.train_loss, e.curve_error.unwrap_or(f64::NAN)];
        let epochs: Vec<f64> = self.epochs.iter().flat_map(figures).collect();
        tensors.insert("epochs".into(), Entry::f64(&[self.epochs.len(), 3], &epochs));
        let norms: Vec<f64> = self.norms.values().flatten().copied().collect();
        tensors.insert("norms".into(), Entry::f64(&[self.norms.len(), 2], &norms));
        let metadata = Metadata::from([
            ("step".to_string(), self.step.to_string()),
            ("terms".into(), serde_json::to_string(&self.sums.terms.keys().collect::<Vec<_>>())?),
            ("norms".into(), serde_json::to_string(&self.norms.keys().collect::<Vec<_>>())?),
            ("commits".into(), serde_json::to_string(&self.commits)?),
            ("inputs".into(), serde_json::to_string(&self.inputs)?),
        ]);
        write_tensors(path, &tensors, &sealed(&tensors, metadata))
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<State> {
        State::from_file(&File::read(path)?)
    }

    /// What a file holds.
    pub fn from_file(file: &File) -> Result<State> {
        file.check_seal()?;
        let scalars = file.f64("scalars")?;
        let list = |key: &str| -> Result<Vec<String>> {
            serde_json::from_str(file.get(key)?).with_context(|| format!("the {key} in the training state"))
        };
        let (sums, terms) = (file.f64("sums")?, list("terms")?);
        let (epochs, norms, terms_of_norms) = (file.f64("epochs")?, file.f64("norms")?, list("norms")?);
        let fits = scalars.len() == 2
            && sums.len() == 3 + terms.len()
            && epochs.len().is_multiple_of(3)
            && norms.len() == 2 * terms_of_norms.len();
        ensure!(fits, "{} is not a training state of this version", file.name());
        let shapes = file.shapes()?;
        let named = shapes.keys().filter_map(|key| Some((key, key.strip_prefix(SLOT)?)));
        let slots = named.map(|(key, name)| Ok((name.to_string(), file.f32(key)?)));
        Ok(State {
            step: file.get("step")?.parse().context("the step in the training state")?,
            student: StateDict { parameters: file.f32("parameters")?, running: file.f32("running")? },
            optimizer: slots.collect::<Result<_>>()?,
            ema: [file.f32("ema.parameters")?, file.f32("ema.running")?],
            sums: Sums {
                images: sums[0],
                wrong: sums[1],
                total: sums[2],
                terms: terms.into_iter().zip(sums[3..].iter().copied()).collect(),
            },
            epochs: epochs
                .as_chunks()
                .0
                .iter()
                .map(|[train_error, train_loss, curve_error]| EpochFigures {
                    train_error: *train_error,
                    train_loss: *train_loss,
                    curve_error: Some(*curve_error).filter(|error| !error.is_nan()),
                })
                .collect(),
            norms: terms_of_norms.into_iter().zip(norms.as_chunks().0.iter().copied()).collect(),
            commits: list("commits")?,
            best: scalars[0],
            seconds: scalars[1],
            inputs: serde_json::from_str(file.get("inputs")?).context("the inputs in the training state")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_whole_or_not_at_all() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("state.safetensors");
        let state = State {
            step: 7,
            student: StateDict { parameters: vec![1.0, -2.5], running: vec![0.5] },
            optimizer: Slots::from([("momentum".into(), vec![0.1, 0.2])]),
            sums: Sums { images: 3.0, wrong: 1.0, total: 0.7, terms: BTreeMap::from([("ce".into(), 0.1)]) },
            epochs: [Some(3.0), None]
                .map(|curve_error| EpochFigures { train_error: 1.0, train_loss: 2.0, curve_error })
                .to_vec(),
            norms: BTreeMap::from([("ce".into(), [1.5, 2.0])]),
            commits: vec!["abc".into()],
            best: 12.5,
            seconds: 3.25,
            inputs: Inputs::from([("teacher".into(), "00ff".into())]),
            ..State::default()
        };
        state.save(&path)?;
        assert_eq!(State::load(&path)?, state);
        let bytes = std::fs::read(&path)?;
        for at in 0..bytes.len() {
            for bit in [1u8, 0x10, 0x80] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                let found = File::parse("damaged".into(), damaged).and_then(|file| State::from_file(&file));
                // The header's spaces and the order of its keys are no contents: the same state may be read from other
                // bytes.
                assert!(found.is_err() || found? == state, "byte {at}");
            }
        }
        Ok(())
    }
}
