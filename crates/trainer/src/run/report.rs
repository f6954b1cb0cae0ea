//! A run's final figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{Device, DeviceLocation};
use serde::{Deserialize, Serialize};

use super::state::Inputs;
use super::teacher::cache_of_test;
use super::{COMMIT, Run};
use crate::checkpoint::File;
use crate::config::Dtype;
use crate::data::Images;
use crate::evaluate::agreement::{self, Agreement, Comparison};
use crate::evaluate::{evaluate, evaluate_with};
use crate::files::write_atomically;
use crate::nn::{Backend, Network, StateDict};

/// A run's final figures: `report.json` and the JSON of `trainer train`. Errors in percent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Report {
    #[serde(serialize_with = "crate::files::as_shown")]
    pub run: PathBuf,
    pub test_error: f64,
    pub test_loss: f64,
    /// Where images may show several classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_mean_average_precision: Option<f64>,
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
    /// Of the program that finished the run.
    pub commit: String,
    /// Of every program that took part.
    #[serde(default)]
    pub commits: Vec<String>,
    pub machine: String,
    pub threads: usize,
    pub device: String,
    /// What `train.dtype` was on that machine and device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computed_in: Option<Dtype>,
    /// Mean norm of each term's gradient over the logged steps, unweighted, and of the `total`.
    #[serde(default)]
    pub gradient_norms: BTreeMap<String, f64>,
    /// The error after each epoch, none where it was not measured (`train.evaluate_every`): of the held-out images, or of the test
    /// images where none are held out.
    #[serde(default)]
    pub curve: Vec<Option<f64>>,
    /// What student and teacher have in common on the test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// A bit for each test image in order, 1 where the last weights are wrong; bytes in hexadecimal, each from its
    /// highest bit.
    #[serde(default)]
    pub test_wrong: String,
    /// Hashes of what the run read.
    #[serde(default)]
    pub inputs: Inputs,
}

/// The images that an error is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JudgedBy {
    /// The test set: what is reported.
    #[default]
    TestImages,
    /// Images held out of the training set (`data.validation`): what settings are chosen by.
    HeldOutImages,
}

impl JudgedBy {
    /// As [`Report::inputs`] names them.
    pub fn name(self) -> &'static str {
        match self {
            JudgedBy::TestImages => "test images",
            JudgedBy::HeldOutImages => "held-out images",
        }
    }
}

impl Report {
    /// The error after the last epoch, in percent; NaN of held-out images that no epoch was judged by.
    pub fn error(&self, judged_by: JudgedBy) -> f64 {
        match judged_by {
            JudgedBy::TestImages => self.test_error,
            JudgedBy::HeldOutImages => self.curve.last().copied().flatten().unwrap_or(f64::NAN),
        }
    }

    /// The epochs whose error was measured, counted from 1, and it.
    pub fn measured_epochs(&self) -> Vec<(f64, f64)> {
        self.curve.iter().zip(1..).filter_map(|(error, epoch)| Some((f64::from(epoch), (*error)?))).collect()
    }
}

impl Run<'_> {
    /// Reads the test set, once, and writes the final weights and `report.json`.
    pub(super) fn report(&self, images: usize, test: &Images, held_out: bool, dir: &Path) -> Result<Report> {
        let (t, student) = (&self.config.train, &self.learner.model);
        let (teacher, architecture) = (self.learner.teacher.as_ref().map(|t| &t.model), &student.architecture);
        let mut comparison = teacher.map(|teacher| self.comparison(teacher, test)).transpose()?;
        let last = evaluate_with(student, test, |batch, pass| {
            comparison.as_mut().map_or(Ok(()), |comparison| comparison.add(batch, pass))
        })?;
        self.save_weights(&dir.join("last.safetensors"), &student.state_dict()?, t.epochs, Some(last.error))?;
        let mut ema_test_error = None;
        if let Some(average) = &self.learner.average {
            let [parameters, running] = average.values()?;
            let weights = StateDict { parameters, running };
            let error = self.error_with(weights.clone(), test)?;
            self.save_weights(&dir.join("ema.safetensors"), &weights, t.epochs, Some(error))?;
            ema_test_error = Some(error);
        }
        let best = dir.join("best.safetensors");
        let mut best_test_error = None;
        if held_out && best.exists() {
            let file = File::read(&best)?;
            let is_last = file.metadata.get("epoch").is_some_and(|epoch| *epoch == t.epochs.to_string());
            best_test_error = Some(match is_last {
                true => last.error,
                false => self.error_with(file.state_dict(architecture)?, test)?,
            });
        }
        let epoch = self.state.epochs.last().context("a run without an epoch has nothing to report")?;
        let teacher_macs = teacher.map_or(0, |t| t.architecture.macs());
        let device = match student.device().location() {
            DeviceLocation::Cpu => "cpu",
            DeviceLocation::Cuda { .. } => "cuda",
            DeviceLocation::Metal { .. } => "metal",
        };
        let report = Report {
            run: dir.to_path_buf(),
            test_error: last.error,
            test_loss: last.loss,
            test_mean_average_precision: last.mean_average_precision,
            ema_test_error,
            best_test_error,
            teacher_test_error: self.teacher_error,
            train_error: epoch.train_error,
            train_loss: epoch.train_loss,
            epochs: t.epochs,
            steps: self.state.step,
            seconds: self.state.seconds,
            images_per_second: (images * t.epochs) as f64 / self.state.seconds.max(1e-9),
            parameters: architecture.parameters(),
            flops_per_image: 2.0 * (3 * architecture.macs() + teacher_macs) as f64,
            profile: t.profile.clone(),
            seed: t.seed,
            commit: COMMIT.into(),
            commits: self.state.commits.clone(),
            machine: machine(),
            threads: rayon::current_num_threads(),
            device: device.into(),
            computed_in: Some(t.dtype.in_effect(student.device())),
            gradient_norms: self.state.norms.iter().map(|(name, [sum, n])| (name.clone(), sum / n.max(1.0))).collect(),
            curve: self.state.epochs.iter().map(|e| e.curve_error).collect(),
            agreement: comparison.map(Comparison::finish),
            test_wrong: bitmap(&last.wrong),
            inputs: self.state.inputs.clone(),
        };
        write_atomically(&dir.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
        Ok(report)
    }

    /// Student and teacher on no image so far.
    fn comparison<'n>(&'n self, teacher: &'n Network, test: &Images) -> Result<Comparison<'n>> {
        let student = &self.learner.model;
        let parts = agreement::parts(student, teacher)?;
        let section = self.config.teacher.as_ref();
        let cache =
            section.map(|section| cache_of_test(section, &self.state.inputs, teacher, &parts, test)).transpose();
        // It saves time, and nothing that has been trained may be lost with it.
        let cache = cache.unwrap_or_else(|error| {
            agreement::without_cache(&error);
            None
        });
        Ok(Comparison::new(student, teacher, parts, cache.flatten()))
    }

    /// Test error of other weights of the student.
    fn error_with(&self, weights: StateDict, test: &Images) -> Result<f64> {
        let s = &self.learner.model;
        let backend = Backend::f32(s.device());
        let network = Network::new(s.architecture.clone(), weights, s.normalization.clone(), &[], false, backend)?;
        Ok(evaluate(&network, test)?.error)
    }
}

/// Bits as bytes in hexadecimal, each from its highest bit.
fn bitmap(bits: &[bool]) -> String {
    let byte = |bits: &[bool]| bits.iter().enumerate().fold(0u8, |byte, (i, bit)| byte | u8::from(*bit) << (7 - i));
    bits.chunks(8).map(|bits| format!("{:02x}", byte(bits))).collect()
}

/// The bits of a [`Report::test_wrong`].
pub fn bits(bitmap: &str) -> Option<Vec<bool>> {
    let bytes = bitmap.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    Some(
        bytes
            .collect::<Option<Vec<_>>>()?
            .iter()
            .flat_map(|byte| (0..8).map(move |i| byte >> (7 - i) & 1 == 1))
            .collect(),
    )
}

impl Report {
    /// Whether the run multiplied numbers of bf16, if `train.dtype` asked for that. Where a report doesn't say so, the program
    /// was one that computed in f32 on processors without products of bf16.
    pub fn multiplied_bf16(&self) -> bool {
        let products = self.device != "cpu" || self.machine.ends_with("Bf16") || self.machine.ends_with("Amx");
        self.computed_in.map_or(products, |dtype| dtype == Dtype::Bf16)
    }
}

/// The same of a run that this machine would do on a device.
pub fn multiplies_bf16(device: &Device) -> bool {
    Dtype::Bf16.in_effect(device) == Dtype::Bf16
}

/// The processor's name and number of cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores, {:?}", name.unwrap_or("unknown processor"), kernels::Isa::best())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_its_machine_multiplied() {
        let mut report: Report = serde_json::from_value(serde_json::json!({
            "run": "", "test_error": 1.0, "test_loss": 0.3, "train_error": 1.0, "train_loss": 0.1, "epochs": 1,
            "steps": 1, "seconds": 1.0, "images_per_second": 1.0, "parameters": 1, "flops_per_image": 1.0,
            "profile": "fast", "seed": 0, "commit": "abc", "machine": machine(), "threads": 1, "device": "cpu",
        }))
        .expect("a report");
        for (isa, expected) in [("Avx2", false), ("Avx512", false), ("Avx512Bf16", true), ("Amx", true)] {
            report.machine = format!("a processor, 2 cores, {isa}");
            assert_eq!(report.multiplied_bf16(), expected, "{isa}");
        }
        for dtype in [Dtype::F32, Dtype::Bf16] {
            report.computed_in = Some(dtype);
            assert_eq!(report.multiplied_bf16(), dtype == Dtype::Bf16);
        }
    }

    #[test]
    fn a_bitmap_gives_its_bits_back() {
        let wrong: Vec<bool> = (0..21).map(|i| i % 5 == 0 || i == 20).collect();
        assert_eq!(bitmap(&wrong), "842108");
        assert_eq!(bits(&bitmap(&wrong)).unwrap()[..21], wrong);
        assert_eq!(bits("8x"), None);
    }
}
