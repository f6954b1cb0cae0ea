//! Ten training steps of a tiny network, against PyTorch in float64 (`scripts/make_trajectory.py`).

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use kernels::graph::Shape;
use kernels::sgd::SgdStep;
use kernels::stage::{Mode, Precision};
use testkit::{assert_close, flat, values};
use trainer::checkpoint::File;
use trainer::config::{Config, Distance};
use trainer::data::Images;
use trainer::data::loader::{Batch, Plan};
use trainer::loss::Losses;
use trainer::models::Architecture;
use trainer::nn::{Backend, Engine, Network, Normalization, Pass, Weights};
use trainer::objective;
use trainer::optim::Sgd;

const CLASSES: usize = 5;
const BATCH: usize = 8;
const SETTINGS: &str = "
    student.arch = 'wrn-10-1'
    teacher.checkpoint = 'fixture'
    [loss]
    temperature = 3.0
    weights = { ce = 0.3, kd = 0.7, explanation = 0.05, attention = 2.0 }
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

struct Fixture {
    file: File,
    images: Images,
    student: Network,
    teacher: Network,
}

impl Fixture {
    fn open(backend: &Backend) -> Result<Fixture> {
        let file = File::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/trajectory.safetensors"))?;
        let pixels = file.f64("images_u8")?.into_iter().map(|p| p as u8).collect();
        let labels = file.f64("labels")?.into_iter().map(|l| l as u32).collect();
        let images = Images::new(pixels, labels, [3, 12, 12], CLASSES)?;
        let network = |prefix: &str, (a, b), trained| -> Result<Network> {
            let architecture = architecture(a, b)?;
            let mut weights = Weights {
                parameters: vec![0.0; architecture.graph.parameter_len()],
                running: vec![0.0; architecture.graph.statistics_len()],
            };
            for (entry, parameter) in architecture.entries() {
                let target = if parameter { &mut weights.parameters } else { &mut weights.running };
                target[entry.range()].copy_from_slice(&file.f32(&format!("{prefix}{}", entry.name))?);
            }
            let normalization = Normalization { mean: vec![0.5, 0.45, 0.4], std: vec![0.25, 0.2, 0.3] };
            Network::new(architecture, weights, normalization, &objective::ATTENTION_LAYERS, trained, backend.clone())
        };
        let (student, teacher) = (network("student.", (8, 12), true)?, network("teacher.", (6, 10), false)?);
        Ok(Fixture { images, student, teacher, file })
    }

    fn batch(&self, step: usize) -> Batch {
        let positions: Vec<usize> = (0..BATCH).map(|i| i + step % 2 * BATCH).collect();
        Plan::plain(BATCH).batch(&self.images, &positions, 0)
    }

    fn losses(&self, config: &Config, step: usize) -> Result<(Losses, Pass)> {
        let batch = self.batch(step);
        let pass = self.teacher.pass(&self.teacher.images(&batch)?, Mode::Eval)?;
        let signal = objective::signal(config, &self.teacher, &pass, &batch)?;
        let pass = self.student.pass(&self.student.images(&batch)?, Mode::Train)?;
        let losses = objective::losses(config, &config.loss.weights, &self.student, &pass, &batch, Some(&signal))?;
        Ok((losses, pass))
    }

    fn gradient(&self, of: &Tensor) -> Result<Vec<f64>> {
        Ok(flat(&self.student.gradient(of)?)?)
    }

    fn part<'a>(&self, flat: &'a [f64], name: &str) -> &'a [f64] {
        let found = self.student.architecture.graph.parameters.iter().find(|e| e.name == name);
        &flat[found.unwrap_or_else(|| panic!("no parameter {name}")).range()]
    }
}

/// Every engine and type on every device, with the tolerance of the type.
fn cases() -> Vec<(Backend, f64)> {
    let mut cases = Vec::new();
    for device in testkit::devices() {
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 2e-4)] {
            cases.push((
                Backend { engine: Engine::Ops, dtype, precision: Precision::F32, device: device.clone() },
                tolerance,
            ));
            if device.is_cpu() {
                cases.push((
                    Backend { engine: Engine::Kernels, dtype, precision: Precision::F32, device: device.clone() },
                    tolerance,
                ));
            }
        }
    }
    cases
}

#[test]
fn ten_steps_follow_pytorch() -> Result<()> {
    let config = Config::from_table(SETTINGS.parse()?)?;
    for (backend, tolerance) in cases() {
        let mut f = Fixture::open(&backend)?;
        let mut sgd = Sgd::at_rest(f.student.variables())?;
        let update = SgdStep { lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 5e-4 };
        for step in 0..10 {
            let (losses, pass) = f.losses(&config, step)?;
            let total = losses.total(&config.loss.weights)?;
            let terms = losses.terms(&config.loss.weights);
            assert_eq!(terms.len(), 4);
            for (name, term, _) in terms.into_iter().chain([("total", &total, 1.0)]) {
                let what = format!("{backend:?} step {step} {name}");
                assert_close(&what, &values(term)?, &[f.file.f64(name)?[step]], tolerance);
            }
            let gradient = f.student.gradient(&total)?;
            if step == 0 {
                let gradient = flat(&gradient)?;
                for entry in &f.student.architecture.graph.parameters {
                    let what = format!("grad0.{}", entry.name);
                    assert_close(&what, &gradient[entry.range()], &f.file.f64(&what)?, tolerance);
                }
            }
            sgd.step(&gradient, update)?;
            f.student.update_running(&pass.statistics);
        }
        let last = f.student.weights()?;
        for (entry, parameter) in f.student.architecture.entries() {
            let flat = if parameter { &last.parameters } else { &last.running };
            let found: Vec<f64> = flat[entry.range()].iter().map(|v| f64::from(*v)).collect();
            let what = format!("final.{}", entry.name);
            // Weights are handed out in f32.
            assert_close(&what, &found, &f.file.f64(&what)?, tolerance.max(3e-7) * 3.0);
        }
    }
    Ok(())
}

/// Every method's closed form against autograd through its definition, under every distance.
#[test]
fn explanation_terms_follow_pytorch() -> Result<()> {
    let mut compared = 0;
    for (backend, tolerance) in cases() {
        let f = Fixture::open(&backend)?;
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
                let term = f.losses(&config, 0)?.0.explanation.context("the term")?;
                let key = format!("terms.{key}.{name}");
                assert_close(&key, &values(&term)?, &f.file.f64(&key)?, tolerance);
                let gradient = f.gradient(&term)?;
                for parameter in ["fc.weight", "layers.0.weight"] {
                    let what = format!("{key}.grad.{parameter}");
                    assert_close(&what, f.part(&gradient, parameter), &f.file.f64(&what)?, tolerance);
                    compared += 1;
                }
            }
        }
        let mut config = Config::from_table(SETTINGS.parse()?)?;
        config.loss.distance = Distance::AllClassPooled;
        let term = f.losses(&config, 0)?.0.explanation.context("the term")?;
        assert_close("all_class_pooled", &values(&term)?, &f.file.f64("terms.all_class_pooled")?, tolerance);
        let expected = f.file.f64("terms.all_class_pooled.grad.fc.weight")?;
        assert_close("all_class_pooled, gradient", f.part(&f.gradient(&term)?, "fc.weight"), &expected, tolerance);
    }
    assert_eq!(compared, cases().len() * 3 * 3 * 2);
    Ok(())
}
