//! A training step, with and without a teacher, on a fixed batch of noise.

use anyhow::{Context, Result};
use cams::methods::Methods;
use candle_core::{Device, Tensor};
use kernels::graph::Shape;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{fresh, median_ms, noise, peak_rss_mb};
use crate::config::{Loss, LrSchedule, Optim};
use crate::data::Images;
use crate::data::augment::Augment;
use crate::data::loader::Batch;
use crate::distill::cache::{self, Cache, Key};
use crate::distill::teacher::{Frozen, Teacher};
use crate::distill::{Learner, Objective};
use crate::models::{Architecture, Options};
use crate::nn::{Backend, Model, Network};
use crate::random::{Purpose, stream};

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
    /// Reading a batch's outputs (logits, every class's CAM of 8x8, three attention maps) from a teacher's cache of
    /// 10,000 images; the epoch's reading of its file is shared by its steps.
    pub cached_ms: f64,
    /// Largest resident memory of all but the last, in MB.
    pub peak_rss_mb: Option<f64>,
}

/// CIFAR-10's images.
const INPUT: Shape = Shape { channels: 3, h: 32, w: 32 };

/// A fixed batch of noise.
pub(super) fn batch(n: usize) -> Result<Batch> {
    let mut rng = stream(0, Purpose::Bench, 2);
    let labels = (0..n).map(|_| rng.random_range(0..10)).collect();
    Batch::new(noise(n, INPUT)?, labels)
}

pub(super) fn network(name: &str, trained: bool, backend: &Backend) -> Result<Network> {
    fresh(Architecture::named(name, INPUT, 10, &Options::new())?, trained, backend)
}

/// A student with an optimizer whose steps are so small that its numbers stay what they are.
pub(crate) fn learner<T: Teacher>(
    model: Network,
    teacher: Option<T>,
    objective: Objective,
) -> Result<Learner<Network, T>> {
    let optim = Optim { lr: 1e-3, schedule: LrSchedule::Constant, ..Optim::default() };
    Learner::new(model, teacher, objective, &optim, [usize::MAX / 2, 1])
}

/// The terms of a step with these weights.
fn objective(ce: f64, kd: f64, explanation: f64, interpreter: &str) -> Result<Objective> {
    let mut loss = Loss { interpreter: interpreter.into(), ..Loss::default() };
    (loss.weights.ce, loss.weights.kd, loss.weights.explanation) = (ce, kd, explanation);
    let mut methods = Methods::default();
    methods.settle_in_loss(&|_, _| false);
    Objective::new(&loss, &methods)
}

/// A training step by the labels alone.
pub(super) fn train_ms(arch: &str, n: usize, repeats: u32, backend: &Backend) -> Result<f64> {
    let labels_only = objective(1.0, 0.0, 0.0, "grad_cam")?;
    let mut learner = learner(network(arch, true, backend)?, None::<Box<dyn Teacher>>, labels_only)?;
    let batch = batch(n)?;
    median_ms(repeats, &backend.device, || learner.step(&batch).map(drop))
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
    let batch = batch(n)?;
    let train_ms = train_ms(student, n, repeats, backend)?;
    let with = |objective: Objective| -> Result<f64> {
        let asked = network(teacher, false, backend)?;
        let parts = objective.parts(&asked)?;
        let mut learner = learner(network(student, true, backend)?, Some(Frozen::new(asked, parts)), objective)?;
        median_ms(repeats, &backend.device, || learner.step(&batch).map(drop))
    };
    let kd_ms = with(objective(0.1, 0.9, 0.01, interpreter)?)?;
    let plain_kd_ms = with(objective(0.1, 0.9, 0.0, interpreter)?)?;
    let asked = network(teacher, false, backend)?;
    let images = asked.images(&batch.pixels)?;
    let teacher_ms = median_ms(repeats, &backend.device, || asked.glance(&images).map(drop))?;
    let teacher_train_ms = self::train_ms(teacher, n, repeats, backend)?;
    let peak_rss_mb = peak_rss_mb();
    let cached_ms = cached_ms(n, repeats, asked.device())?;
    Ok(Step { train_ms, kd_ms, teacher_ms, teacher_train_ms, explain_ms: kd_ms - plain_kd_ms, cached_ms, peak_rss_mb })
}

/// The images of [`cached_ms`].
const EPOCH: usize = 10_000;

/// See [`Step::cached_ms`].
fn cached_ms(n: usize, repeats: u32, device: &Device) -> Result<f64> {
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
    let open = |images: &Images| Cache::new(dir.path(), &key, parts.map(String::from).into(), images, device);
    let images = Images::new(vec![0; EPOCH], vec![0; EPOCH], [1, 1, 1], 10)?;
    let mut rng = stream(0, Purpose::Bench, 1);
    let mut order: Vec<u64> = (0..EPOCH as u64).collect();
    order.shuffle(&mut rng);
    let batch = |samples: &[u64]| -> Result<Batch> {
        let pixels = Tensor::zeros((samples.len(), 1, 1, 1), candle_core::DType::U8, &Device::Cpu)?;
        let ids = samples.iter().map(|sample| cams::SampleId { sample: *sample, view: 0 }).collect();
        Ok(Batch { pixels, labels: vec![0; samples.len()], ids, shown: None })
    };
    let batches = order.chunks(n).map(batch).collect::<Result<Vec<_>>>()?;
    let mut cache = open(&images)?;
    for batch in &batches {
        let n = batch.len();
        anyhow::ensure!(cache.read(batch)?.is_none(), "the cache knows what it was never told");
        let noise = |shape: &&[usize]| {
            let shape: Vec<usize> = std::iter::once(n).chain(shape.iter().copied()).collect();
            Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
        };
        cache.remember(batch, &shapes.iter().map(noise).collect::<candle_core::Result<Vec<_>>>()?)?;
    }
    let mut at = 0;
    // (A cache of CIFAR-10's size would take half a gigabyte here; a step reads as much from either.)
    let read = median_ms(repeats.max(20), device, || {
        at = (at + 1) % batches.len();
        cache.read(&batches[at])?.context("the cache was filled").map(drop)
    })?;
    let enter = || -> Result<f64> {
        let mut cache = open(&images)?;
        let clock = std::time::Instant::now();
        cache.read(&batches[0])?.context("the cache was written")?;
        device.synchronize()?;
        Ok(clock.elapsed().as_secs_f64() * 1e3)
    };
    enter()?;
    Ok(read + enter()? / batches.len() as f64)
}
