//! Optimizers. A new one is a file in `optimizers/` and a line in the list below.

mod adamw;
mod sgd;
mod slot;

use std::collections::BTreeMap;

use adamw::AdamW;
pub use adamw::Moments;
use anyhow::{Context, Result};
use cams::ranges::{Ranges, above, from};
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sgd::Sgd;

use super::schedule::LrSchedule;
use crate::error::unknown;

/// `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// An optimizer of the list.
    pub name: String,
    /// Highest learning rate.
    pub lr: f64,
    /// How it changes.
    pub schedule: LrSchedule,
    /// Epochs of linear warm-up.
    pub warmup: f64,
    /// Epochs (from 1) at whose start `multi_step` drops.
    pub drops: Vec<usize>,
    /// Factor of a drop.
    pub drop_factor: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Nesterov's variant of it.
    pub nesterov: bool,
    /// On every parameter, BatchNorm's and biases too.
    pub weight_decay: f64,
    /// Forget what the optimizer has gathered at each drop, as the attention-transfer code does.
    pub reset_momentum_at_drops: bool,
    /// AdamW's own.
    pub adamw: Moments,
}

impl Default for Optim {
    fn default() -> Self {
        Optim {
            name: "sgd".into(),
            lr: 0.2,
            schedule: LrSchedule::Linear,
            warmup: 0.0,
            drops: vec![],
            drop_factor: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            reset_momentum_at_drops: false,
            adamw: Moments::default(),
        }
    }
}

impl Optim {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("lr", above(0.0, f64::MAX)),
        ("warmup", from(0.0, 1e6)),
        ("drops", from(1.0, 1e6)),
        ("drop_factor", above(0.0, 1.0)),
        ("momentum", from(0.0, 0.999_999_999)),
        ("weight_decay", from(0.0, 1e3)),
        ("adamw.beta1", from(0.0, 0.999_999_999)),
        ("adamw.beta2", from(0.0, 0.999_999_999)),
        ("adamw.eps", above(0.0, 1.0)),
    ];
}

/// What an optimizer has gathered, by name: its slots are part of a run's state.
pub type Slots = BTreeMap<String, Vec<f32>>;

/// Moves variables along their gradient.
pub trait Optimizer {
    /// One step in place: `gradient` has a tensor for each variable.
    fn step(&mut self, gradient: &[Tensor], lr: f64) -> Result<()>;

    /// Forgets what it has gathered.
    fn reset(&mut self) -> Result<()>;

    /// What it has gathered: each slot a flat vector over the variables, in their order.
    fn slots(&self) -> Result<Slots>;

    /// Takes up what it had gathered.
    fn restore(&mut self, slots: &Slots) -> Result<()>;
}

/// Makes an optimizer of variables, at rest.
type Build = fn(&Optim, &[Var]) -> Result<Box<dyn Optimizer>>;

/// What the list says of an optimizer.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The keys of `[optim]` that are its own.
    pub keys: &'static [&'static str],
    build: Build,
}

/// The one list.
pub const LIST: &[Entry] = &[
    Entry {
        name: "sgd",
        about: "stochastic gradient descent with momentum",
        keys: &["momentum", "nesterov", "weight_decay"],
        build: |optim, variables| Ok(Box::new(Sgd::new(optim, variables)?)),
    },
    Entry {
        name: "adamw",
        about: "Adam with decoupled weight decay (Loshchilov & Hutter 2019)",
        keys: &["adamw", "weight_decay"],
        build: |optim, variables| Ok(Box::new(AdamW::new(optim, variables)?)),
    },
];

/// The optimizer that the settings name, at rest.
pub fn build(optim: &Optim, variables: &[Var]) -> Result<Box<dyn Optimizer>> {
    (entry(&optim.name)?.build)(optim, variables)
}

/// An entry of the list.
pub fn entry(name: &str) -> Result<&'static Entry> {
    let names = || LIST.iter().map(|e| e.name).collect::<Vec<_>>();
    LIST.iter().find(|e| e.name == name).ok_or_else(|| unknown("optimizer", name, &names()))
}

/// A slot that must be there.
fn slot<'s>(slots: &'s Slots, name: &str) -> Result<&'s [f32]> {
    slots.get(name).map(Vec::as_slice).with_context(|| format!("the optimizer's state has no {name}"))
}

/// The sum of the squares of several tensors, a scalar on their device; on the CPU summed in f64 and always in the same
/// order.
pub fn square(tensors: &[Tensor]) -> Result<Tensor> {
    let Some(device) = tensors.first().map(Tensor::device).filter(|d| !d.is_cpu()) else {
        let mut square = 0.0;
        for t in tensors {
            let t = t.flatten_all()?;
            square += match t.dtype() {
                DType::F64 => sum_of_squares(&t.to_vec1::<f64>()?),
                _ => sum_of_squares(&t.to_dtype(DType::F32)?.to_vec1::<f32>()?),
            };
        }
        return Ok(Tensor::new(square, &Device::Cpu)?);
    };
    let squares = tensors.iter().map(|t| sum_in_rows(&t.sqr()?)?.to_dtype(widest(device)));
    Ok(Tensor::stack(&squares.collect::<candle_core::Result<Vec<_>>>()?, 0)?.sum_all()?)
}

/// The type with the most digits that a device has: Metal has no f64.
pub fn widest(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

/// The sum of all elements, rows first: a card sums a row by one block of threads, and all at once by one alone.
fn sum_in_rows(t: &Tensor) -> candle_core::Result<Tensor> {
    const ROW: usize = 4096;
    let t = t.flatten_all()?;
    let (len, whole) = (t.elem_count(), t.elem_count() / ROW * ROW);
    if whole <= ROW {
        return t.sum_all();
    }
    let rows = t.narrow(0, 0, whole)?.reshape((whole / ROW, ROW))?.sum(1)?.sum_all()?;
    if whole == len { Ok(rows) } else { rows + t.narrow(0, whole, len - whole)?.sum_all()? }
}

fn sum_of_squares<T: Copy + Into<f64> + Sync>(values: &[T]) -> f64 {
    /// Elements per task.
    const TASK: usize = 1 << 15;
    let square = |v: &T| Into::<f64>::into(*v).powi(2);
    let tasks: Vec<f64> = values.par_chunks(TASK).map(|task| task.iter().map(square).sum()).collect();
    tasks.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths at which rows are few, whole, and with a rest.
    #[test]
    fn rows_add_up() -> Result<()> {
        for len in [1, 4095, 4096, 8191, 8192, 8193, 20_000] {
            let t = Tensor::arange(0.0, len as f64, &Device::Cpu)?;
            let sum = sum_in_rows(&t)?.to_scalar::<f64>()?;
            assert_eq!(sum, (len * (len - 1) / 2) as f64, "{len}");
        }
        Ok(())
    }
}
