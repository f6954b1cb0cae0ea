//! From a configuration and images to a run at its first step, or where it was left.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Space;
use candle_core::Device;
use kernels::graph::Shape;

use super::state::{Inputs, State};
use super::{COMMIT, Options, Run, folder, multiplies_bf16, teacher};
use crate::checkpoint::File;
use crate::config::{BnGamma, Config, Control, Dtype, MapGradient, Student, Trained};
use crate::data::loader::Loader;
use crate::data::{Images, Splits};
use crate::distill::average::Average;
use crate::distill::{Learner, Objective};
use crate::files::sha256;
use crate::models::{self, Architecture};
use crate::nn::{Backend, Dropout, Network, Normalization, StateDict};

/// How the epochs' batches are made.
pub fn loader(config: &Config, images: &Images) -> Result<Loader> {
    let (t, d) = (&config.train, &config.data);
    ensure!(
        t.batch <= images.len(),
        "train.batch is {}, but there are only {} training images: use a smaller batch",
        t.batch,
        images.len()
    );
    Ok(Loader { batch: t.batch, seed: t.seed, data_seed: d.seed, views: d.views, augment: d.augment })
}

/// The student's architecture for these images.
pub fn architecture(config: &Config, images: &Images) -> Result<Architecture> {
    let [channels, h, w] = images.shape;
    let (input, s) = (Shape { channels, h, w }, &config.student);
    let architecture = match (&s.layers, &s.arch, &s.checkpoint) {
        (Some(layers), _, _) => Architecture::from_layers(layers, input, images.classes)?,
        (None, Some(arch), _) => Architecture::named(arch, input, images.classes, &s.options)?,
        (None, None, Some(checkpoint)) => {
            let own = File::read(checkpoint)?.architecture(None)?;
            let other = s.new_head && own.name != models::LAYERS;
            if other { Architecture::named(&own.name, input, images.classes, &own.options)? } else { own }
        }
        (None, None, None) => bail!("[student] needs arch or layers"),
    };
    let classes = architecture.classes;
    ensure!(classes == images.classes, "the student has {classes} classes, the data {}", images.classes);
    Ok(architecture)
}

/// The set's usual mean and standard deviation, or those of these very images.
fn normalization(config: &Config, images: &Images) -> Result<Normalization> {
    if let Some([mean, std]) = config.data.source().entry()?.statistics {
        return Ok(Normalization { mean: mean.into(), std: std.into() });
    }
    let (mean, std) = images.mean_std()?;
    Ok(Normalization { mean, std })
}

/// Refuses what no run can be made of.
fn check(config: &Config, options: &Options, images: &Images, objective: &Objective, steps: usize) -> Result<()> {
    let l = &config.loss;
    config.train.dtype.check(&options.device)?;
    ensure!(
        !options.device.is_metal()
            || l.weights.explanation == 0.0
            || l.layer == "last"
            || l.gradient == MapGradient::StopGrad,
        "loss.gradient = \"double\" at loss.layer = \"{}\" is not for Metal: use \"stop_grad\"",
        l.layer
    );
    ensure!(
        l.weights.bce == 0.0 || images.several,
        "loss.weights.bce is for data whose images may show several classes (voc2007); {} has one class an image: use \
         loss.weights.ce",
        config.data.name
    );
    if let Some(step) = objective.first_idle_step(steps, steps * config.train.epochs) {
        bail!(
            "no term of the loss has a weight from step {} on, in epoch {:.2}: see loss.weights and loss.schedule",
            step + 1,
            step as f64 / steps as f64
        );
    }
    if config.student.trained == Trained::Head {
        ensure!(config.train.ema == 0.0, "student.trained = \"head\" keeps no moving average: train.ema must be 0");
        if let Some(term) = objective.of_activations() {
            bail!(
                "student.trained = \"head\" leaves all activations as they are, and loss.weights.{term} speaks of nothing else: \
                 set it to 0, or student.trained = \"all\""
            );
        }
    }
    Ok(())
}

/// What a student begins with: a checkpoint's weights and normalisation, or random weights and the data's.
fn start(config: &Config, architecture: &Architecture, images: &Images) -> Result<(StateDict, Normalization)> {
    let random = StateDict::init(architecture, config.train.seed, config.init.bn_gamma == BnGamma::Uniform);
    let Some(checkpoint) = &config.student.checkpoint else {
        return Ok((random, normalization(config, images)?));
    };
    warm_start(&config.student, checkpoint, architecture, &random).context("the student's warm start")
}

fn warm_start(
    student: &Student,
    checkpoint: &Path,
    architecture: &Architecture,
    random: &StateDict,
) -> Result<(StateDict, Normalization)> {
    let file = File::read(checkpoint)?;
    for (key, own) in &architecture.options {
        agree(student, &file, architecture, key, own)?;
    }
    let weights = if student.new_head {
        file.state_dict_under(architecture, random)
    } else {
        file.state_dict(architecture).context("student.new_head = true takes all but the classifier")
    };
    Ok((weights?, file.normalization()?))
}

/// Weights are taken only by an architecture with the choice that they were made with; a new classifier makes its own.
fn agree(student: &Student, file: &File, architecture: &Architecture, key: &str, own: &str) -> Result<()> {
    let of_head = models::choices(&architecture.name)?.iter().any(|choice| choice.name == key && choice.of_head);
    if student.new_head && of_head {
        return Ok(());
    }
    // Weights that do not say were made with the first word.
    let made = models::settle(&architecture.name, &file.options(&architecture.name)?)?;
    let made = made.get(key).map_or("", String::as_str);
    ensure!(made == own, "{} has {key} = \"{made}\": say so in [student]", file.name());
    Ok(())
}

/// A run in its saved state if it is to go on and has one, else at the start.
pub fn run<'c>(
    config: &'c Config,
    options: &Options,
    images: &Images,
    loader: &Loader,
    inputs: Inputs,
) -> Result<Run<'c>> {
    let (steps, objective) = (loader.steps(images.len()), config.objective()?);
    check(config, options, images, &objective, steps)?;
    let (dtype, precision) = config.train.dtype.parts();
    let backend = Backend { precision, ..Backend::new(dtype, &options.device) };
    let architecture = architecture(config, images)?;
    let (start, normalization) = start(config, &architecture, images)?;
    let saved = saved(config, options, &start, &inputs)?;
    let weights = saved.as_ref().map_or(start, |state| state.student.clone());
    let layers = objective.layers(&architecture.attention_layers());
    let mut student = Network::new(architecture, weights, normalization, &layers, true, backend.clone())?;
    if config.student.trained == Trained::Head {
        student.freeze_trunk();
    }
    student.dropout = Dropout { seed: config.train.seed, pass: saved.as_ref().map_or(0, |s| s.step as u64) };
    let (mut teacher_error, mut note, mut asked) = (None, None, None);
    if let Some(section) = &config.teacher {
        let loaded = teacher::load(section, config, &objective, images, backend)?;
        (teacher_error, note, asked) = (Some(loaded.test_error), Some(loaded.note), Some(loaded.teacher));
    }
    let t = &config.train;
    let mut learner = Learner::new(student, asked, objective, &config.optim, [steps, t.epochs])?;
    learner.clip = t.clip;
    learner.log_every = t.log_every;
    if t.ema > 0.0 {
        learner.average = Some(Average::new(t.ema, &learner.model)?);
    }
    let state = match saved {
        Some(mut state) => {
            learner.step = state.step;
            learner.optimizer.restore(&state.optimizer)?;
            if let Some(average) = &mut learner.average {
                average.restore(&state.ema)?;
            }
            if state.commits.last().is_none_or(|last| last != COMMIT) {
                state.commits.push(COMMIT.into());
            }
            state
        }
        None => State { best: f64::MAX, commits: vec![COMMIT.into()], inputs, ..State::default() },
    };
    Ok(Run { config, learner, state, teacher_error, note })
}

/// Hashes of all that a run reads, beside its configuration.
pub fn inputs(config: &Config, splits: &Splits) -> Result<Inputs> {
    let hash = |path: &Path| -> Result<String> {
        Ok(sha256(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?))
    };
    let mut inputs = Inputs::from([
        ("training images".to_string(), splits.train.fingerprint()?),
        ("test images".into(), splits.test.as_ref().unwrap_or(&splits.curve).fingerprint()?),
    ]);
    if splits.test.is_some() {
        inputs.insert("held-out images".into(), splits.curve.fingerprint()?);
    }
    if let Some(teacher) = &config.teacher {
        inputs.insert("teacher".into(), hash(&teacher.checkpoint)?);
    }
    if let Some(start) = &config.student.checkpoint {
        inputs.insert("student's warm start".into(), hash(start)?);
    }
    Ok(inputs)
}

/// The state to go on from, if there is one.
fn saved(config: &Config, options: &Options, start: &StateDict, inputs: &Inputs) -> Result<Option<State>> {
    let Some(state) = folder::state(inputs, options)? else { return Ok(None) };
    let size = |s: &StateDict| (s.parameters.len(), s.running.len());
    ensure!(size(&state.student) == size(start), "the state in {} belongs to another model", options.run.display());
    ensure!(
        config.train.dtype != Dtype::F64,
        "a run in f64 cannot be resumed: its state is saved in f32; choose another folder with --run"
    );
    Ok(Some(state))
}

/// What a user should know about this run, beyond the configuration.
pub fn notes(config: &Config, device: &Device) -> Vec<String> {
    let (l, mut notes) = (&config.loss, Vec::new());
    if config.train.dtype == Dtype::Bf16 && !multiplies_bf16(device) {
        notes.push("this processor has no AVX2: train.dtype = \"bf16\" computes in f32".into());
    }
    if l.weights.explanation == 0.0 {
        return notes;
    }
    let uses_interpreter = !l.distance.compares_all_classes();
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
