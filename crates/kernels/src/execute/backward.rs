//! The backward pass: the nodes in reverse, gradients waiting at each value until all its readers have sent theirs.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Executor, Mode, Norm, Saved, subsample_places};
use crate::batch_norm::{self, NormSums};
use crate::bias;
use crate::conv;
use crate::graph::{Graph, Node, Value};
use crate::operand::{Gradient, NormGradient};
use crate::pointwise;
use crate::pool;
use crate::runtime::Buffer;
use crate::simd::Element;

impl<E: Element> Executor<E> {
    /// Gradients of a forward pass for the gradient `g` of its output, NHWC: the flat parameters' (zero
    /// where a parameter lies outside this graph) and, if asked for, the input's.
    pub fn backward(
        &self,
        saved: &Saved<E>,
        parameters: &[E::Wide],
        g: Buffer<E>,
        input_gradient: bool,
    ) -> (Vec<E::Wide>, Option<Arc<Buffer<E>>>) {
        let (graph, plan) = (&*self.graph, &*self.plan);
        let mut dp = vec![E::Wide::default(); parameters.len()];
        let mut pending: Vec<Vec<Pending<E>>> = (0..graph.shapes.len()).map(|_| Vec::new()).collect();
        let mut sums: Vec<Option<Vec<E::Wide>>> = vec![None; graph.nodes.len()];
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
                Node::Concat { a, b } => {
                    let g = self.stored(saved, out, channels);
                    let channels = [a, b].map(|v| graph.shape(v).channels);
                    let [mut da, mut db] = [a, b].map(|v| Buffer::take(&self.runtime, saved.n * graph.shape(v).len()));
                    pointwise::split(g.as_slice(), channels, da.as_mut_slice(), db.as_mut_slice());
                    pending[a.0].push(Pending { g: Arc::new(da), norm: None });
                    pending[b.0].push(Pending { g: Arc::new(db), norm: None });
                }
                Node::Conv { input, shape, weight, bias, relu } => {
                    let g = self.single(saved, out, channels);
                    let wanted = input.0 > 0 || input_gradient;
                    let (mut dx, accumulate) = match wanted.then(|| take_owned(&mut pending[input.0])) {
                        Some(Some(buffer)) => (Some(buffer), true),
                        Some(None) => (Some(Buffer::take(&self.runtime, saved.n * shape.input_len())), false),
                        None => (None, false),
                    };
                    let mut image_sums = plan.sums_for[i].map(|_| vec![E::Wide::default(); saved.n * 2 * shape.c_in]);
                    let open = relu.then(|| saved.value(Value(i + 1)));
                    let gradient = Gradient { relu: open, ..g.gradient(saved, graph) };
                    if let Some(at) = bias {
                        let db = &mut dp[at..at + shape.c_out];
                        bias::gradient(self.runtime.isa, gradient, shape.output_len(), db);
                    }
                    let norm = plan.sums_for[i].and_then(|bn| saved.norms[bn].as_ref().map(|n| (bn, n)));
                    conv::backward(
                        &self.runtime,
                        &shape,
                        saved.input(graph, plan, input),
                        gradient,
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
                    pool::pool_gradient(shape, g.as_slice(), saved.winners[i].as_deref(), dx.as_mut_slice());
                    pending[input.0].push(Pending { g: Arc::new(dx), norm: None });
                }
            }
        }
        let at_input = std::mem::take(&mut pending[0]);
        let dx =
            (input_gradient && !at_input.is_empty()).then(|| self.stored(saved, at_input, graph.shapes[0].channels));
        (dp, dx)
    }

    fn image_sums(&self, g: &[E], u: &[E], norm: &Norm<E>, len: usize) -> Vec<E::Wide> {
        let channels = norm.mean.len();
        let mut out = vec![E::Wide::default(); u.len() / len * 2 * channels];
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

/// A gradient on its way to a value: stored, or to be formed from BatchNorm's.
struct Pending<E: Element> {
    g: Arc<Buffer<E>>,
    norm: Option<(usize, Arc<Coefficients<E::Wide>>)>,
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
        Gradient { g: self.g.as_slice(), norm, relu: None }
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

/// (d gamma, d beta) and the coefficients of the input's gradient (Ioffe & Szegedy 2015, section 3).
fn norm_gradient<E: Element>(
    norm: &Norm<E>,
    gamma: &[E::Wide],
    per_image: &[E::Wide],
    count: f64,
) -> (Vec<E::Wide>, Coefficients<E::Wide>) {
    let c = gamma.len();
    let (sum, product) = batch_norm::combine_sums(per_image, c);
    let mut d = vec![E::Wide::default(); 2 * c];
    let mut back = Coefficients { slope: vec![], spread: vec![], offset: vec![] };
    for i in 0..c {
        let (inv, mean) = (norm.inv_std[i], norm.mean[i].f64());
        let dgamma = product[i] * inv;
        d[i] = E::Wide::of(dgamma);
        d[c + i] = E::Wide::of(sum[i]);
        let slope = gamma[i].f64() * inv;
        let spread = match norm.mode {
            Mode::Train => -slope * inv * dgamma / count,
            Mode::Eval => 0.0,
        };
        let offset = match norm.mode {
            Mode::Train => -slope * sum[i] / count - spread * mean,
            Mode::Eval => 0.0,
        };
        back.slope.push(E::Wide::of(slope));
        back.spread.push(E::Wide::of(spread));
        back.offset.push(E::Wide::of(offset));
    }
    (d, back)
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
