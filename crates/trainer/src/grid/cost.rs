//! What a grid will cost, from a measured step on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;

use super::Grid;
use crate::bench::{median_ms, step::training};
use crate::config::Config;
use crate::data::loader::Plan;
use crate::data::{Images, Portions};
use crate::error::sentence;
use crate::nn::{Backend, Network, Normalization, Weights};
use crate::objective;
use crate::teacher::{self, Teacher};
use crate::train;

/// Timed repetitions of a step.
const REPEATS: u32 = 3;

/// Of a cell, over all its seeds.
#[derive(Clone, Debug)]
pub struct Row {
    /// `block/name`.
    pub name: String,
    /// How many runs it is.
    pub runs: usize,
    /// Epochs of each.
    pub epochs: usize,
    /// Of all runs, the teacher's part included where it is asked live.
    pub flops: f64,
    /// Of all runs, steps alone.
    pub hours: f64,
    /// Why it cannot run, where it cannot.
    pub error: Option<String>,
}

/// Of the grid.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// A row a cell.
    pub rows: Vec<Row>,
    /// To fill the teachers' caches, once.
    pub cache_hours: f64,
    /// What they take on disk.
    pub cache_mb: u64,
}

/// What a step takes.
#[derive(Clone, Copy, Debug)]
struct Step {
    student_ms: f64,
    teacher_ms: f64,
    student_flops: f64,
    teacher_flops: f64,
    steps: usize,
    images: usize,
}

/// Measures one step of every kind of run in the grid.
pub fn estimate(grid: &Grid, device: &Device) -> Result<Cost> {
    let mut cost = Cost::default();
    let mut images: BTreeMap<String, Arc<Images>> = BTreeMap::new();
    let mut measured: BTreeMap<String, Step> = BTreeMap::new();
    let mut cached: BTreeSet<String> = BTreeSet::new();
    let mut views: BTreeMap<String, (u64, Step)> = BTreeMap::new();
    for cell in &grid.cells {
        let name = cell.row();
        let at = cost.rows.iter().position(|r| r.name == name).unwrap_or_else(|| {
            cost.rows.push(Row { name, runs: 0, epochs: 0, flops: 0.0, hours: 0.0, error: None });
            cost.rows.len() - 1
        });
        cost.rows[at].runs += 1;
        let step = cell.config().and_then(|config| {
            let data = format!("{:?}", config.data);
            if !images.contains_key(&data) {
                images.insert(data.clone(), Arc::new(Portions::load(&config.data)?.train));
            }
            let images = &images[&data];
            let (train, teacher) = (&config.train, &config.teacher);
            let what = (&config.student, &config.loss, train.batch, train.dtype, teacher, &config.interpreter);
            let key = format!("{data} {what:?}");
            if !measured.contains_key(&key) {
                measured.insert(key.clone(), measure(&config, images, device)?);
            }
            Ok((config, measured[&key]))
        });
        let row = &mut cost.rows[at];
        let (config, step) = match step {
            Ok(found) => found,
            Err(error) => {
                row.error = Some(sentence(&error));
                continue;
            }
        };
        let epochs = config.train.epochs;
        let shown = (epochs * step.images) as f64;
        let cache = teacher::cache_of(&config);
        let live = config.distils() && cache.is_none();
        let ms = step.student_ms + if live { step.teacher_ms } else { 0.0 };
        row.epochs = epochs;
        row.flops += shown * (step.student_flops + if live { step.teacher_flops } else { 0.0 });
        row.hours += ms * (step.steps * epochs) as f64 / 3.6e6;
        if let Some(dir) = cache {
            let key = format!("{dir:?} {:?} {:?} {:?}", config.teacher, config.data, config.train.dtype);
            let count = teacher::views(&config);
            for part in objective::parts(&config) {
                if cached.insert(format!("{key} {}", part.name(&config)?)) {
                    cost.cache_mb += count * part_mb(&config, part, step.images)?;
                }
            }
            let known = views.entry(key).or_insert((0, step));
            known.0 = known.0.max(count);
        }
    }
    cost.cache_hours = views.values().map(|(n, s)| *n as f64 * s.steps as f64 * s.teacher_ms / 3.6e6).sum();
    Ok(cost)
}

fn part_mb(config: &Config, part: objective::Part, images: usize) -> Result<u64> {
    let network = Teacher::network(config, Backend::f32(&Device::Cpu))?.1;
    let row: usize = part.shape(config, &network)?.iter().product();
    Ok(((images * row * 4) as u64).div_ceil(1_000_000))
}

fn measure(config: &Config, images: &Images, device: &Device) -> Result<Step> {
    let (dtype, precision) = config.train.dtype.parts();
    let backend = Backend { precision, ..Backend::new(dtype, device) };
    let architecture = train::architecture(config, images)?;
    let student_flops = 6.0 * architecture.macs() as f64;
    let weights = Weights::init(&architecture, 0, false);
    let layers = objective::layers(&config.loss);
    let normal = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let mut student = Network::new(architecture, weights, normal, &layers, true, backend.clone())?;
    let plan = train::plan(config, images)?;
    let batch = plan.batch(images, &plan.order(images.len(), 0)[..plan.batch], 0);
    let (mut signal, mut teacher_ms, mut teacher_flops) = (None, 0.0, 0.0);
    if config.teacher.is_some() {
        let teacher = Teacher::network(config, backend)?.1;
        let ask = || {
            let pass = teacher.signal_pass(&teacher.images(&batch)?)?;
            objective::signal(config, &teacher, &pass, &batch)
        };
        if config.distils() {
            teacher_ms = median_ms(REPEATS, || ask().map(drop))?;
            teacher_flops = 2.0 * teacher.architecture.macs() as f64;
            signal = Some(ask()?);
        }
    }
    let student_ms = median_ms(REPEATS, training(config, &mut student, &batch, || Ok(signal.clone()))?)?;
    let steps = Plan::steps(&plan, images.len());
    Ok(Step { student_ms, teacher_ms, student_flops, teacher_flops, steps, images: images.len() })
}
