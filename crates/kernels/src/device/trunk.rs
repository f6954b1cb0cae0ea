//! A graph on a device, as one candle op: what [`Stage`](crate::Stage) is on the CPU.
//!
//! A convolution is a matrix product of its windows; images go through it a few at a time where their windows would fill
//! the memory. Backward makes the windows again instead of keeping them.

use std::sync::Arc;

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor, bail};

use super::{known, ops};
use crate::execute::Mode;
use crate::graph::{EPS, Graph, Node, Value};
use crate::stage::Precision;
use crate::task::ConvShape;

/// Elements of the windows that are in memory at once, unless an image has more: 1 GB of bf16.
const WINDOWS: usize = 1 << 29;

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
        let mut last_use = vec![usize::MAX; graph.shapes.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs().into_iter().for_each(|Value(v)| last_use[v] = i);
        }
        Trunk { graph: Arc::new(graph), last_use, windows: WINDOWS }
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
        let (_, c, h, w) = x.dims4()?;
        let from = self.graph.shapes[0];
        if (c, h, w) != (from.channels, from.h, from.w) {
            bail!("images are ({c}, {h}, {w}), but the network takes ({}, {}, {})", from.channels, from.h, from.w);
        }
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
                Node::Relu { input } => of(input)?.relu()?,
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
                if self.last_use[v] == i && !(record && self.is_read_again(v)) {
                    kept.values[v] = None;
                }
            }
        }
        let y = kept.values[nodes].clone().unwrap_or_else(|| unreachable!("every node has a value"));
        Ok((y, kept, measured))
    }

    /// Whether backward reads a value, beside its gradient.
    fn is_read_again(&self, value: usize) -> bool {
        self.graph.nodes.iter().any(|node| match node {
            Node::Conv { input, .. } | Node::BatchNorm { input, .. } | Node::Relu { input } => input.0 == value,
            Node::Pool { input, .. } => input.0 == value,
            Node::Add { .. } | Node::Concat { .. } | Node::Subsample { .. } => false,
        })
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

/// Images whose windows are in memory at once.
fn images_at_once(s: &ConvShape, windows: usize) -> usize {
    (windows / (s.out_h() * s.out_w() * s.k * s.k * s.c_in).max(1)).max(1)
}

/// Whether the windows are the pixels themselves.
fn is_product(s: &ConvShape) -> bool {
    s.k == 1 && s.stride == 1 && s.padding == 0
}

/// The windows of x (n, h, w, c) as rows.
fn windows(x: &Tensor, s: &ConvShape) -> Result<Tensor> {
    if is_product(s) { x.reshape((x.elem_count() / s.c_in, s.c_in)) } else { ops::im2col(x, s) }
}

/// x (n, h, w, c) to (n, oh, ow, outputs), by a packed weight.
fn convolve(x: &Tensor, packed: &Tensor, s: &ConvShape, at_once: usize) -> Result<Tensor> {
    let n = x.dim(0)?;
    let mut parts = Vec::new();
    for (from, count) in pieces(n, images_at_once(s, at_once)) {
        parts.push(windows(&x.narrow(0, from, count)?, s)?.matmul(packed)?);
    }
    let y = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
    y.reshape((n, s.out_h(), s.out_w(), s.c_out))
}

/// The gradients of a packed weight and, where it is wanted, of x.
fn convolve_back(
    x: &Tensor,
    g: &Tensor,
    packed: &Tensor,
    s: &ConvShape,
    (at_once, wanted): (usize, bool),
) -> Result<(Tensor, Option<Tensor>)> {
    let (n, mut of_weight, mut of_x) = (x.dim(0)?, None, Vec::new());
    for (from, count) in pieces(n, images_at_once(s, at_once)) {
        let g = g.narrow(0, from, count)?.reshape((count * s.out_h() * s.out_w(), s.c_out))?;
        let share = windows(&x.narrow(0, from, count)?, s)?.t()?.matmul(&g)?;
        of_weight = Some(match of_weight {
            Some(sum) => (sum + share)?,
            None => share,
        });
        if wanted {
            let rows = g.matmul(&packed.t()?)?;
            of_x.push(if is_product(s) {
                rows.reshape((count, s.h, s.w, s.c_in))?
            } else {
                ops::col2im(&rows, s, count)?
            });
        }
    }
    let of_weight = match of_weight {
        Some(sum) => sum,
        None => packed.zeros_like()?,
    };
    let of_x = match of_x.len() {
        0 => None,
        1 => of_x.pop(),
        _ => Some(Tensor::cat(&of_x, 0)?),
    };
    Ok((of_weight, of_x))
}

/// `n` images, some at a time: where each piece begins, and how many it has.
fn pieces(n: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(at_once).map(move |from| (from, at_once.min(n - from)))
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
