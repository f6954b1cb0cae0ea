//! The graph by candle's own ops, for devices that the CPU kernels do not serve.

use candle_core::{Result, Tensor};
use kernels::batch_norm::Statistics;
use kernels::graph::{EPS, Graph, Node};
use kernels::stage::Mode;

/// The same function as `Stage::forward`, on any device.
pub fn forward(
    graph: &Graph,
    x: &Tensor,
    parameters: &Tensor,
    running: &[f32],
    mode: Mode,
) -> Result<(Tensor, Vec<Statistics>)> {
    let mut values = vec![x.clone()];
    let mut statistics = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let out = graph.shapes[i + 1];
        let y = match *node {
            Node::Conv { input, shape: s, weight } => {
                let w = parameters.narrow(0, weight, s.weight_len())?.reshape((s.c_out, s.c_in, s.k, s.k))?;
                values[input.0].contiguous()?.conv2d(&w, s.padding, s.stride, 1, 1)?
            }
            Node::BatchNorm { input, gamma, running: at, relu } => {
                let c = out.channels;
                let column = |t: Tensor| t.reshape((1, c, 1, 1));
                let x = &values[input.0];
                let (mean, var) = match mode {
                    Mode::Train => {
                        let mean = x.mean_keepdim((0, 2, 3))?;
                        let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
                        statistics.push(Statistics {
                            mean: flat(&mean)?,
                            var: flat(&var)?,
                            count: x.dim(0)? * out.h * out.w,
                        });
                        (mean, var)
                    }
                    Mode::Eval => {
                        let load = |at: usize| Tensor::new(&running[at..at + c], x.device())?.to_dtype(x.dtype());
                        (column(load(at)?)?, column(load(at + c)?)?)
                    }
                };
                let gamma_beta = |at: usize| column(parameters.narrow(0, at, c)?);
                let scale = (gamma_beta(gamma)? / (var + EPS)?.sqrt()?)?;
                let y = x.broadcast_sub(&mean)?.broadcast_mul(&scale)?.broadcast_add(&gamma_beta(gamma + c)?)?;
                if relu { y.relu()? } else { y }
            }
            Node::Relu { input } => values[input.0].relu()?,
            Node::Add { a, b } => (&values[a.0] + &values[b.0])?,
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
            Node::Pool { input, shape: s } => {
                let x = &values[input.0];
                // As a maximum or mean over shifted, strided copies: candle's max_pool2d has a wrong gradient.
                let mut taps = Vec::new();
                for tap in 0..s.k * s.k {
                    let places = |offset: usize, count: usize| -> Result<Tensor> {
                        let rows: Vec<u32> = (0..count).map(|o| (o * s.stride + offset) as u32).collect();
                        Tensor::new(rows, x.device())
                    };
                    let rows = x.index_select(&places(tap / s.k, s.out_h())?, 2)?;
                    taps.push(rows.index_select(&places(tap % s.k, s.out_w())?, 3)?);
                }
                let stacked = Tensor::stack(&taps, 0)?;
                if s.max { stacked.max(0)? } else { stacked.mean(0)? }
            }
        };
        values.push(y);
    }
    Ok((values.swap_remove(graph.nodes.len()), statistics))
}

fn flat(t: &Tensor) -> Result<Vec<f64>> {
    t.detach().to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1()
}
