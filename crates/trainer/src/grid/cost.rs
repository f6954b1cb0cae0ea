//! What a grid will cost, from a measured step and a measured evaluation on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Add;

use anyhow::Result;
use candle_core::Device;

use super::Grid;
use crate::bench::{median_ms, step};
use crate::config::Config;
use crate::data::Splits;
use crate::distill::Part;
use crate::distill::teacher::Frozen;
use crate::error::sentence;
use crate::nn::{Backend, Model, Network, Normalization, StateDict};
use crate::run::{self, teacher};

/// Timed repetitions.
const REPEATS: u32 = 3;

/// Of a cell, over all its seeds.
#[derive(Clone, Debug)]
pub struct CellCost {
    /// `block/name`.
    pub name: String,
    /// How many runs it is.
    pub runs: usize,
    /// Epochs of each.
    pub epochs: usize,
    /// Of all runs, the teacher's part included where it is asked live.
    pub flops: f64,
    /// Of all runs: steps, and the evaluations of the curve.
    pub hours: f64,
    /// Why it cannot run, where it cannot.
    pub error: Option<String>,
}

/// Of the grid.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Each cell's.
    pub cells: Vec<CellCost>,
    /// To fill the teachers' caches, once.
    pub cache_hours: f64,
    /// What they take on disk.
    pub cache_mb: u64,
}

/// What a step takes, and an evaluation.
#[derive(Clone, Copy, Debug)]
struct Step {
    student_ms: f64,
    teacher_ms: f64,
    evaluation_ms: f64,
    student_flops: f64,
    teacher_flops: f64,
    steps: usize,
    images: usize,
}

/// Measures one step, and what an evaluation takes, of every kind of run in the grid.
pub fn estimate(grid: &Grid, device: &Device) -> Result<Cost> {
    let mut cost = Cost::default();
    let mut sets: BTreeMap<String, Splits> = BTreeMap::new();
    let mut measured: BTreeMap<String, Step> = BTreeMap::new();
    let mut cached: BTreeSet<String> = BTreeSet::new();
    let mut views: BTreeMap<String, (u64, Step)> = BTreeMap::new();
    for run in &grid.runs {
        let name = run.cell();
        let at = cost.cells.iter().position(|r| r.name == name).unwrap_or_else(|| {
            cost.cells.push(CellCost { name, runs: 0, epochs: 0, flops: 0.0, hours: 0.0, error: None });
            cost.cells.len() - 1
        });
        cost.cells[at].runs += 1;
        let step = run.config().and_then(|config| {
            let data = format!("{:?}", config.data);
            if !sets.contains_key(&data) {
                sets.insert(data.clone(), Splits::load(&config.data)?);
            }
            let (train, teacher) = (&config.train, &config.teacher);
            let what = (&config.student, &config.loss, train.batch, train.dtype, teacher, &config.interpreter);
            let key = format!("{data} {what:?}");
            if !measured.contains_key(&key) {
                measured.insert(key.clone(), measure(&config, &sets[&data], device)?);
            }
            Ok((config, measured[&key]))
        });
        let row = &mut cost.cells[at];
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
        let evaluations = (0..epochs).filter(|epoch| config.train.measures(*epoch)).count();
        row.hours += (ms * (step.steps * epochs) as f64 + step.evaluation_ms * evaluations as f64) / 3.6e6;
        if let Some(dir) = cache {
            let key = format!("{dir:?} {:?} {:?} {:?}", config.teacher, config.data, config.train.dtype);
            let count = teacher::views(&config);
            for (name, mb) in parts_mb(&config, step.images)? {
                if cached.insert(format!("{key} {name}")) {
                    cost.cache_mb += count * mb;
                }
            }
            let known = views.entry(key).or_insert((0, step));
            known.0 = known.0.max(count);
        }
    }
    // The sum of nothing is -0.
    cost.cache_hours =
        views.values().map(|(n, s)| *n as f64 * s.steps as f64 * s.teacher_ms / 3.6e6).fold(0.0, Add::add);
    Ok(cost)
}

/// What a view takes on disk, by parts.
fn parts_mb(config: &Config, images: usize) -> Result<Vec<(String, u64)>> {
    let objective = config.objective()?;
    let network = teacher::network(config, &objective, Backend::f32(&Device::Cpu))?.1;
    let parts: Vec<Part> = objective.parts(&network)?;
    let sizes = teacher::shapes(&parts, &network)?;
    let mb = |shape: &Vec<usize>| ((images * shape.iter().product::<usize>() * 4) as u64).div_ceil(1_000_000);
    Ok(teacher::names(&parts)?.into_iter().zip(sizes.iter().map(mb)).collect())
}

fn measure(config: &Config, splits: &Splits, device: &Device) -> Result<Step> {
    let images = &splits.train;
    let (dtype, precision) = config.train.dtype.parts();
    let backend = Backend { precision, ..Backend::new(dtype, device) };
    let architecture = run::architecture(config, images)?;
    let student_flops = 6.0 * architecture.macs() as f64;
    let weights = StateDict::init(&architecture, 0, false);
    let objective = config.objective()?;
    let layers = objective.layers(&architecture.attention_layers());
    let normal = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let student = Network::new(architecture, weights, normal, &layers, true, backend.clone())?;
    let loader = run::loader(config, images)?;
    let batch = loader.batch(images, &loader.order(images.len(), 0)[..loader.batch], 0)?;
    let (mut output, mut teacher_ms, mut teacher_flops) = (None, 0.0, 0.0);
    if objective.needs_teacher() {
        let network = teacher::network(config, &objective, backend)?.1;
        teacher_flops = 2.0 * network.architecture.macs() as f64;
        let parts = objective.parts(&network)?;
        let teacher = Frozen::new(network, parts);
        teacher_ms = median_ms(REPEATS, device, || teacher.ask(&batch).map(drop))?;
        output = Some(teacher.ask(&batch)?);
    }
    let pixels = student.images(&batch.pixels)?;
    let glance_ms = median_ms(REPEATS, device, || student.glance(&pixels).map(drop))?;
    let evaluation_ms = glance_ms * splits.curve.len() as f64 / batch.len() as f64;
    let mut learner = step::learner(student, output, objective)?;
    let student_ms = median_ms(REPEATS, device, || learner.step(&batch).map(drop))?;
    let steps = loader.steps(images.len());
    Ok(Step { student_ms, teacher_ms, evaluation_ms, student_flops, teacher_flops, steps, images: images.len() })
}
