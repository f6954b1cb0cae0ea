//! A graph on a device, as one candle op: what [`Stage`](crate::Stage) is on the CPU.

use std::sync::Arc;

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor, bail};

use super::convolution::{WINDOWS, convolve, convolve_back};
use super::{known, ops};
use crate::execute::Mode;
use crate::graph::{EPS, Graph, Node, Value};
use crate::stage::{Precision, check};
use crate::task::ConvShape;

/// What one BatchNorm has measured of a batch, on the device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (channels,).
    pub mean: Tensor,
    /// Biased, (channels,).
    pub var: Tensor,
    /// Values per channel.
    pub count: usize,
}

/// A part of a network that runs as one op on a device.
#[derive(Clone, Debug)]
pub struct Trunk {
    graph: Arc<Graph>,
    /// The last node that reads each value.
    last_use: Vec<usize>,
    /// Whether backward reads a value, beside its gradient.
    read_again: Vec<bool>,
    /// Elements of windows at once.
    windows: usize,
}

/// What backward needs of a forward pass.
struct Kept {
    /// The values that nodes have read; (n, h, w, c).
    values: Vec<Option<Tensor>>,
    /// A convolution's result, where a bias or a ReLU follows.
    raw: Vec<Option<Tensor>>,
    /// Tables of BatchNorms and biases.
    tables: Vec<Option<Tensor>>,
    /// Weights as sides of products.
    packed: Vec<Option<Tensor>>,
}

impl Trunk {
    /// One that runs `graph`.
    pub fn new(graph: Graph) -> Trunk {
        let (mut last_use, mut read_again) = (vec![usize::MAX; graph.shapes.len()], vec![false; graph.shapes.len()]);
        for (i, node) in graph.nodes.iter().enumerate() {
            let sum = matches!(node, Node::Add { .. } | Node::Concat { .. } | Node::Subsample { .. });
            for Value(v) in node.inputs() {
                (last_use[v], read_again[v]) = (i, read_again[v] || !sum);
            }
        }
        Trunk { graph: Arc::new(graph), last_use, read_again, windows: WINDOWS }
    }

    /// The same with so many elements of windows in memory at once, at least an image's.
    pub fn with_windows(self, elements: usize) -> Trunk {
        Trunk { windows: elements, ..self }
    }

    /// What it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// `x` (n, c, h, w) through the graph, differentiable in `x` and in the flat `parameters` wherever candle tracks them,
    /// and each BatchNorm's batch statistics (none in eval mode). `running` is flat, f32, on the same device. The result is
    /// channels-last in memory.
    pub fn forward(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        running: &Tensor,
        mode: Mode,
        precision: Precision,
    ) -> Result<(Tensor, Vec<Batch>)> {
        check(&self.graph, x, parameters.elem_count(), running.elem_count())?;
        let dtype = if precision == Precision::Bf16 && x.dtype() == DType::F32 { DType::BF16 } else { x.dtype() };
        let record = x.track_op() || parameters.track_op();
        let (plain, weights) = (x.detach(), parameters.detach().contiguous()?);
        let input = plain.permute((0, 2, 3, 1))?.to_dtype(dtype)?.contiguous()?;
        let _tf32 = Tf32::during(precision);
        let (y, kept, measured) = self.run(input, &weights, running, mode, record)?;
        let mut y = y.to_dtype(x.dtype())?;
        if record {
            let op = TrunkOp { trunk: self.clone(), y: y.clone(), mode, precision, dtype, kept };
            y = x.apply_op2(parameters, op)?;
        }
        Ok((y.permute((0, 3, 1, 2))?, measured))
    }

    /// Values (n, h, w, c) node by node.
    fn run(
        &self,
        x: Tensor,
        parameters: &Tensor,
        running: &Tensor,
        mode: Mode,
        record: bool,
    ) -> Result<(Tensor, Kept, Vec<Batch>)> {
        let (graph, dtype, n) = (&*self.graph, x.dtype(), x.dim(0)?);
        let nodes = graph.nodes.len();
        let none = |n: usize| vec![None; n];
        let mut kept = Kept { values: none(nodes + 1), raw: none(nodes), tables: none(nodes), packed: none(nodes) };
        kept.values[0] = Some(x);
        let mut measured = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let of =
                |v: Value| kept.values[v.0].as_ref().ok_or_else(|| candle_core::Error::msg("a value came too late"));
            let y = match *node {
                Node::Conv { input, shape, weight, bias, relu } => {
                    let weight = parameters.narrow(0, weight, shape.weight_len())?;
                    let packed = ops::pack_weight(&weight, &shape, dtype)?;
                    let y = convolve(of(input)?, &packed, &shape, self.windows)?;
                    kept.packed[i] = record.then_some(packed);
                    if bias.is_some() || relu {
                        let table = biases(parameters, bias, shape.c_out, dtype)?;
                        let out = ops::normalize(&y, &table, relu)?;
                        (kept.raw[i], kept.tables[i]) = (record.then_some(y), record.then_some(table));
                        out
                    } else {
                        y
                    }
                }
                Node::BatchNorm { input, gamma, running: at, relu } => {
                    let (x, c) = (of(input)?, graph.shape(input).channels);
                    let gamma_beta = parameters.narrow(0, gamma, 2 * c)?;
                    let table = match mode {
                        Mode::Train => {
                            let table = ops::measure(x, &gamma_beta, EPS)?;
                            let count = x.elem_count() / c;
                            measured.push(Batch { mean: table.get(0)?, var: table.get(1)?, count });
                            table
                        }
                        Mode::Eval => {
                            let statistics = running.narrow(0, at, 2 * c)?.to_dtype(ops::wide(dtype))?;
                            ops::known(&statistics, &gamma_beta, EPS, dtype)?
                        }
                    };
                    let y = ops::normalize(x, &table, relu)?;
                    kept.tables[i] = record.then_some(table);
                    y
                }
                Node::Relu { input } => {
                    // candle's own makes 0 of a NaN.
                    let table = biases(parameters, None, graph.shape(input).channels, dtype)?;
                    ops::normalize(of(input)?, &table, true)?
                }
                Node::Add { a, b } => (of(a)? + of(b)?)?,
                Node::Concat { a, b } => Tensor::cat(&[of(a)?, of(b)?], 3)?.contiguous()?,
                Node::Subsample { input, stride, channels } => {
                    let s = subsample(graph, input, stride);
                    let x = ops::im2col(of(input)?, &s)?.reshape((n, s.out_h(), s.out_w(), s.c_in))?;
                    let before = (channels - s.c_in) / 2;
                    x.pad_with_zeros(3, before, channels - s.c_in - before)?.contiguous()?
                }
                Node::Pool { input, shape } => ops::pool(of(input)?, &shape)?,
            };
            kept.values[i + 1] = Some(y);
            for Value(v) in node.inputs() {
                if self.last_use[v] == i && !(record && self.read_again[v]) {
                    kept.values[v] = None;
                }
            }
        }
        let y = kept.values[nodes].clone().unwrap_or_else(|| unreachable!("every node has a value"));
        Ok((y, kept, measured))
    }

    /// The gradients of the input (n, h, w, c), where it is wanted, and of the parameters, flat; `g` is the output's.
    fn back(
        &self,
        kept: &Kept,
        parameters: &Tensor,
        g: Tensor,
        mode: Mode,
        wanted: bool,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let graph = &*self.graph;
        let flat = Tensor::zeros(parameters.elem_count(), parameters.dtype(), parameters.device())?;
        let mut gradients: Vec<Option<Tensor>> = vec![None; graph.nodes.len() + 1];
        gradients[graph.nodes.len()] = Some(g);
        let missing = || candle_core::Error::msg("this forward pass was not recorded");
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            let Some(g) = gradients[i + 1].take() else { continue };
            let value = |v: Value| kept.values[v.0].as_ref().ok_or_else(missing);
            let wants = |v: Value| wanted || v.0 > 0;
            let mut give = |v: Value, g: Tensor| -> Result<()> {
                let sum = match gradients[v.0].take() {
                    Some(other) => (other + g)?,
                    None => g,
                };
                gradients[v.0] = Some(sum);
                Ok(())
            };
            match *node {
                Node::Conv { input, shape, weight, bias, relu: open } => {
                    let g = match (&kept.raw[i], &kept.tables[i]) {
                        (Some(raw), Some(table)) => {
                            let (g, of_table) = ops::normalize_back(raw, &g, table, (open, false, true))?;
                            if let Some(at) = bias {
                                flat.slice_set(&of_table.narrow(0, shape.c_out, shape.c_out)?.contiguous()?, 0, at)?;
                            }
                            g.ok_or_else(missing)?
                        }
                        _ => g,
                    };
                    let (x, packed) = (value(input)?, kept.packed[i].as_ref().ok_or_else(missing)?);
                    let (of_weight, of_x) = convolve_back(x, &g, packed, &shape, (self.windows, wants(input)))?;
                    ops::unpack_weight(&of_weight, &shape, &flat.narrow(0, weight, shape.weight_len())?)?;
                    if let Some(of_x) = of_x {
                        give(input, of_x)?;
                    }
                }
                Node::BatchNorm { input, gamma, relu, .. } => {
                    let table = kept.tables[i].as_ref().ok_or_else(missing)?;
                    let how = (relu, mode == Mode::Train, wants(input));
                    let (of_x, of_gamma_beta) = ops::normalize_back(value(input)?, &g, table, how)?;
                    flat.slice_set(&of_gamma_beta.contiguous()?, 0, gamma)?;
                    if let Some(of_x) = of_x {
                        give(input, of_x)?;
                    }
                }
                Node::Relu { input } => {
                    let open = value(input)?.gt(0.0)?.to_dtype(g.dtype())?;
                    give(input, (g * open)?)?;
                }
                Node::Add { a, b } => {
                    give(a, g.clone())?;
                    give(b, g)?;
                }
                Node::Concat { a, b } => {
                    let (first, second) = (graph.shape(a).channels, graph.shape(b).channels);
                    give(a, g.narrow(3, 0, first)?.contiguous()?)?;
                    give(b, g.narrow(3, first, second)?.contiguous()?)?;
                }
                Node::Subsample { input, stride, channels } => {
                    let s = subsample(graph, input, stride);
                    let n = g.dim(0)?;
                    let rows = g.narrow(3, (channels - s.c_in) / 2, s.c_in)?.contiguous()?;
                    give(input, ops::col2im(&rows.reshape((n * s.out_h() * s.out_w(), s.c_in))?, &s, n)?)?;
                }
                Node::Pool { input, shape } => give(input, ops::pool_back(value(input)?, &g, &shape)?)?,
            }
        }
        Ok((gradients[0].take(), flat))
    }
}

/// Every `stride`-th pixel, as the windows of one pixel.
fn subsample(graph: &Graph, input: Value, stride: usize) -> ConvShape {
    let from = graph.shape(input);
    let c = from.channels;
    ConvShape { h: from.h, w: from.w, c_in: c, c_out: c, k: 1, stride, padding: 0 }
}

/// The table of a BatchNorm that only adds a bias.
fn biases(parameters: &Tensor, at: Option<usize>, c: usize, dtype: DType) -> Result<Tensor> {
    let wide = ops::wide(dtype);
    let one = Tensor::ones(c, wide, parameters.device())?;
    let zero = one.zeros_like()?;
    let bias = match at {
        Some(at) => parameters.narrow(0, at, c)?,
        None => zero.clone(),
    };
    ops::known(&Tensor::cat(&[&zero, &one], 0)?, &Tensor::cat(&[&one, &bias], 0)?, 0.0, dtype)
}

/// candle's switch for TF32 in products of f32, on while this lives. It is the process's; networks run on one thread.
struct Tf32(bool);

impl Tf32 {
    fn during(precision: Precision) -> Tf32 {
        let before = candle_core::cuda::gemm_reduced_precision_f32();
        candle_core::cuda::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
        Tf32(before)
    }
}

impl Drop for Tf32 {
    fn drop(&mut self) {
        candle_core::cuda::set_gemm_reduced_precision_f32(self.0);
    }
}

/// A finished pass: its result is known, its derivative is [`Trunk::back`].
struct TrunkOp {
    trunk: Trunk,
    y: Tensor,
    mode: Mode,
    precision: Precision,
    dtype: DType,
    kept: Kept,
}

impl CustomOp2 for TrunkOp {
    fn name(&self) -> &'static str {
        "trunk"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        known::on_cpu(&self.y)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        known::on_card(&self.y)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        bail!("there are no kernels for Metal")
    }

    fn bwd(&self, x: &Tensor, parameters: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _tf32 = Tf32::during(self.precision);
        let g = g.to_dtype(self.dtype)?.contiguous()?;
        let (of_x, flat) = self.trunk.back(&self.kept, &parameters.detach(), g, self.mode, x.track_op())?;
        let of_x = match of_x {
            Some(g) => Some(g.to_dtype(x.dtype())?.permute((0, 3, 1, 2))?.contiguous()?),
            None => None,
        };
        Ok((of_x, parameters.track_op().then_some(flat)))
    }
}
