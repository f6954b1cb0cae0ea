//! Medians of the work of training, on fixed inputs.

pub mod forward;
pub mod kernels;
pub mod maps;
pub mod step;

use std::time::Instant;

use ::kernels::graph::Shape;
use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::RngExt;

use crate::models::Architecture;
use crate::nn::{Backend, Network, Normalization, StateDict};
use crate::random::{Purpose, stream};

/// Median milliseconds of `work`, after two runs that fill the memory pools. A card is waited for.
pub(crate) fn median_ms(repeats: u32, device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut work = || -> Result<()> {
        work()?;
        Ok(device.synchronize()?)
    };
    work()?;
    work()?;
    let mut times = (0..repeats)
        .map(|_| {
            let clock = Instant::now();
            work()?;
            Ok(clock.elapsed().as_secs_f64() * 1e3)
        })
        .collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A network with weights as drawn.
pub(crate) fn fresh(architecture: Architecture, trained: bool, backend: &Backend) -> Result<Network> {
    let weights = StateDict::init(&architecture, 0, false);
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    Network::new(architecture, weights, normalization, &[], trained, backend.clone())
}

/// Pixels of `n` images, always the same.
pub(crate) fn noise(n: usize, input: Shape) -> Result<Tensor> {
    let mut rng = stream(0, Purpose::Bench, 0);
    let pixels: Vec<u8> = (0..n * input.len()).map(|_| rng.random()).collect();
    Ok(Tensor::from_vec(pixels, (n, input.channels, input.h, input.w), &Device::Cpu)?)
}

/// The process's largest resident memory so far, in MB, where the system tells.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
