//! Ten recorded training steps, and the gradients of the explanation term.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use testkit::{assert_close, deviation, flat, values};
use trainer::checkpoint::File;
use trainer::config::{Config, Distance};
use trainer::data::Images;
use trainer::data::loader::Batch;
use trainer::distill::Learner;
use trainer::distill::objective::Losses;
use trainer::distill::teacher::{Frozen, Teacher};
use trainer::distill::terms::Inputs;
use trainer::nn::{Engine, Mode, Model, Network, Pass, gradient};

use crate::{batch, files, images, network};

fn config(distance: Distance) -> Result<Config> {
    let text = "student.arch = 'wrn-16-2'\nteacher.checkpoint = 'golden'\n[loss]\ntemperature = 4.0\ninterpreter = 'grad_cam'\nweights = { ce = 0.1, kd = 0.9, explanation = 0.01 }\n[optim]\nlr = 0.001\nschedule = 'constant'\nwarmup = 0\nmomentum = 0.9\nnesterov = true\nweight_decay = 5e-4";
    let mut config = Config::from_table(text.parse()?)?;
    config.loss.distance = distance;
    Ok(config)
}

/// A student's named parameter in a flat gradient.
fn named(network: &Network, flat: &[f64], name: &str) -> Vec<f64> {
    let entry = network.architecture.graph.parameters.iter().find(|e| e.name == name);
    flat[entry.unwrap_or_else(|| panic!("no parameter {name}")).range()].to_vec()
}

struct Golden {
    file: File,
    images: Images,
    learner: Learner<Network, Frozen<Network>>,
}

impl Golden {
    fn open(path: &Path, dtype: DType, engine: Engine, config: &Config) -> Result<Golden> {
        let file = File::read(path)?;
        let images = images(&file)?;
        let weights =
            |key: &str| -> Result<PathBuf> { Ok(path.parent().context("folder")?.join("..").join(file.get(key)?)) };
        let model = network(&weights("student")?, &[], true, dtype, engine)?;
        let teacher = network(&weights("teacher")?, &[], false, dtype, engine)?;
        let objective = config.objective()?;
        let parts = objective.parts(&teacher)?;
        let learner = Learner::new(model, Some(Frozen::new(teacher, parts)), objective, &config.optim, [10, 1])?;
        Ok(Golden { images, file, learner })
    }

    /// The losses of a batch in train mode, and nothing else of a step.
    fn losses(&mut self, batch: &Batch) -> Result<(Losses, Pass)> {
        let output = self.learner.teacher.as_mut().context("a teacher")?.output(batch)?;
        let student = &self.learner.model;
        let pass = student.forward(&student.images(&batch.pixels)?, Mode::Train)?;
        let labels = batch.labels_on(student.device())?;
        let inputs =
            Inputs { student, pass: &pass, labels: &labels, ids: &batch.ids, shown: None, teacher: Some(&output) };
        Ok((self.learner.objective.losses(0.0, &inputs)?, pass))
    }

    fn gradient(&self, of: &Tensor) -> Result<Vec<f64>> {
        Ok(flat(&gradient(of, self.learner.model.variables())?)?)
    }
}

const CASES: [(DType, Engine, Allowed); 5] = [
    (DType::F64, Engine::Kernels, F64),
    (DType::F64, Engine::Device, F64),
    (DType::F64, Engine::Ops, F64),
    (DType::F32, Engine::Kernels, F32),
    (DType::F32, Engine::Ops, F32),
];

/// What is allowed of a term's value, of a gradient and of the final weights, as a part of the largest value.
struct Allowed {
    first: f64,
    later: f64,
    gradient: f64,
    weights: f64,
}

/// In f64 nothing but the formulas is left, and the losses are followed to 1e-9.
const F64: Allowed = Allowed { first: 1e-9, later: 1e-9, gradient: 1e-7, weights: 1e-6 };

/// In f32 an activation within rounding of 0 falls on the other side of a ReLU now and then, and changes a gradient by
/// up to a percent of its largest element; from then on the paths part. Where that happens is chance: PyTorch's
/// own f32 steps leave the recorded ones by 3e-3 to 2e-2, depending on layout and threads (docs/decisions/0009).
const F32: Allowed = Allowed { first: 1e-5, later: 5e-2, gradient: 1e-2, weights: 2e-3 };

#[test]
fn golden_training_trajectory() -> Result<()> {
    for path in files("train-") {
        for (dtype, engine, allowed) in CASES {
            let config = config(Distance::RawL2)?;
            let mut g = Golden::open(&path, dtype, engine, &config)?;
            let mut worst = 0.0f64;
            for k in 0..10 {
                let positions: Vec<usize> = (0..32).map(|i| i + k % 2 * 32).collect();
                let batch = batch(&g.images, &positions)?;
                if k == 0 {
                    let (losses, pass) = g.losses(&batch)?;
                    let expected = g.file.f64("step0.student_logits")?;
                    assert_close("logits", &values(&pass.logits)?, &expected, allowed.first);
                    let gradient = g.gradient(&losses.total()?)?;
                    for name in g.file.shapes()?.into_keys() {
                        if let Some(parameter) = name.strip_prefix("grad0.") {
                            let found = named(&g.learner.model, &gradient, parameter);
                            assert_close(&name, &found, &g.file.f64(&name)?, allowed.gradient);
                        }
                    }
                }
                let measured = g.learner.step(&batch)?;
                let tolerance = if k == 0 { allowed.first } else { allowed.later };
                for (name, found) in measured.terms.into_iter().chain([("total", measured.total)]) {
                    let (found, expected) = ([found], [g.file.f64(name)?[k]]);
                    worst = worst.max(deviation(&found, &expected));
                    assert_close(&format!("{dtype:?} {engine:?} step {k} {name}"), &found, &expected, tolerance);
                }
            }
            println!("{dtype:?} {engine:?}: the terms of ten steps within {worst:.1e}");
            let student = &g.learner.model;
            let last = student.state_dict()?;
            let mut compared = 0;
            for name in g.file.shapes()?.into_keys() {
                let Some(tensor) = name.strip_prefix("final.") else { continue };
                let (entry, parameter) =
                    student.architecture.entries().find(|(e, _)| e.name == tensor).context("a name")?;
                let flat = if parameter { &last.parameters } else { &last.running };
                let found: Vec<f64> = flat[entry.range()].iter().map(|v| f64::from(*v)).collect();
                assert_close(&name, &found, &g.file.f64(&name)?, allowed.weights);
                compared += 1;
            }
            assert!(compared > 0, "the file holds no final weights");
        }
    }
    Ok(())
}

#[test]
fn golden_explanation_gradients() -> Result<()> {
    for path in files("train-") {
        for (dtype, engine, allowed) in CASES {
            for (prefix, distance) in [("", Distance::RawL2), ("at_l2.", Distance::AtL2), ("cosine.", Distance::Cosine)]
            {
                let mut g = Golden::open(&path, dtype, engine, &config(distance)?)?;
                let batch = batch(&g.images, &(0..32).collect::<Vec<_>>())?;
                let (losses, _) = g.losses(&batch)?;
                let term = losses.get("explanation").context("the term")?;
                let value = g.file.f64(&format!("{prefix}explanation"))?[0];
                // 1 - cos cancels: its absolute error is that of a number near 1.
                let tolerance = if prefix.is_empty() { 1.0 } else { 10.0 } * allowed.first;
                assert_close(&format!("{prefix}explanation"), &values(term)?, &[value], tolerance);
                let gradient = g.gradient(term)?;
                for parameter in ["fc.weight", "conv1.weight"] {
                    let name = format!("{prefix}explanation_grad0.{parameter}");
                    assert_close(
                        &name,
                        &named(&g.learner.model, &gradient, parameter),
                        &g.file.f64(&name)?,
                        allowed.gradient,
                    );
                }
            }
        }
    }
    Ok(())
}
