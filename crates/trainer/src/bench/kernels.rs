//! Each op that a network needs, as a stage of one node: ours against candle's, both checked against f64.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use kernels::conv::Algorithm;
use kernels::graph::{Graph, Node, Shape};
use kernels::peak::{self, Numbers};
use kernels::stage::{Memory, Mode, Stage};
use kernels::{Isa, Value};
use rand::RngExt;

use super::median_ms;
use crate::config::Dtype;
use crate::nn::by_ops;
use crate::random::{Purpose, stream};

/// One op's figures.
pub struct Op {
    /// Which, and its sizes.
    pub name: String,
    /// Median milliseconds here.
    pub ms: f64,
    /// Median milliseconds of candle's ops.
    pub candle_ms: f64,
    /// Speed by the definition's operations, for convolutions.
    pub gflops: Option<f64>,
    /// Root mean square of the difference from f64, over that of the values; of output and gradients the worst.
    pub error: f64,
}

/// All figures.
pub struct Kernels {
    /// What this machine's product of registers reaches, on all threads.
    pub peak_gflops: f64,
    /// The ops.
    pub ops: Vec<Op>,
}

/// An op as a graph of one or two nodes.
struct Case {
    name: String,
    graph: Graph,
}

fn case(name: &str, (channels, side): (usize, usize), build: impl FnOnce(&mut Graph)) -> Case {
    let mut graph = Graph::new(Shape { channels, h: side, w: side });
    build(&mut graph);
    Case { name: name.into(), graph }
}

fn cases() -> Vec<Case> {
    let conv = |c_in, side, c_out, k, stride| {
        let name = format!("conv {k}x{k} {c_in}->{c_out} {side}x{side}{}", if stride > 1 { " stride 2" } else { "" });
        case(&name, (c_in, side), |g| {
            g.conv("conv", Value(0), c_out, k, stride, k / 2);
        })
    };
    vec![
        conv(3, 32, 16, 3, 1),
        conv(16, 32, 32, 3, 1),
        conv(32, 32, 32, 3, 1),
        conv(64, 16, 64, 3, 1),
        conv(128, 8, 128, 3, 1),
        conv(32, 32, 64, 3, 2),
        conv(64, 16, 128, 3, 2),
        conv(32, 32, 64, 1, 2),
        case("batch norm, relu 64 16x16", (64, 16), |g| {
            g.batch_norm("bn", Value(0), true);
        }),
        case("add, relu 64 16x16", (64, 16), |g| {
            let y = g.separate_relu(Value(0));
            g.add(Value(0), y);
        }),
        case("mean pool 2x2 64 16x16", (64, 16), |g| {
            g.pool(Value(0), 2, 2, false);
        }),
    ]
}

/// Numbers in [-1, 1).
fn noise(dims: &[usize], which: u64) -> Result<Tensor> {
    let mut rng = stream(1, Purpose::Bench, which);
    let values: Vec<f64> = (0..dims.iter().product::<usize>()).map(|_| 2.0 * rng.random::<f64>() - 1.0).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// The op's inputs in one type, and how to run it.
struct Inputs {
    x: Var,
    parameters: Var,
    running: Vec<f32>,
    g: Tensor,
}

impl Inputs {
    fn new(graph: &Graph, batch: usize, dtype: DType) -> Result<Inputs> {
        let (from, to) = (graph.shapes[0], graph.shape(graph.last()));
        let mut running = vec![0.0; graph.statistics_len()];
        graph.statistics.iter().skip(1).step_by(2).for_each(|e| running[e.range()].fill(1.0));
        let var = |t: Tensor| -> Result<Var> { Ok(Var::from_tensor(&t.to_dtype(dtype)?)?) };
        Ok(Inputs {
            x: var(noise(&[batch, from.channels, from.h, from.w], 1)?)?,
            parameters: var(noise(&[graph.parameter_len().max(1)], 2)?)?,
            running,
            g: noise(&[batch, to.channels, to.h, to.w], 3)?.to_dtype(dtype)?,
        })
    }

    /// Output and both gradients.
    fn run(&self, op: impl Fn(&Tensor, &Tensor, &[f32]) -> candle_core::Result<Tensor>) -> Result<[Tensor; 3]> {
        let y = op(&self.x, &self.parameters, &self.running)?;
        let grads = (&y * &self.g)?.sum_all()?.backward()?;
        let dx = grads.get(&self.x).context("no gradient of the input")?.clone();
        let dp = grads.get(&self.parameters).cloned();
        Ok([y.detach(), dx, dp.map_or_else(|| self.parameters.zeros_like(), Ok)?])
    }
}

fn error(found: &[Tensor; 3], truth: &[Tensor; 3]) -> Result<f64> {
    let mut worst = 0.0f64;
    for (found, truth) in found.iter().zip(truth) {
        // Root mean squares: a ReLU whose input is within rounding of 0 may let one gradient through or not.
        let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?) };
        let (found, truth) = (values(found)?, values(truth)?);
        let off: f64 = found.iter().zip(&truth).map(|(f, t)| (f - t).powi(2)).sum();
        let all: f64 = truth.iter().map(|t| t * t).sum();
        worst = worst.max((off / all.max(1e-300)).sqrt());
    }
    Ok(worst)
}

/// Checks, then times everything: forward and both gradients.
pub fn run(batch: usize, repeats: u32, dtype: Dtype) -> Result<Kernels> {
    let (tensors, precision) = dtype.parts();
    let isa = Isa::best();
    let numbers = match dtype {
        Dtype::F64 => Numbers::F64,
        Dtype::F32 | Dtype::Tf32 | Dtype::F32Direct => Numbers::F32,
        Dtype::Bf16 => Numbers::Bf16,
    };
    // Sums over a batch grow with it; these bounds catch a wrong op, the figure tells the rest.
    let allowed = match dtype {
        Dtype::F64 => 1e-11,
        Dtype::F32 | Dtype::Tf32 | Dtype::F32Direct => 1e-4,
        Dtype::Bf16 => 5e-2,
    };
    let mut ops = Vec::new();
    for Case { name, graph } in cases() {
        let stage = Stage::new(graph.clone(), &Memory::new(isa));
        let ours =
            |x: &Tensor, p: &Tensor, running: &[f32]| Ok(stage.forward(x, p, running, Mode::Train, precision)?.0);
        let candles = |x: &Tensor, p: &Tensor, running: &[f32]| {
            by_ops::forward(&graph, x, p, &Tensor::new(running, x.device())?, Mode::Train, &mut vec![])
        };
        let truth = Inputs::new(&graph, batch, DType::F64)?.run(candles)?;
        let inputs = Inputs::new(&graph, batch, tensors)?;
        let error = error(&inputs.run(ours)?, &truth)?;
        ensure!(error < allowed, "{name}: off by {error:.1e} (relative, root mean square); nothing was timed");
        let candle_inputs = Inputs::new(&graph, batch, if tensors == DType::F64 { DType::F64 } else { DType::F32 })?;
        let ms = match graph.nodes[..] {
            [Node::Conv { shape, .. }] => {
                let direct = dtype == Dtype::F32Direct;
                let algorithm = if direct { Algorithm::Direct } else { peak::algorithm(isa, numbers, &shape) };
                let mut convolution = peak::convolution(isa, numbers, shape, algorithm, batch);
                median_ms(repeats, &Device::Cpu, || {
                    convolution();
                    Ok(())
                })?
            }
            _ => median_ms(repeats, &Device::Cpu, || inputs.run(ours).map(drop))?,
        };
        let candle_ms = median_ms(repeats.min(3), &Device::Cpu, || candle_inputs.run(candles).map(drop))?;
        let flop = 6.0 * graph.macs() as f64 * batch as f64;
        ops.push(Op { name, ms, candle_ms, gflops: (flop > 0.0).then_some(flop / ms / 1e6), error });
    }
    Ok(Kernels { peak_gflops: peak::gflops(isa, numbers), ops })
}
