//! A forward pass in eval mode, of any architecture, on images of any size.

use anyhow::Result;
use kernels::graph::Shape;

use super::{fresh, median_ms, noise};
use crate::models::{Architecture, Options};
use crate::nn::{Backend, Model};

/// What a pass takes.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Median milliseconds.
    pub ms: f64,
    /// Thousand millions of the definition's operations a second.
    pub gflops: f64,
}

/// The model of that name for images of `side` pixels height and width and ImageNet's 1,000 classes.
pub fn architecture(name: &str, side: usize) -> Result<Architecture> {
    Architecture::named(name, Shape { channels: 3, h: side, w: side }, 1000, &Options::new())
}

/// Times `architecture`, with weights as drawn, on `n` images of noise.
pub fn run(architecture: Architecture, n: usize, repeats: u32, backend: &Backend) -> Result<Forward> {
    let input = architecture.graph.shapes[0];
    let flop = 2.0 * architecture.macs() as f64 * n as f64;
    let network = fresh(architecture, false, backend)?;
    let images = network.images(&noise(n, input)?)?;
    let ms = median_ms(repeats, &backend.device, || network.glance(&images).map(drop))?;
    Ok(Forward { ms, gflops: flop / ms / 1e6 })
}
