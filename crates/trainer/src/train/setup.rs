//! From a configuration and images to a trainer at its first step, or where it was left.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Space;
use kernels::graph::Shape;

use super::{COMMIT, Options, Trainer, folder};
use crate::checkpoint::File;
use crate::config::{BnGamma, Config, Control, Distance, MapGradient, Precision};
use crate::data::fetch::sha256;
use crate::data::loader::Plan;
use crate::data::{Images, Portions};
use crate::models::{Architecture, Shortcut};
use crate::nn::{Backend, Network, Normalization, Weights};
use crate::objective;
use crate::optim::Sgd;
use crate::state::{Inputs, State};
use crate::teacher::Teacher;

/// How the epochs' batches are made.
pub fn plan(config: &Config, images: &Images) -> Result<Plan> {
    let (t, d) = (&config.train, &config.data);
    ensure!(
        t.batch <= images.len(),
        "train.batch is {}, but there are only {} training images: use a smaller batch",
        t.batch,
        images.len()
    );
    Ok(Plan { batch: t.batch, seed: t.seed, data_seed: d.seed, views: d.views, augment: d.augment })
}

/// The student's architecture for these images.
pub fn architecture(config: &Config, images: &Images) -> Result<Architecture> {
    let [channels, h, w] = images.shape;
    let (input, s) = (Shape { channels, h, w }, &config.student);
    let architecture = match (&s.layers, &s.arch, &s.checkpoint) {
        (Some(layers), _, _) => Architecture::from_layers(layers, input, images.classes)?,
        (None, Some(arch), _) => Architecture::named(arch, input, images.classes, s.shortcut)?,
        (None, None, Some(checkpoint)) => File::read(checkpoint)?.architecture(None)?,
        (None, None, None) => bail!("[student] needs arch or layers"),
    };
    let classes = architecture.classes;
    ensure!(classes == images.classes, "the student has {classes} classes, the data {}", images.classes);
    Ok(architecture)
}

/// CIFAR-10's usual mean and standard deviation; other sets' own.
fn normalization(config: &Config, images: &Images) -> Normalization {
    if ["cifar10", "cifar10-mini"].contains(&config.data.name.as_str()) {
        return Normalization::cifar10();
    }
    let (mean, std) = images.mean_std();
    Normalization { mean, std }
}

/// A trainer in its saved state if it is to go on and has one, else at the start.
pub fn trainer<'c>(
    config: &'c Config,
    options: &Options,
    images: &Images,
    plan: &Plan,
    inputs: Inputs,
) -> Result<Trainer<'c>> {
    let (dtype, precision) = config.train.dtype.parts();
    ensure!(
        !config.train.dtype.is_for_cpu() || options.device.is_cpu(),
        "train.dtype = \"bf16\" and \"f32_direct\" are for the CPU: on other devices networks run on candle's ops in f32"
    );
    let l = &config.loss;
    ensure!(
        options.device.is_cpu()
            || l.weights.explanation == 0.0
            || l.layer == "last"
            || l.gradient == MapGradient::StopGrad,
        "loss.gradient = \"double\" at loss.layer = \"{}\" is for the CPU: use \"stop_grad\"",
        l.layer
    );
    let steps = plan.steps(images.len());
    if let Some(step) = l.first_idle_step(steps, steps * config.train.epochs) {
        bail!(
            "no term of the loss has a weight from step {} on, in epoch {:.2}: see loss.weights and loss.schedule",
            step + 1,
            step as f64 / steps as f64
        );
    }
    let backend = Backend { precision, ..Backend::new(dtype, &options.device) };
    let architecture = architecture(config, images)?;
    let mut normalization = normalization(config, images);
    let mut start = Weights::init(&architecture, config.train.seed, config.init.bn_gamma == BnGamma::Uniform);
    if let Some(checkpoint) = &config.student.checkpoint {
        let file = File::read(checkpoint).context("the student's warm start")?;
        let raw = file.metadata.get("shortcut").is_some_and(|s| s == "raw");
        ensure!(
            architecture.shortcut.is_none_or(|s| raw == (s == Shortcut::Raw)),
            "the student's warm start {} has shortcut = \"{}\": say so in [student]",
            file.name(),
            if raw { "raw" } else { "preact" }
        );
        start = file.weights(&architecture).context("the student's warm start")?;
        normalization = file.normalization()?;
    }
    let state = state(config, options, start, inputs)?;
    let weights = Weights { parameters: state.parameters.clone(), running: state.running.clone() };
    let layers = objective::layers(&config.loss);
    let student = Network::new(architecture, weights, normalization, &layers, true, backend.clone())?;
    let teacher = match &config.teacher {
        Some(section) => Some(Teacher::load(section, config, images, backend)?),
        None => None,
    };
    let optimiser = Sgd::new(student.variables(), &state.momentum)?;
    Ok(Trainer { config, student, teacher, optimiser, state, steps })
}

/// Hashes of all that a run reads, beside its configuration.
pub fn inputs(config: &Config, portions: &Portions) -> Result<Inputs> {
    let hash = |path: &Path| -> Result<String> {
        Ok(sha256(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?))
    };
    let mut inputs = Inputs::from([
        ("training images".to_string(), portions.train.fingerprint()),
        ("test images".into(), portions.test.as_ref().unwrap_or(&portions.curve).fingerprint()),
    ]);
    if portions.test.is_some() {
        inputs.insert("held-out images".into(), portions.curve.fingerprint());
    }
    if let Some(teacher) = &config.teacher {
        inputs.insert("teacher".into(), hash(&teacher.checkpoint)?);
    }
    if let Some(start) = &config.student.checkpoint {
        inputs.insert("student's warm start".into(), hash(start)?);
    }
    Ok(inputs)
}

fn state(config: &Config, options: &Options, start: Weights, inputs: Inputs) -> Result<State> {
    if let Some(mut state) = folder::state(&inputs, options)? {
        let fits = state.parameters.len() == start.parameters.len() && state.running.len() == start.running.len();
        ensure!(fits, "the state in {} belongs to another model", options.run.display());
        ensure!(
            config.train.dtype != Precision::F64,
            "a run in f64 cannot be resumed: its state is saved in f32; choose another folder with --run"
        );
        if state.commits.last().is_none_or(|last| last != COMMIT) {
            state.commits.push(COMMIT.into());
        }
        return Ok(state);
    }
    let ema = if config.train.ema > 0.0 { [start.parameters.clone(), start.running.clone()] } else { [vec![], vec![]] };
    Ok(State {
        momentum: vec![0.0; start.parameters.len()],
        parameters: start.parameters,
        running: start.running,
        ema,
        best: f64::MAX,
        commits: vec![COMMIT.into()],
        inputs,
        ..State::default()
    })
}

/// What a user should know about this run, beyond the configuration.
pub fn notes(config: &Config) -> Vec<String> {
    let (l, mut notes) = (&config.loss, Vec::new());
    if config.train.dtype == Precision::Bf16 && kernels::Isa::best() < kernels::Isa::Avx512Bf16 {
        notes.push("this processor has no AVX512_BF16: train.dtype = \"bf16\" computes in f32".into());
    }
    if l.weights.explanation == 0.0 {
        return notes;
    }
    let uses_interpreter = l.distance != Distance::AllClassPooled;
    if uses_interpreter && let Some(method) = config.interpreter.get(&l.interpreter) {
        notes.push(format!("maps of {}: {}", l.interpreter, method.differentiable().sentence()));
    }
    if uses_interpreter && l.interpreter == "score_cam" {
        notes.push(match config.interpreter.score_cam.space {
            Space::Features => {
                "score_cam masks the features (space = \"features\"): one evaluation of the head a channel; \
                                interpreter.score_cam.space = \"image\" masks the image, one forward pass a channel"
                    .into()
            }
            Space::Image => {
                "score_cam masks the image (space = \"image\"): one forward pass a channel and image".into()
            }
        });
    }
    if l.control != Control::None {
        let what = if l.control == Control::Random { "randomly weighted" } else { "those of other images" };
        notes.push(format!("control experiment: the teacher's maps are {what}"));
    }
    notes
}
