//! The graph by candle's own ops, for devices that the CPU kernels do not serve.

// candle's own makes 0 of a NaN, and passes a gradient at 0.
use cams::maps::relu;
use candle_core::{Result, Tensor};
use kernels::graph::{EPS, Graph, Node};
use kernels::pool::{PoolShape, Window};
use kernels::stage::Mode;

use super::Measured;

/// The same function as `Stage::forward`, on any device; what BatchNorm has measured in train mode is added to `measured`.
pub fn forward(
    graph: &Graph,
    x: &Tensor,
    parameters: &Tensor,
    running: &Tensor,
    mode: Mode,
    measured: &mut Vec<Measured>,
) -> Result<Tensor> {
    let mut values = vec![x.clone()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let out = graph.shapes[i + 1];
        let y = match *node {
            Node::Conv { input, shape: s, weight, bias, relu: open } => {
                let w = parameters.narrow(0, weight, s.weight_len())?.reshape((s.c_out, s.c_in, s.k, s.k))?;
                let y = values[input.0].contiguous()?.conv2d(&w, s.padding, s.stride, 1, 1)?;
                let y = match bias {
                    Some(at) => y.broadcast_add(&parameters.narrow(0, at, s.c_out)?.reshape((1, s.c_out, 1, 1))?)?,
                    None => y,
                };
                if open { relu(&y)? } else { y }
            }
            Node::BatchNorm { input, gamma, running: at, relu: open } => {
                let c = out.channels;
                let column = |t: Tensor| t.reshape((1, c, 1, 1));
                let x = &values[input.0];
                let (mean, var) = match mode {
                    Mode::Train => {
                        let mean = x.mean_keepdim((0, 2, 3))?;
                        let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
                        let flat = |t: &Tensor| t.detach().flatten_all();
                        let count = x.dim(0)? * out.h * out.w;
                        measured.push(Measured { mean: flat(&mean)?, var: flat(&var)?, count });
                        (mean, var)
                    }
                    Mode::Eval => {
                        let load = |at: usize| running.narrow(0, at, c)?.to_dtype(x.dtype());
                        (column(load(at)?)?, column(load(at + c)?)?)
                    }
                };
                let gamma_beta = |at: usize| column(parameters.narrow(0, at, c)?);
                let scale = (gamma_beta(gamma)? / (var + EPS)?.sqrt()?)?;
                let y = x.broadcast_sub(&mean)?.broadcast_mul(&scale)?.broadcast_add(&gamma_beta(gamma + c)?)?;
                if open { relu(&y)? } else { y }
            }
            Node::Relu { input } => relu(&values[input.0])?,
            Node::Add { a, b } => (&values[a.0] + &values[b.0])?,
            Node::Concat { a, b } => Tensor::cat(&[&values[a.0], &values[b.0]], 1)?,
            Node::Subsample { input, stride, channels } => {
                let x = &values[input.0];
                let every = |len: usize| -> Result<Tensor> {
                    let rows: Vec<u32> = (0..len as u32).step_by(stride).collect();
                    Tensor::new(rows, x.device())
                };
                let from = graph.shape(input);
                let x = x.index_select(&every(from.h)?, 2)?.index_select(&every(from.w)?, 3)?;
                let before = (channels - from.channels) / 2;
                x.pad_with_zeros(1, before, channels - from.channels - before)?
            }
            Node::Pool { input, shape } => pool(&values[input.0], &shape)?,
        };
        values.push(y);
    }
    Ok(values.swap_remove(graph.nodes.len()))
}

/// A maximum or mean over shifted, strided copies: candle's max_pool2d has a wrong gradient, and no padding.
fn pool(x: &Tensor, shape: &PoolShape) -> Result<Tensor> {
    let Window { k, stride, padding, .. } = shape.window;
    let (oh, ow) = (shape.out_h(), shape.out_w());
    // What lies in front of the image and behind it, so that every window is whole. No maximum sees it; in a mean it is
    // zero.
    let behind = |out: usize, len: usize| ((out - 1) * stride + k).saturating_sub(padding + len);
    let (below, right) = (behind(oh, shape.h), behind(ow, shape.w));
    let bordered = |x: &Tensor| x.pad_with_zeros(2, padding, below)?.pad_with_zeros(3, padding, right);
    let places = |offset: usize, count: usize| -> Result<Tensor> {
        let rows: Vec<u32> = (0..count).map(|o| (o * stride + offset) as u32).collect();
        Tensor::new(rows, x.device())
    };
    let shifted = |x: &Tensor| -> Result<Tensor> {
        let taps: Result<Vec<_>> = (0..k * k)
            .map(|tap| x.index_select(&places(tap / k, oh)?, 2)?.index_select(&places(tap % k, ow)?, 3))
            .collect();
        Tensor::stack(&taps?, 0)
    };
    let whole = padding == 0 && below == 0 && right == 0;
    let taps = shifted(&if whole { x.clone() } else { bordered(x)? })?;
    if whole {
        return if shape.max { largest(&taps) } else { taps.mean(0) };
    }
    if !shape.max {
        let counts = shape.mean_counts().into_iter().map(|c| c as f64).collect::<Vec<_>>();
        let counts = Tensor::from_vec(counts, (1, 1, oh, ow), x.device())?.to_dtype(x.dtype())?;
        return taps.sum(0)?.broadcast_div(&counts);
    }
    // Where a tap lies outside, a number below every other takes its place.
    let inside = shifted(&bordered(&x.ones_like()?)?)?;
    let lowest = (taps.ones_like()? * f64::from(f32::MIN))?;
    largest(&inside.gt(0.0)?.where_cond(&taps, &lowest)?)
}

/// The largest of the taps (taps, n, c, h, w); its gradient goes to the first of equal ones alone, as PyTorch's does.
fn largest(taps: &Tensor) -> Result<Tensor> {
    let first = taps.detach().argmax_keepdim(0)?;
    taps.gather(&first, 0)?.squeeze(0)
}
