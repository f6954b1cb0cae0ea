//! Ten training steps of a tiny network, against PyTorch in float64 (`scripts/make_trajectory.py`).

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use kernels::graph::Shape;
use kernels::stage::Precision;
use testkit::{assert_close, flat, values};
use trainer::checkpoint::File;
use trainer::config::{Config, Distance};
use trainer::data::Images;
use trainer::data::loader::{Batch, Loader};
use trainer::distill::average::Average;
use trainer::distill::objective::Losses;
use trainer::distill::teacher::{Frozen, Teacher};
use trainer::distill::terms::Inputs;
use trainer::distill::{Learner, Measurements};
use trainer::models::Architecture;
use trainer::nn::{Backend, Engine, Mode, Model, Network, Normalization, StateDict, gradient};

const CLASSES: usize = 5;
const BATCH: usize = 8;
const SETTINGS: &str = "
    student.arch = 'wrn-10-1'
    teacher.checkpoint = 'fixture'
    [loss]
    temperature = 3.0
    weights = { ce = 0.3, kd = 0.7, explanation = 0.05, attention = 2.0 }
    [optim]
    lr = 0.05
    schedule = 'constant'
    momentum = 0.9
    nesterov = true
    weight_decay = 5e-4
    warmup = 0
";

/// The fixture's network with `a` and then `b` channels.
fn architecture(a: usize, b: usize) -> Result<Architecture> {
    let list = format!(
        "layers = [
            {{ conv = {{ channels = {a} }} }}, {{ bn = {{}} }}, {{ relu = {{}} }}, {{ cut = {{ name = 'layer1' }} }},
            {{ residual = {{ layers = [{{ conv = {{ channels = {a} }} }}, {{ bn = {{}} }}, {{ relu = {{}} }}, {{ conv = {{ channels = {a} }} }}] }} }},
            {{ cut = {{ name = 'layer2' }} }},
            {{ pool = {{}} }}, {{ conv = {{ channels = {b} }} }}, {{ bn = {{}} }}, {{ relu = {{}} }}, {{ cut = {{ name = 'layer3' }} }},
            {{ conv = {{ channels = {b} }} }}, {{ bn = {{}} }}, {{ relu = {{}} }}, {{ linear = {{}} }},
        ]"
    );
    let config = Config::from_table(format!("[student]\n{list}").parse()?)?;
    let layers = config.student.layers.context("layers")?;
    Architecture::from_layers(&layers, Shape { channels: 3, h: 12, w: 12 }, CLASSES)
}

/// What a learner does not need.
struct Rest {
    file: File,
    images: Images,
}

struct Fixture {
    file: File,
    images: Images,
    student: Network,
    teacher: Network,
}

impl Fixture {
    fn open(backend: &Backend) -> Result<Fixture> {
        let file = File::read(&testkit::fixture("trajectory.safetensors"))?;
        let pixels = file.f64("images_u8")?.into_iter().map(|p| p as u8).collect();
        let labels = file.f64("labels")?.into_iter().map(|l| l as u32).collect();
        let images = Images::new(pixels, labels, [3, 12, 12], CLASSES)?;
        let network = |prefix: &str, (a, b), trained| -> Result<Network> {
            let architecture = architecture(a, b)?;
            let mut weights = StateDict {
                parameters: vec![0.0; architecture.graph.parameter_len()],
                running: vec![0.0; architecture.graph.statistics_len()],
            };
            for (entry, parameter) in architecture.entries() {
                let target = if parameter { &mut weights.parameters } else { &mut weights.running };
                target[entry.range()].copy_from_slice(&file.f32(&format!("{prefix}{}", entry.name))?);
            }
            let architecture_layers = architecture.attention_layers();
            let normalization = Normalization { mean: vec![0.5, 0.45, 0.4], std: vec![0.25, 0.2, 0.3] };
            Network::new(architecture, weights, normalization, &architecture_layers, trained, backend.clone())
        };
        let (student, teacher) = (network("student.", (8, 12), true)?, network("teacher.", (6, 10), false)?);
        Ok(Fixture { images, student, teacher, file })
    }

    /// The student before its first step; `steps` of them are an epoch.
    fn learner(self, config: &Config, steps: usize) -> Result<(Learner<Network, Frozen<Network>>, Rest)> {
        let objective = config.objective()?;
        let parts = objective.parts(&self.teacher)?;
        let (t, teacher) = (&config.train, Some(Frozen::new(self.teacher, parts)));
        let mut learner = Learner::new(self.student, teacher, objective, &config.optim, [steps, t.epochs])?;
        learner.clip = t.clip;
        if t.ema > 0.0 {
            learner.average = Some(Average::new(t.ema, &learner.model)?);
        }
        Ok((learner, Rest { file: self.file, images: self.images }))
    }
}

impl Rest {
    fn batch(&self, step: usize) -> Result<Batch> {
        let positions: Vec<usize> = (0..BATCH).map(|i| i + step % 2 * BATCH).collect();
        Loader::plain(BATCH).batch(&self.images, &positions, 0)
    }

    /// Compares what a network has come to with the file; weights are handed out in f32.
    #[track_caller]
    fn compare(&self, prefix: &str, architecture: &Architecture, found: &StateDict, tolerance: f64) -> Result<()> {
        for (entry, parameter) in architecture.entries() {
            let flat = if parameter { &found.parameters } else { &found.running };
            let found: Vec<f64> = flat[entry.range()].iter().map(|v| f64::from(*v)).collect();
            let what = format!("{prefix}{}", entry.name);
            assert_close(&what, &found, &self.file.f64(&what)?, tolerance.max(3e-7) * 3.0);
        }
        Ok(())
    }
}

fn part<'a>(network: &Network, flat: &'a [f64], name: &str) -> &'a [f64] {
    let found = network.architecture.graph.parameters.iter().find(|e| e.name == name);
    &flat[found.unwrap_or_else(|| panic!("no parameter {name}")).range()]
}

/// The terms of the next step, and nothing else of it.
fn losses(learner: &mut Learner<Network, Frozen<Network>>, batch: &Batch) -> Result<Losses> {
    let output = learner.teacher.as_mut().context("a teacher")?.output(batch)?;
    let student = &learner.model;
    let pass = student.forward(&student.images(&batch.pixels)?, Mode::Train)?;
    let labels = batch.labels_on(student.device())?;
    let inputs = Inputs { student, pass: &pass, labels: &labels, ids: &batch.ids, shown: None, teacher: Some(&output) };
    learner.objective.losses(learner.schedule.epoch(learner.step), &inputs)
}

fn gradient_of(learner: &Learner<Network, Frozen<Network>>, term: &Tensor) -> Result<Vec<f64>> {
    Ok(flat(&gradient(term, learner.model.variables())?)?)
}

/// Every engine and type on every device, with the tolerance of the type.
fn cases() -> Vec<(Backend, f64)> {
    let mut cases = Vec::new();
    for device in testkit::devices() {
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 2e-4)] {
            let engines = [Engine::Ops, Engine::Device, Engine::Kernels].into_iter().filter(|engine| match engine {
                Engine::Kernels => device.is_cpu(),
                Engine::Device => kernels::device::serves(&device),
                Engine::Ops => true,
            });
            for engine in engines {
                cases.push((Backend { engine, dtype, precision: Precision::F32, device: device.clone() }, tolerance));
            }
        }
    }
    cases
}

#[test]
fn ten_steps_follow_pytorch() -> Result<()> {
    let config = Config::from_table(SETTINGS.parse()?)?;
    for (backend, tolerance) in cases() {
        let (mut learner, rest) = Fixture::open(&backend)?.learner(&config, 10)?;
        let total = losses(&mut learner, &rest.batch(0)?)?.total()?;
        let first = gradient_of(&learner, &total)?;
        for entry in &learner.model.architecture.graph.parameters {
            let what = format!("grad0.{}", entry.name);
            assert_close(&what, &first[entry.range()], &rest.file.f64(&what)?, tolerance);
        }
        for step in 0..10 {
            let measured = learner.step(&rest.batch(step)?)?;
            assert_eq!(measured.terms.len(), 4);
            for (name, term) in measured.terms.into_iter().chain([("total", measured.total)]) {
                let what = format!("{backend:?} step {step} {name}");
                assert_close(&what, &[term], &[rest.file.f64(name)?[step]], tolerance);
            }
        }
        rest.compare("final.", &learner.model.architecture, &learner.model.state_dict()?, tolerance)?;
    }
    Ok(())
}

/// Clipping, weights over time, drops of the learning rate with a reset of the momentum, and the moving average, by
/// value.
#[test]
fn a_longer_way_follows_pytorch() -> Result<()> {
    const STEPS: usize = 4;
    let (mut clipped, mut whole) = (0, 0);
    for (backend, tolerance) in cases() {
        let fixture = Fixture::open(&backend)?;
        let clip = fixture.file.f64("long.clip")?[0];
        let settings =
            SETTINGS.replace("schedule = 'constant'", "schedule = 'multi_step'").replace("= true", "= false");
        let settings = format!(
            "{settings}
            drops = [2, 3]
            drop_factor = 0.2
            reset_momentum_at_drops = true
            [loss.schedule]
            kd = {{ ramp = 1.5 }}
            explanation = {{ cut_off = 2.0 }}
            [train]
            clip = {clip}
            ema = 0.9
            epochs = 3"
        );
        let config = Config::from_table(settings.parse()?)?;
        let (mut learner, rest) = fixture.learner(&config, STEPS)?;
        for step in 0..3 * STEPS {
            let m: Measurements = learner.step(&rest.batch(step)?)?;
            let expected = |key: &str| -> Result<f64> { Ok(rest.file.f64(&format!("long.{key}"))?[step]) };
            let what = |key: &str| format!("{backend:?} step {step} {key}");
            for name in ["ce", "kd", "explanation", "attention"] {
                match m.terms.iter().find(|(term, _)| *term == name) {
                    Some((_, found)) => assert_close(&what(name), &[*found], &[expected(name)?], tolerance),
                    None => assert!(expected(name)?.is_nan(), "{} took no part", what(name)),
                }
            }
            for (key, found) in [("total", m.total), ("norm", m.gradient_norm), ("lr", m.lr)] {
                assert_close(&what(key), &[found], &[expected(key)?], tolerance * 10.0);
            }
            *if m.gradient_norm > clip { &mut clipped } else { &mut whole } += 1;
        }
        let architecture = learner.model.architecture.clone();
        rest.compare("long.final.", &architecture, &learner.model.state_dict()?, tolerance)?;
        let [parameters, running] = learner.average.as_ref().context("an average")?.values()?;
        rest.compare("long.ema.", &architecture, &StateDict { parameters, running }, tolerance)?;
    }
    assert!(clipped > 0 && whole > 0, "{clipped} steps clipped, {whole} not");
    Ok(())
}

/// Every method's closed form against autograd through its definition, under every distance.
#[test]
fn explanation_terms_follow_pytorch() -> Result<()> {
    let mut compared = 0;
    let first = |backend: &Backend, config: &Config| -> Result<(Tensor, Vec<f64>, Network, File)> {
        let (mut learner, rest) = Fixture::open(backend)?.learner(config, 10)?;
        let losses = losses(&mut learner, &rest.batch(0)?)?;
        let term = losses.get("explanation").context("the term")?.clone();
        let gradient = gradient_of(&learner, &term)?;
        Ok((term, gradient, learner.model, rest.file))
    };
    for (backend, tolerance) in cases() {
        for (key, interpreter) in
            [("grad_cam", "grad_cam"), ("grad_cam_pp", "grad_cam_pp"), ("shap_cam_mean", "shap_cam")]
        {
            for (name, distance) in
                [("raw_l2", Distance::RawL2), ("at_l2", Distance::AtL2), ("cosine", Distance::Cosine)]
            {
                let mut config = Config::from_table(SETTINGS.parse()?)?;
                config.loss.distance = distance;
                config.loss.interpreter = interpreter.into();
                config.interpreter.shap_cam.fill = cams::methods::Fill::ChannelMean;
                let (term, gradient, network, file) = first(&backend, &config)?;
                let key = format!("terms.{key}.{name}");
                assert_close(&key, &values(&term)?, &file.f64(&key)?, tolerance);
                for parameter in ["fc.weight", "layers.0.weight"] {
                    let what = format!("{key}.grad.{parameter}");
                    assert_close(&what, part(&network, &gradient, parameter), &file.f64(&what)?, tolerance);
                    compared += 1;
                }
            }
        }
        let mut config = Config::from_table(SETTINGS.parse()?)?;
        config.loss.distance = Distance::AllClassPooled;
        let (term, gradient, network, file) = first(&backend, &config)?;
        assert_close("all_class_pooled", &values(&term)?, &file.f64("terms.all_class_pooled")?, tolerance);
        let expected = file.f64("terms.all_class_pooled.grad.fc.weight")?;
        assert_close("all_class_pooled, gradient", part(&network, &gradient, "fc.weight"), &expected, tolerance);
    }
    assert_eq!(compared, cases().len() * 3 * 3 * 2);
    Ok(())
}
