//! A training step, with and without a teacher, on a fixed batch of noise.

use anyhow::{Context, Result};
use candle_core::Tensor;
use kernels::graph::Shape;
use kernels::sgd::SgdStep;
use kernels::stage::Mode;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{median_ms, peak_rss_mb};
use crate::config::Config;
use crate::data::Images;
use crate::data::augment::Augment;
use crate::data::loader::Batch;
use crate::models::{Architecture, Shortcut};
use crate::nn::{Backend, Network, Normalization, Weights};
use crate::objective;
use crate::optim::Sgd;
use crate::random::{Purpose, stream};
use crate::teacher::cache::{self, Cache, Key};

/// What `trainer bench step` prints, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Student: forward, cross-entropy, backward, SGD.
    pub train_ms: f64,
    /// The same with the live teacher, KD and explanation matching.
    pub kd_ms: f64,
    /// The teacher's forward pass in eval mode.
    pub teacher_ms: f64,
    /// The teacher's own training step.
    pub teacher_train_ms: f64,
    /// What matching adds to a step with teacher and KD.
    pub explain_ms: f64,
    /// Reading a batch's signal (logits, every class's CAM of 8x8, three attention maps) from a teacher's cache of 10,000 images; the
    /// epoch's reading of its file is shared by its steps.
    pub cached_ms: f64,
    /// Largest resident memory of all but the last, in MB.
    pub peak_rss_mb: Option<f64>,
}

/// A fixed batch of noise.
pub(super) fn batch(n: usize) -> Batch {
    let mut rng = stream(0, Purpose::Bench, 0);
    Batch {
        pixels: (0..n * 3 * 32 * 32).map(|_| rng.random()).collect(),
        labels: (0..n).map(|_| rng.random_range(0..10)).collect(),
        ids: (0..n as u64).map(|sample| cams::SampleId { sample, view: 0 }).collect(),
        shape: [3, 32, 32],
    }
}

pub(super) fn network(name: &str, trained: bool, backend: &Backend) -> Result<Network> {
    let input = Shape { channels: 3, h: 32, w: 32 };
    let architecture = Architecture::named(name, input, 10, Shortcut::Preact)?;
    let weights = Weights::init(&architecture, 0, false);
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    Network::new(architecture, weights, normalization, &[], trained, backend.clone())
}

/// One training step with what `signal` says, if anything.
pub(crate) fn training<'a>(
    config: &'a Config,
    student: &'a mut Network,
    batch: &'a Batch,
    mut signal: impl FnMut() -> Result<Option<objective::Signal>> + 'a,
) -> Result<impl FnMut() -> Result<()> + 'a> {
    let mut sgd = Sgd::at_rest(student.variables())?;
    let step = SgdStep { lr: 1e-3, momentum: 0.9, nesterov: true, weight_decay: 5e-4 };
    Ok(move || {
        let signal = signal()?;
        let pass = student.pass(&student.images(batch)?, Mode::Train)?;
        let losses = objective::losses(config, &config.loss.weights, student, &pass, batch, signal.as_ref())?;
        let gradient = student.gradient(&losses.total(&config.loss.weights)?)?;
        sgd.step(&gradient, step)?;
        student.update_running(&pass.statistics);
        Ok(())
    })
}

/// The configuration of a step with these weights of the terms.
fn config(ce: f64, kd: f64, explanation: f64, interpreter: &str) -> Result<Config> {
    let text = format!(
        "student.arch = 'wrn-16-2'\nteacher.checkpoint = 'none'\n[loss]\ninterpreter = '{interpreter}'\nweights = {{ ce = {ce:?}, kd = {kd:?}, explanation = {explanation:?} }}"
    );
    Config::from_table(text.parse().context("the benchmark's own configuration")?)
}

/// A student's training step by its labels alone.
pub(super) fn train_ms(arch: &str, n: usize, repeats: u32, backend: &Backend) -> Result<f64> {
    let ce = config(1.0, 0.0, 0.0, "grad_cam")?;
    median_ms(repeats, training(&ce, &mut network(arch, true, backend)?, &batch(n), || Ok(None))?)
}

/// Times everything.
pub fn step(
    student: &str,
    teacher: &str,
    n: usize,
    interpreter: &str,
    repeats: u32,
    backend: &Backend,
) -> Result<Step> {
    let batch = batch(n);
    let teacher_net = network(teacher, false, backend)?;
    let images = teacher_net.images(&batch)?;
    let forward = |images: &Tensor| teacher_net.signal_pass(images);
    let ce = config(1.0, 0.0, 0.0, interpreter)?;
    let train_ms = train_ms(student, n, repeats, backend)?;
    let with = |config: &Config| -> Result<f64> {
        let signal =
            || Ok(Some(objective::signal(config, &teacher_net, &forward(&teacher_net.images(&batch)?)?, &batch)?));
        median_ms(repeats, training(config, &mut network(student, true, backend)?, &batch, signal)?)
    };
    let kd_ms = with(&config(0.1, 0.9, 0.01, interpreter)?)?;
    let plain_kd_ms = with(&config(0.1, 0.9, 0.0, interpreter)?)?;
    let teacher_ms = median_ms(repeats, || forward(&images).map(drop))?;
    let teacher_train_ms =
        median_ms(repeats, training(&ce, &mut network(teacher, true, backend)?, &batch, || Ok(None))?)?;
    let peak_rss_mb = peak_rss_mb();
    let cached_ms = cached_ms(n, repeats, &teacher_net)?;
    Ok(Step { train_ms, kd_ms, teacher_ms, teacher_train_ms, explain_ms: kd_ms - plain_kd_ms, cached_ms, peak_rss_mb })
}

/// The images of [`cached_ms`].
const EPOCH: usize = 10_000;

/// See [`Step::cached_ms`].
fn cached_ms(n: usize, repeats: u32, teacher: &Network) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let parts = ["logits", "class_maps", "attention-layer1", "attention-layer2", "attention-layer3"];
    let shapes: [&[usize]; 5] = [&[10], &[10, 8, 8], &[32, 32], &[16, 16], &[8, 8]];
    let key = Key {
        format: cache::FORMAT,
        teacher: String::new(),
        arch: None,
        images: String::new(),
        augment: Augment::default(),
        view_seed: 0,
        engine: String::new(),
    };
    let open = |images: &Images| Cache::new(dir.path(), &key, parts.map(String::from).into(), images);
    let images = Images::new(vec![0; EPOCH], vec![0; EPOCH], [1, 1, 1], 10)?;
    let mut rng = stream(0, Purpose::Bench, 1);
    let mut order: Vec<u64> = (0..EPOCH as u64).collect();
    order.shuffle(&mut rng);
    let batches: Vec<Batch> = order
        .chunks(n)
        .map(|samples| Batch {
            pixels: vec![],
            labels: vec![0; samples.len()],
            ids: samples.iter().map(|sample| cams::SampleId { sample: *sample, view: 0 }).collect(),
            shape: [1, 1, 1],
        })
        .collect();
    let mut cache = open(&images)?;
    for batch in &batches {
        let n = batch.len();
        anyhow::ensure!(cache.read(batch, teacher.device())?.is_none(), "the cache knows what it was never told");
        let noise = |shape: &&[usize]| {
            let shape: Vec<usize> = std::iter::once(n).chain(shape.iter().copied()).collect();
            Tensor::randn(0f32, 1.0, shape, &candle_core::Device::Cpu)
        };
        cache.remember(batch, &shapes.iter().map(noise).collect::<candle_core::Result<Vec<_>>>()?)?;
    }
    let mut at = 0;
    // (A cache of CIFAR-10's size would take half a gigabyte here; a step reads as much from either.)
    let read = median_ms(repeats.max(20), || {
        at = (at + 1) % batches.len();
        cache.read(&batches[at], teacher.device())?.context("the cache was filled").map(drop)
    })?;
    let enter = || -> Result<f64> {
        let mut cache = open(&images)?;
        let clock = std::time::Instant::now();
        cache.read(&batches[0], teacher.device())?.context("the cache was written")?;
        Ok(clock.elapsed().as_secs_f64() * 1e3)
    };
    enter()?;
    Ok(read + enter()? / batches.len() as f64)
}
