//! What happens between two epochs: the curve, pictures, and what is kept on disk.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, json};

use super::recorder::Recorder;
use super::state::{EpochFigures, Sums};
use super::{COMMIT, Run};
use crate::checkpoint::{self, Metadata};
use crate::data::Images;
use crate::data::loader::Loader;
use crate::error::sentence;
use crate::evaluate::evaluate_quickly;
use crate::explain::gallery;
use crate::nn::{Network, StateDict};

/// Images whose maps TensorBoard shows.
const PICTURES: usize = 4;

impl Run<'_> {
    /// Measures the epoch on `curve` if it is one to be measured, records it, and starts new sums.
    pub(super) fn end_epoch(
        &mut self,
        epoch: usize,
        curve: &Images,
        held_out: bool,
        dir: &Path,
        recorder: &mut Recorder,
    ) -> Result<()> {
        let (t, state) = (&self.config.train, &self.state);
        let weights = self.learner.model.state_dict()?;
        state.check(&weights)?;
        let evaluation = t.measures(epoch).then(|| evaluate_quickly(&self.learner.model, curve)).transpose()?;
        let error = evaluation.map(|evaluation| evaluation.error);
        let n = state.sums.images.max(1.0);
        let (name, word) = if held_out { ("val_error", "validation") } else { ("test_error", "test") };
        let train_error = 100.0 * state.sums.wrong / n;
        let mut values = Map::from_iter([
            ("epoch".to_string(), json!(epoch + 1)),
            ("lr".into(), json!(self.learner.schedule.lr(state.step - 1))),
            ("train_error".into(), json!(train_error)),
            ("total".into(), json!(state.sums.total / n)),
        ]);
        values.extend(error.map(|error| (name.to_string(), json!(error))));
        values.extend(state.sums.terms.iter().map(|(term, sum)| (term.clone(), json!(sum / n))));
        values.extend([
            ("seconds".to_string(), json!(state.seconds)),
            ("images_per_second".into(), json!(n * (epoch + 1) as f64 / state.seconds.max(1e-9))),
        ]);
        recorder.write("epoch", state.step, &values)?;
        if error.is_some() {
            self.pictures(curve, recorder)?;
        }
        recorder.flush()?;
        let told = error.map_or(String::new(), |error| format!("  {word} error {error:.2} %"));
        recorder.say(&format!(
            "epoch {:>3}/{}  loss {:.4}  train error {train_error:.2} %{told}  {:.0} s",
            epoch + 1,
            t.epochs,
            state.sums.total / n,
            state.seconds,
        ));
        if held_out && let Some(error) = error.filter(|error| *error < self.state.best) {
            self.state.best = error;
            self.save_weights(&dir.join("best.safetensors"), &weights, epoch + 1, None)?;
        }
        self.save_weights(&dir.join("last.safetensors"), &weights, epoch + 1, None)?;
        self.state.epochs.push(EpochFigures { train_error, train_loss: self.state.sums.total / n, curve_error: error });
        self.state.sums = Sums::default();
        Ok(())
    }

    /// Shows a few images, the student's maps and the teacher's under them.
    fn pictures(&self, curve: &Images, recorder: &mut Recorder) -> Result<()> {
        let chosen = curve.spread(PICTURES);
        let count = chosen.len();
        let batch = Loader::plain(count).batch(&chosen, &(0..count).collect::<Vec<_>>(), 0)?;
        let (learner, shown) = (&self.learner, &self.learner.objective.shown);
        let networks: Vec<&Network> =
            [Some(&learner.model), learner.teacher.as_ref().map(|t| &t.model)].into_iter().flatten().collect();
        let map = |n: &Network| shown.shown(n, &batch.pixels, &batch.labels_on(n.device())?, &batch.ids);
        match networks.into_iter().map(map).collect::<Result<Vec<_>>>() {
            Ok(maps) => recorder.image("maps", &gallery::sheet(&chosen, &maps)?, self.state.step),
            // A run that matches no maps may well have a layer or a head that this method cannot explain.
            Err(e) => {
                if self.state.epochs.iter().all(|earlier| earlier.curve_error.is_none()) {
                    recorder.say(&format!("no picture of maps by {}: {}", self.config.loss.interpreter, sentence(&e)));
                }
                Ok(())
            }
        }
    }

    /// Writes all that resuming needs.
    pub(super) fn save_state(&mut self, dir: &Path) -> Result<()> {
        self.state.student = self.learner.model.state_dict()?;
        self.state.optimizer = self.learner.optimizer.slots()?;
        if let Some(average) = &self.learner.average {
            self.state.ema = average.values()?;
        }
        self.state.save(&dir.join("state.safetensors"))
    }

    /// Writes a checkpoint; its bytes depend on the run alone.
    pub(super) fn save_weights(
        &self,
        path: &Path,
        weights: &StateDict,
        epoch: usize,
        test_error: Option<f64>,
    ) -> Result<()> {
        let mut metadata = Metadata::from([
            ("config".to_string(), serde_json::to_string(&self.config.identity())?),
            ("dataset".into(), self.config.data.name.clone()),
            ("seed".into(), self.config.train.seed.to_string()),
            ("epoch".into(), epoch.to_string()),
            ("profile".into(), self.config.train.profile.clone()),
            ("commit".into(), COMMIT.into()),
        ]);
        if let Some(layers) = &self.config.student.layers {
            metadata.insert("layers".into(), serde_json::to_string(layers)?);
        }
        if let Some(error) = test_error {
            metadata.insert("test_error".into(), format!("{error:.2}"));
        }
        let student = &self.learner.model;
        checkpoint::save(path, &student.architecture, weights, &student.normalization, &metadata)
    }
}
