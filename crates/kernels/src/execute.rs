//! Runs a graph over NHWC slices, forward and backward.

mod backward;
mod weights;

use std::sync::Arc;

use rayon::prelude::*;
use weights::{Memo, Weights};

use crate::batch_norm::{self, Statistics};
use crate::conv::{self, Packed};
use crate::graph::{EPS, Graph, Node, Value};
use crate::operand::{Affine, After, Input, Within};
use crate::plan::Plan;
use crate::pointwise;
use crate::pool;
use crate::runtime::{Buffer, Runtime};
use crate::simd::Element;

/// Images that go through a whole graph together where nothing is kept and nothing mixes them, at most: what lies between two
/// layers then stays in the cache. As many as a convolution of 8x8 images, CIFAR's last layers, takes at a time.
const GROUP: usize = 16;

/// Where BatchNorm's statistics come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the batch (training).
    Train,
    /// From the running averages.
    Eval,
}

/// How a forward pass runs.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Where BatchNorm's statistics come from.
    pub mode: Mode,
    /// Whether convolutions may use Winograd's algorithm.
    pub winograd: bool,
    /// Whether a backward pass may follow.
    pub record: bool,
}

/// BatchNorm as it was applied in a forward pass.
#[derive(Debug)]
struct Norm<E: Element> {
    mean: Vec<E::Wide>,
    inv_std: Vec<f64>,
    scale: Vec<E::Wide>,
    shift: Vec<E::Wide>,
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
    packed: Weights<E>,
    winners: Vec<Option<Vec<u8>>>,
}

/// What a forward pass leaves beside its result.
pub struct Kept<E: Element> {
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
    memo: Memo<E>,
}

impl<E: Element> Executor<E> {
    /// An executor of `graph`.
    pub fn new(graph: Arc<Graph>, plan: Arc<Plan>, runtime: Arc<Runtime<E>>) -> Self {
        Executor { graph, plan, runtime, memo: Memo::default() }
    }

    /// Runs the graph on the images `x`, NCHW, into `out`, NCHW. `parameters` and `running` are the trunk's flat
    /// vectors.
    pub fn forward(
        &self,
        x: &[E::Wide],
        parameters: &[E::Wide],
        running: &[f32],
        how: How,
        out: &mut [E::Wide],
    ) -> Kept<E> {
        let packed = if how.record {
            weights::pack(&self.runtime, &self.graph, parameters, how.winograd, how.record)
        } else {
            self.memo.get(&self.runtime, &self.graph, parameters, how.winograd)
        };
        let (from, to) = (self.graph.shapes[0], self.graph.shape(self.graph.last()));
        let threads = rayon::current_num_threads();
        let run = |x: &[E::Wide], out: &mut [E::Wide], threads: usize| {
            let mut input = Buffer::take(&self.runtime, x.len());
            pointwise::channels_last(x, from.channels, from.h * from.w, input.as_mut_slice());
            let n = x.len() / from.len();
            let (value, kept) = self.run(input, (n, threads), parameters, running, how, packed.clone());
            pointwise::channels_first(value.as_slice(), to.channels, to.h * to.w, out);
            kept
        };
        if how.mode == Mode::Train || how.record {
            return run(x, out, threads);
        }
        let n = x.len() / from.len().max(1);
        // As many groups for each thread.
        let group = n.div_ceil(n.div_ceil(GROUP).next_multiple_of(threads).max(1)).max(1);
        let threads = threads.div_ceil(n.div_ceil(group).max(1));
        out.par_chunks_mut(group * to.len()).zip(x.par_chunks(group * from.len())).for_each(|(out, x)| {
            run(x, out, threads);
        });
        Kept { statistics: vec![], saved: None }
    }

    /// Runs the graph on `n` images by so many threads; returns its last value, NHWC, and what is kept.
    fn run(
        &self,
        input: Buffer<E>,
        (n, threads): (usize, usize),
        parameters: &[E::Wide],
        running: &[f32],
        How { mode, record, .. }: How,
        packed: Weights<E>,
    ) -> (Arc<Buffer<E>>, Kept<E>) {
        let (graph, plan) = (&*self.graph, &*self.plan);
        let count = graph.nodes.len();
        let mut saved = Saved {
            n,
            values: (0..=count).map(|_| None).collect(),
            norms: (0..count).map(|_| None).collect(),
            packed,
            winners: (0..count).map(|_| None).collect(),
        };
        // Where a value is stored coarser than it is computed, one in between that is not stored would be another one.
        let exact = size_of::<E>() == size_of::<E::Wide>();
        let whole_tails = exact && mode == Mode::Eval && !record;
        let mut done = vec![false; count];
        let mut per_image: Vec<Option<Vec<E::Wide>>> = vec![None; count + 1];
        let mut statistics = Vec::new();
        saved.values[0] = Some(Arc::new(input));
        for (i, node) in graph.nodes.iter().enumerate() {
            let shape = graph.shapes[i + 1];
            match *node {
                _ if done[i] => {}
                Node::Conv { shape, bias, relu, .. } => {
                    let tail = if whole_tails { &plan.tails[i] } else { &plan.sums[i] };
                    let part = tail
                        .part
                        .map(|(node, first)| (node, Within { channels: graph.shapes[node + 1].channels, first }));
                    let last = part.map_or(*tail.nodes.last().unwrap_or(&i), |(node, _)| node);
                    let target = Value(last + 1);
                    tail.nodes.iter().chain([&last]).for_each(|node| done[*node] = true);
                    let follows = tail.norm.map(|at| self.known_norm(at, parameters, running));
                    // The other part of a concatenation may have been written before.
                    let mut out = match saved.values[target.0].take().map(Arc::try_unwrap) {
                        Some(Ok(half)) => half,
                        _ => Buffer::take(&self.runtime, n * graph.shape(target).len()),
                    };
                    let wants_stats = mode == Mode::Train && plan.normalised[target.0];
                    let mut stats = wants_stats.then(|| vec![E::Wide::default(); n * 2 * shape.c_out]);
                    conv::forward(
                        &self.runtime,
                        &shape,
                        saved.input(graph, plan, node.inputs()[0]),
                        saved.packed(i),
                        After {
                            bias: bias.map(|at| &parameters[at..at + shape.c_out]),
                            affine: follows.as_ref().map(Norm::affine),
                            residual: tail.residual.map(|v| saved.value(v)),
                            relu: relu || tail.relu,
                            within: part.map(|(_, within)| within),
                        },
                        out.as_mut_slice(),
                        stats.as_deref_mut(),
                        threads,
                    );
                    per_image[target.0] = stats;
                    saved.values[target.0] = Some(Arc::new(out));
                }
                Node::BatchNorm { input, gamma, relu, .. } => {
                    let c = shape.channels;
                    saved.norms[i] = Some(match mode {
                        Mode::Train => {
                            let per_image = match per_image[input.0].take() {
                                Some(stats) => stats,
                                None => self.image_stats(saved.value(input), c, shape.len()),
                            };
                            statistics.push(batch_norm::combine(&per_image, c, shape.h * shape.w));
                            norm(&statistics[statistics.len() - 1], &parameters[gamma..gamma + 2 * c], relu, mode)
                        }
                        Mode::Eval => self.known_norm(i, parameters, running),
                    });
                    if !plan.lazy[i + 1] {
                        let mut out = Buffer::take(&self.runtime, n * shape.len());
                        let input = Input { u: saved.value(input), affine: saved.norms[i].as_ref().map(Norm::affine) };
                        pointwise::apply(&self.runtime, input, c, out.as_mut_slice());
                        saved.values[i + 1] = Some(Arc::new(out));
                    }
                }
                _ => {
                    let mut out = Buffer::take(&self.runtime, n * shape.len());
                    match *node {
                        Node::Relu { input } => pointwise::relu(saved.value(input), out.as_mut_slice()),
                        Node::Add { a, b } => pointwise::add(saved.value(a), saved.value(b), out.as_mut_slice()),
                        Node::Concat { a, b } => {
                            let channels = [a, b].map(|v| graph.shape(v).channels);
                            pointwise::concat(saved.value(a), saved.value(b), channels, out.as_mut_slice());
                        }
                        Node::Subsample { input, stride, .. } => {
                            subsample(graph, input, stride, i, saved.value(input), out.as_mut_slice());
                        }
                        Node::Pool { input, shape } => {
                            let mut winner = (shape.max && record).then(|| vec![0; out.as_slice().len()]);
                            let (input, out) = (saved.value(input), out.as_mut_slice());
                            pool::pool(&self.runtime, shape, input, out, winner.as_deref_mut());
                            saved.winners[i] = winner;
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
        (value, Kept { statistics, saved: record.then_some(saved) })
    }

    /// The BatchNorm of node `at` with its running statistics.
    fn known_norm(&self, at: usize, parameters: &[E::Wide], running: &[f32]) -> Norm<E> {
        let Node::BatchNorm { gamma, running: first, relu, .. } = self.graph.nodes[at] else {
            unreachable!("node {at} is a BatchNorm")
        };
        let c = self.graph.shapes[at + 1].channels;
        let of = |first: usize| running[first..first + c].iter().map(|x| f64::from(*x)).collect();
        let statistics = Statistics { mean: of(first), var: of(first + c), count: 0 };
        norm(&statistics, &parameters[gamma..gamma + 2 * c], relu, Mode::Eval)
    }

    fn image_stats(&self, u: &[E], channels: usize, len: usize) -> Vec<E::Wide> {
        let mut out = vec![E::Wide::default(); u.len() / len * 2 * channels];
        out.par_chunks_mut(2 * channels)
            .zip(u.par_chunks(len))
            .for_each(|(out, image)| batch_norm::image_stats(self.runtime.isa, image, channels, out));
        out
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

fn norm<E: Element>(stats: &Statistics, gamma_beta: &[E::Wide], relu: bool, mode: Mode) -> Norm<E> {
    let c = stats.mean.len();
    let inv_std: Vec<f64> = stats.var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
    let scale: Vec<f64> = (0..c).map(|i| gamma_beta[i].f64() * inv_std[i]).collect();
    let shift = (0..c).map(|i| E::Wide::of(gamma_beta[c + i].f64() - scale[i] * stats.mean[i])).collect();
    Norm {
        mean: stats.mean.iter().map(|m| E::Wide::of(*m)).collect(),
        inv_std,
        scale: scale.into_iter().map(E::Wide::of).collect(),
        shift,
        relu,
        mode,
    }
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
