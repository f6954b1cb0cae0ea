//! A run's final figures.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::DeviceLocation;
use serde::{Deserialize, Serialize};

use super::{COMMIT, Trainer};
use crate::checkpoint::{File, write_atomically};
use crate::data::Images;
use crate::evaluate::evaluate;
use crate::nn::{Backend, Network, Weights};

/// A run's final figures: `report.json` and the JSON of `trainer train`. Errors in percent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Report {
    pub run: PathBuf,
    pub test_error: f64,
    pub test_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_test_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_test_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_test_error: Option<f64>,
    pub train_error: f64,
    pub train_loss: f64,
    pub epochs: usize,
    pub steps: usize,
    pub seconds: f64,
    pub images_per_second: f64,
    pub parameters: usize,
    pub flops_per_image: f64,
    pub profile: String,
    pub seed: u64,
    pub commit: String,
    pub machine: String,
    pub threads: usize,
    pub device: String,
}

impl Trainer<'_> {
    /// Reads the test set, once, and writes the final weights and `report.json`.
    pub(super) fn report(&self, images: usize, test: &Images, held_out: bool, dir: &Path) -> Result<Report> {
        let (t, architecture) = (&self.config.train, &self.student.architecture);
        let last = evaluate(&self.student, test)?;
        self.save_weights(&dir.join("last.safetensors"), &self.student.weights()?, t.epochs, Some(last.error))?;
        let mut ema_test_error = None;
        if t.ema > 0.0 {
            let [parameters, running] = self.state.ema.clone();
            let error = self.error_with(Weights { parameters: parameters.clone(), running: running.clone() }, test)?;
            let weights = Weights { parameters, running };
            self.save_weights(&dir.join("ema.safetensors"), &weights, t.epochs, Some(error))?;
            ema_test_error = Some(error);
        }
        let best = dir.join("best.safetensors");
        let best_test_error = if held_out && best.exists() {
            Some(self.error_with(File::read(&best)?.weights(architecture)?, test)?)
        } else {
            None
        };
        let (train_error, train_loss) = last_epoch(dir)?;
        let teacher_macs = self.teacher.as_ref().map_or(0, |t| t.network.architecture.macs());
        let device = match self.student.device().location() {
            DeviceLocation::Cpu => "cpu",
            DeviceLocation::Cuda { .. } => "cuda",
            DeviceLocation::Metal { .. } => "metal",
        };
        let report = Report {
            run: dir.to_path_buf(),
            test_error: last.error,
            test_loss: last.loss,
            ema_test_error,
            best_test_error,
            teacher_test_error: self.teacher.as_ref().map(|t| t.test_error),
            train_error,
            train_loss,
            epochs: t.epochs,
            steps: self.state.step,
            seconds: self.state.seconds,
            images_per_second: (images * t.epochs) as f64 / self.state.seconds.max(1e-9),
            parameters: architecture.parameters(),
            flops_per_image: 2.0 * (3 * architecture.macs() + teacher_macs) as f64,
            profile: t.profile.name().into(),
            seed: t.seed,
            commit: COMMIT.into(),
            machine: machine(),
            threads: rayon::current_num_threads(),
            device: device.into(),
        };
        write_atomically(&dir.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
        Ok(report)
    }

    /// Test error of other weights of the student.
    fn error_with(&self, weights: Weights, test: &Images) -> Result<f64> {
        let s = &self.student;
        let backend = Backend::f32(s.device());
        let network = Network::new(s.architecture.clone(), weights, s.normalization.clone(), &[], false, backend)?;
        Ok(evaluate(&network, test)?.error)
    }
}

/// Training error and loss of the last epoch, from the run's own metrics.
fn last_epoch(dir: &Path) -> Result<(f64, f64)> {
    let metrics = crate::record::read_metrics(dir)?;
    let last = metrics.iter().rev().find(|m| m["kind"] == "epoch").context("metrics.jsonl holds no epoch")?;
    let number = |key: &str| last[key].as_f64().with_context(|| format!("metrics.jsonl: no {key}"));
    Ok((number("train_error")?, number("total")?))
}

/// The processor's name and number of cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores, {:?}", name.unwrap_or("unknown processor"), kernels::Isa::best())
}
