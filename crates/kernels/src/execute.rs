//! Runs a graph over NHWC slices, forward and backward.

use std::sync::Arc;

use rayon::prelude::*;

use crate::batch_norm::{self, NormSums, Statistics};
use crate::conv::{self, Packed};
use crate::graph::{EPS, Graph, Node, Value};
use crate::operand::{Affine, Gradient, Input, NormGradient};
use crate::plan::Plan;
use crate::pointwise;
use crate::pool;
use crate::runtime::Runtime;
use crate::simd::Element;

/// A buffer that goes back to its runtime when the last reader is gone.
#[derive(Debug)]
pub struct Buffer<E: Element> {
    data: Vec<E>,
    runtime: Arc<Runtime<E>>,
}

impl<E: Element> Buffer<E> {
    /// A buffer with arbitrary content.
    pub fn take(runtime: &Arc<Runtime<E>>, len: usize) -> Self {
        Buffer { data: runtime.take(len), runtime: runtime.clone() }
    }
    /// Its elements.
    pub fn as_slice(&self) -> &[E] {
        &self.data
    }
    /// Its elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        &mut self.data
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        self.runtime.give(std::mem::take(&mut self.data));
    }
}

/// Where BatchNorm's statistics come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the batch (training).
    Train,
    /// From the running averages.
    Eval,
}

/// BatchNorm as it was applied in a forward pass.
#[derive(Debug)]
struct Norm<E> {
    mean: Vec<E>,
    inv_std: Vec<f64>,
    scale: Vec<E>,
    shift: Vec<E>,
    relu: bool,
    mode: Mode,
}

impl<E: Element> Norm<E> {
    fn affine(&self) -> Affine<'_, E> {
        Affine { scale: &self.scale, shift: &self.shift, relu: self.relu }
    }
}

/// All that a backward pass needs of its forward pass.
#[derive(Debug)]
pub struct Saved<E: Element> {
    n: usize,
    values: Vec<Option<Arc<Buffer<E>>>>,
    norms: Vec<Option<Norm<E>>>,
    packed: Vec<Option<Packed<E>>>,
    winners: Vec<Option<Vec<u8>>>,
}

/// What a forward pass returns.
pub struct Output<E: Element> {
    /// The graph's last value, NHWC.
    pub value: Arc<Buffer<E>>,
    /// Batch statistics of every BatchNorm in order; empty in eval mode.
    pub statistics: Vec<Statistics>,
    /// For the backward pass, if it was asked for.
    pub saved: Option<Saved<E>>,
}

/// A graph with its plan and its memory.
#[derive(Debug)]
pub struct Executor<E: Element> {
    graph: Arc<Graph>,
    plan: Arc<Plan>,
    runtime: Arc<Runtime<E>>,
}

impl<E: Element> Executor<E> {
    /// An executor of `graph`.
    pub fn new(graph: Arc<Graph>, plan: Arc<Plan>, runtime: Arc<Runtime<E>>) -> Self {
        Executor { graph, plan, runtime }
    }

    /// Runs the graph on `n` images. `parameters` and `running` are the network's flat vectors; `record`
    /// keeps what [`backward`](Self::backward) needs.
    pub fn forward(
        &self,
        input: Buffer<E>,
        n: usize,
        parameters: &[E],
        running: &[f32],
        mode: Mode,
        record: bool,
    ) -> Output<E> {
        let (graph, plan) = (&*self.graph, &*self.plan);
        let count = graph.nodes.len();
        let mut saved = Saved {
            n,
            values: (0..=count).map(|_| None).collect(),
            norms: (0..count).map(|_| None).collect(),
            packed: self.pack(parameters),
            winners: (0..count).map(|_| None).collect(),
        };
        let mut per_image: Vec<Option<Vec<E>>> = vec![None; count + 1];
        let mut statistics = Vec::new();
        saved.values[0] = Some(Arc::new(input));
        for (i, node) in graph.nodes.iter().enumerate() {
            let shape = graph.shapes[i + 1];
            match *node {
                Node::Conv { shape, .. } => {
                    let (target, residual) = match plan.fused_sum[i] {
                        Some((sum, other)) => (sum, Some(other)),
                        None => (Value(i + 1), None),
                    };
                    let mut out = Buffer::take(&self.runtime, n * shape.output_len());
                    let wants_stats = mode == Mode::Train && plan.normalised[target.0];
                    let mut stats = wants_stats.then(|| vec![E::default(); n * 2 * shape.c_out]);
                    conv::forward(
                        &self.runtime,
                        &shape,
                        shape.algorithm(),
                        saved.input(graph, plan, node.inputs()[0]),
                        saved.packed(i),
                        residual.map(|v| saved.value(v)),
                        out.as_mut_slice(),
                        stats.as_deref_mut(),
                    );
                    per_image[target.0] = stats;
                    saved.values[target.0] = Some(Arc::new(out));
                }
                Node::BatchNorm { input, gamma, running: at, relu } => {
                    let c = shape.channels;
                    let stats = match mode {
                        Mode::Train => {
                            let per_image = match per_image[input.0].take() {
                                Some(stats) => stats,
                                None => self.image_stats(saved.value(input), c, shape.len()),
                            };
                            batch_norm::combine(&per_image, c, shape.h * shape.w)
                        }
                        Mode::Eval => Statistics {
                            mean: running[at..at + c].iter().map(|x| f64::from(*x)).collect(),
                            var: running[at + c..at + 2 * c].iter().map(|x| f64::from(*x)).collect(),
                            count: 0,
                        },
                    };
                    saved.norms[i] = Some(norm(&stats, &parameters[gamma..gamma + 2 * c], relu, mode));
                    if mode == Mode::Train {
                        statistics.push(stats);
                    }
                    if !plan.lazy[i + 1] {
                        let mut out = Buffer::take(&self.runtime, n * shape.len());
                        let input = Input { u: saved.value(input), affine: saved.norms[i].as_ref().map(Norm::affine) };
                        pointwise::apply(&self.runtime, input, c, out.as_mut_slice());
                        saved.values[i + 1] = Some(Arc::new(out));
                    }
                }
                Node::Add { .. } if saved.values[i + 1].is_some() => {}
                _ => {
                    let mut out = Buffer::take(&self.runtime, n * shape.len());
                    match *node {
                        Node::Relu { input } => pointwise::relu(saved.value(input), out.as_mut_slice()),
                        Node::Add { a, b } => pointwise::add(saved.value(a), saved.value(b), out.as_mut_slice()),
                        Node::Subsample { input, stride, .. } => {
                            subsample(graph, input, stride, i, saved.value(input), out.as_mut_slice());
                        }
                        Node::Pool { input, shape } => {
                            let mut winner = vec![0; n * shape.out_h() * shape.out_w() * shape.channels];
                            pool::pool(&self.runtime, shape, saved.value(input), out.as_mut_slice(), &mut winner);
                            saved.winners[i] = shape.max.then_some(winner);
                        }
                        Node::Conv { .. } | Node::BatchNorm { .. } => unreachable!("handled above"),
                    }
                    saved.values[i + 1] = Some(Arc::new(out));
                }
            }
            if !record {
                for v in 0..=i {
                    if plan.last_reader[v].is_none_or(|r| r <= i) {
                        saved.values[v] = None;
                    }
                }
            }
        }
        let value = saved.values[count].clone().unwrap_or_else(|| unreachable!("the last value is stored"));
        Output { value, statistics, saved: record.then_some(saved) }
    }

    /// Gradients of a forward pass for the gradient `g` of its output, NHWC: the flat parameters' (zero
    /// where a parameter lies outside this graph) and, if asked for, the input's.
    pub fn backward(
        &self,
        saved: &Saved<E>,
        parameters: &[E],
        g: Buffer<E>,
        input_gradient: bool,
    ) -> (Vec<E>, Option<Arc<Buffer<E>>>) {
        let (graph, plan) = (&*self.graph, &*self.plan);
        let mut dp = vec![E::default(); parameters.len()];
        let mut pending: Vec<Vec<Pending<E>>> = (0..graph.shapes.len()).map(|_| Vec::new()).collect();
        let mut sums: Vec<Option<Vec<E>>> = vec![None; graph.nodes.len()];
        pending[graph.nodes.len()].push(Pending { g: Arc::new(g), norm: None });
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if pending[i + 1].is_empty() {
                continue;
            }
            let channels = graph.shapes[i + 1].channels;
            let out = std::mem::take(&mut pending[i + 1]);
            match *node {
                Node::Add { a, b } => {
                    let g = self.single(saved, out, channels);
                    pending[a.0].push(g.clone());
                    pending[b.0].push(g);
                }
                Node::Conv { input, shape, weight } => {
                    let g = self.single(saved, out, channels);
                    let wanted = input.0 > 0 || input_gradient;
                    let (mut dx, accumulate) = match wanted.then(|| take_owned(&mut pending[input.0])) {
                        Some(Some(buffer)) => (Some(buffer), true),
                        Some(None) => (Some(Buffer::take(&self.runtime, saved.n * shape.input_len())), false),
                        None => (None, false),
                    };
                    let mut image_sums = plan.sums_for[i].map(|_| vec![E::default(); saved.n * 2 * shape.c_in]);
                    let norm = plan.sums_for[i].and_then(|bn| saved.norms[bn].as_ref().map(|n| (bn, n)));
                    conv::backward(
                        &self.runtime,
                        &shape,
                        shape.algorithm(),
                        saved.input(graph, plan, input),
                        g.gradient(saved, graph),
                        saved.packed(i),
                        dx.as_mut().map(|dx| (dx.as_mut_slice(), accumulate)),
                        &mut dp[weight..weight + shape.weight_len()],
                        norm.zip(image_sums.as_mut()).map(|((bn, norm), out)| NormSums {
                            u: saved.value(graph.nodes[bn].inputs()[0]),
                            affine: norm.affine(),
                            mean: &norm.mean,
                            out,
                        }),
                    );
                    if let Some(bn) = plan.sums_for[i] {
                        sums[bn] = image_sums;
                    }
                    pending[input.0].extend(dx.map(|dx| Pending { g: Arc::new(dx), norm: None }));
                }
                Node::BatchNorm { input, gamma, .. } => {
                    let g = self.stored(saved, out, channels);
                    let Some(norm) = &saved.norms[i] else { unreachable!("every BatchNorm ran") };
                    let per_image = sums[i].take().unwrap_or_else(|| {
                        self.image_sums(g.as_slice(), saved.value(input), norm, graph.shapes[i + 1].len())
                    });
                    let c = channels;
                    let count = (saved.n * graph.shapes[i + 1].h * graph.shapes[i + 1].w) as f64;
                    let (dgamma_beta, back) = norm_gradient(norm, &parameters[gamma..gamma + c], &per_image, count);
                    dp[gamma..gamma + 2 * c].copy_from_slice(&dgamma_beta);
                    pending[input.0].push(Pending { g, norm: Some((i, Arc::new(back))) });
                }
                Node::Relu { input } => {
                    let g = self.stored(saved, out, channels);
                    let mut dx = Buffer::take(&self.runtime, g.as_slice().len());
                    pointwise::relu_gradient(saved.value(Value(i + 1)), g.as_slice(), dx.as_mut_slice());
                    pending[input.0].push(Pending { g: Arc::new(dx), norm: None });
                }
                Node::Subsample { input, stride, .. } => {
                    let g = self.stored(saved, out, channels);
                    let mut dx = Buffer::take(&self.runtime, saved.n * graph.shape(input).len());
                    subsample_gradient(graph, input, stride, i, g.as_slice(), dx.as_mut_slice());
                    pending[input.0].push(Pending { g: Arc::new(dx), norm: None });
                }
                Node::Pool { input, shape } => {
                    let g = self.stored(saved, out, channels);
                    let mut dx = Buffer::take(&self.runtime, saved.n * graph.shape(input).len());
                    let none = vec![0; g.as_slice().len()];
                    let winner = saved.winners[i].as_deref().unwrap_or(&none);
                    pool::pool_gradient(shape, g.as_slice(), winner, dx.as_mut_slice());
                    pending[input.0].push(Pending { g: Arc::new(dx), norm: None });
                }
            }
        }
        let at_input = std::mem::take(&mut pending[0]);
        let dx =
            (input_gradient && !at_input.is_empty()).then(|| self.stored(saved, at_input, graph.shapes[0].channels));
        (dp, dx)
    }

    fn pack(&self, parameters: &[E]) -> Vec<Option<Packed<E>>> {
        let one = |node: &Node| match node {
            Node::Conv { shape, weight, .. } => {
                let weight = &parameters[*weight..weight + shape.weight_len()];
                Some(Packed::new(shape, shape.algorithm(), weight))
            }
            _ => None,
        };
        self.graph.nodes.par_iter().map(one).collect()
    }

    fn image_stats(&self, u: &[E], channels: usize, len: usize) -> Vec<E> {
        let mut out = vec![E::default(); u.len() / len * 2 * channels];
        out.par_chunks_mut(2 * channels)
            .zip(u.par_chunks(len))
            .for_each(|(out, image)| batch_norm::image_stats(self.runtime.isa, image, channels, out));
        out
    }

    fn image_sums(&self, g: &[E], u: &[E], norm: &Norm<E>, len: usize) -> Vec<E> {
        let channels = norm.mean.len();
        let mut out = vec![E::default(); u.len() / len * 2 * channels];
        out.par_chunks_mut(2 * channels).zip(u.par_chunks(len)).zip(g.par_chunks(len)).for_each(|((out, u), g)| {
            batch_norm::image_sums(self.runtime.isa, g, u, norm.affine(), &norm.mean, out);
        });
        out
    }

    /// The one gradient that waits at a value, or the stored sum of several.
    fn single(&self, saved: &Saved<E>, mut waiting: Vec<Pending<E>>, channels: usize) -> Pending<E> {
        match waiting.pop() {
            Some(only) if waiting.is_empty() => only,
            Some(last) => {
                waiting.push(last);
                Pending { g: self.sum(saved, &waiting, channels), norm: None }
            }
            None => unreachable!("only called for values that were reached"),
        }
    }

    /// The same, stored in any case.
    fn stored(&self, saved: &Saved<E>, waiting: Vec<Pending<E>>, channels: usize) -> Arc<Buffer<E>> {
        match self.single(saved, waiting, channels) {
            Pending { g, norm: None } => g,
            lazy => self.sum(saved, &[lazy], channels),
        }
    }

    fn sum(&self, saved: &Saved<E>, waiting: &[Pending<E>], channels: usize) -> Arc<Buffer<E>> {
        let gradients: Vec<_> = waiting.iter().map(|p| p.gradient(saved, &self.graph)).collect();
        let mut out = Buffer::take(&self.runtime, gradients[0].g.len());
        pointwise::add_gradients(&self.runtime, &gradients, channels, out.as_mut_slice());
        Arc::new(out)
    }
}

impl<E: Element> Saved<E> {
    fn value(&self, v: Value) -> &[E] {
        match &self.values[v.0] {
            Some(buffer) => buffer.as_slice(),
            None => unreachable!("value {} is not stored", v.0),
        }
    }
    fn packed(&self, node: usize) -> &Packed<E> {
        match &self.packed[node] {
            Some(packed) => packed,
            None => unreachable!("node {node} has no weight"),
        }
    }
    /// A convolution's operand: the value, or what makes it.
    fn input<'a>(&'a self, graph: &Graph, plan: &Plan, v: Value) -> Input<'a, E> {
        if !plan.lazy[v.0] {
            return Input { u: self.value(v), affine: None };
        }
        let norm = v.0 - 1;
        Input { u: self.value(graph.nodes[norm].inputs()[0]), affine: self.norms[norm].as_ref().map(Norm::affine) }
    }
}

/// A gradient on its way to a value: stored, or to be formed from BatchNorm's.
struct Pending<E: Element> {
    g: Arc<Buffer<E>>,
    norm: Option<(usize, Arc<Coefficients<E>>)>,
}

impl<E: Element> Clone for Pending<E> {
    fn clone(&self) -> Self {
        Pending { g: self.g.clone(), norm: self.norm.clone() }
    }
}

struct Coefficients<E> {
    slope: Vec<E>,
    spread: Vec<E>,
    offset: Vec<E>,
}

impl<E: Element> Pending<E> {
    fn gradient<'a>(&'a self, saved: &'a Saved<E>, graph: &Graph) -> Gradient<'a, E> {
        let norm = self.norm.as_ref().and_then(|(node, c)| {
            let u = saved.value(graph.nodes[*node].inputs()[0]);
            let affine = saved.norms[*node].as_ref()?.affine();
            Some(NormGradient { u, affine, slope: &c.slope, spread: &c.spread, offset: &c.offset })
        });
        Gradient { g: self.g.as_slice(), norm }
    }
}

/// A buffer that waits alone, stored and unshared: the next gradient can be added to it in place.
fn take_owned<E: Element>(waiting: &mut Vec<Pending<E>>) -> Option<Buffer<E>> {
    match waiting.pop() {
        Some(Pending { g, norm: None }) if waiting.is_empty() => match Arc::try_unwrap(g) {
            Ok(buffer) => Some(buffer),
            Err(g) => {
                waiting.push(Pending { g, norm: None });
                None
            }
        },
        other => {
            waiting.extend(other);
            None
        }
    }
}

fn norm<E: Element>(stats: &Statistics, gamma_beta: &[E], relu: bool, mode: Mode) -> Norm<E> {
    let c = stats.mean.len();
    let inv_std: Vec<f64> = stats.var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
    let scale: Vec<f64> = (0..c).map(|i| gamma_beta[i].f64() * inv_std[i]).collect();
    let shift = (0..c).map(|i| E::of(gamma_beta[c + i].f64() - scale[i] * stats.mean[i])).collect();
    Norm {
        mean: stats.mean.iter().map(|m| E::of(*m)).collect(),
        inv_std,
        scale: scale.into_iter().map(E::of).collect(),
        shift,
        relu,
        mode,
    }
}

/// (d gamma, d beta) and the coefficients of the input's gradient (Ioffe & Szegedy 2015, section 3).
fn norm_gradient<E: Element>(norm: &Norm<E>, gamma: &[E], per_image: &[E], count: f64) -> (Vec<E>, Coefficients<E>) {
    let c = gamma.len();
    let (sum, product) = batch_norm::combine_sums(per_image, c);
    let mut d = vec![E::default(); 2 * c];
    let mut back = Coefficients { slope: vec![], spread: vec![], offset: vec![] };
    for i in 0..c {
        let (inv, mean) = (norm.inv_std[i], norm.mean[i].f64());
        let dgamma = product[i] * inv;
        d[i] = E::of(dgamma);
        d[c + i] = E::of(sum[i]);
        let slope = gamma[i].f64() * inv;
        let spread = match norm.mode {
            Mode::Train => -slope * inv * dgamma / count,
            Mode::Eval => 0.0,
        };
        let offset = match norm.mode {
            Mode::Train => -slope * sum[i] / count - spread * mean,
            Mode::Eval => 0.0,
        };
        back.slope.push(E::of(slope));
        back.spread.push(E::of(spread));
        back.offset.push(E::of(offset));
    }
    (d, back)
}

/// (first new channel, channels before): where option A's shortcut puts the old channels.
fn subsample_places(graph: &Graph, input: Value, node: usize) -> (usize, usize) {
    let (from, to) = (graph.shape(input).channels, graph.shapes[node + 1].channels);
    ((to - from) / 2, from)
}

fn subsample<E: Element>(graph: &Graph, input: Value, stride: usize, node: usize, x: &[E], out: &mut [E]) {
    let (from, to) = (graph.shape(input), graph.shapes[node + 1]);
    let (before, channels) = subsample_places(graph, input, node);
    out.par_chunks_mut(to.len()).zip(x.par_chunks(from.len())).for_each(|(out, x)| {
        out.fill(E::default());
        for p in 0..to.h * to.w {
            let at = (p / to.w * stride * from.w + p % to.w * stride) * channels;
            out[p * to.channels + before..][..channels].copy_from_slice(&x[at..][..channels]);
        }
    });
}

fn subsample_gradient<E: Element>(graph: &Graph, input: Value, stride: usize, node: usize, g: &[E], dx: &mut [E]) {
    let (from, to) = (graph.shape(input), graph.shapes[node + 1]);
    let (before, channels) = subsample_places(graph, input, node);
    dx.par_chunks_mut(from.len()).zip(g.par_chunks(to.len())).for_each(|(dx, g)| {
        dx.fill(E::default());
        for p in 0..to.h * to.w {
            let at = (p / to.w * stride * from.w + p % to.w * stride) * channels;
            dx[at..][..channels].copy_from_slice(&g[p * to.channels + before..][..channels]);
        }
    });
}
