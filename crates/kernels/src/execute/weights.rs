//! The packed weights of a graph, kept from one pass to the next where they do not change.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::conv::{Algorithm, Packed};
use crate::graph::{Graph, Node};
use crate::runtime::Runtime;
use crate::simd::Element;

/// The weights of every convolution, packed.
pub type Weights<E> = Arc<Vec<Option<Packed<E>>>>;

/// Packed weights and what they were packed from.
#[derive(Debug)]
struct Known<E: Element> {
    weights: Vec<Option<Vec<E::Wide>>>,
    winograd: bool,
    packed: Weights<E>,
}

/// The last weights of a network that is not being trained.
///
/// Packing is a tenth of a ResNet-18's pass over a few images of 224x224. What was packed is recognised by its numbers and not by
/// its place in memory: optimisers write in place, and comparing costs far less than packing.
#[derive(Debug, Default)]
pub struct Memo<E: Element>(Mutex<Option<Arc<Known<E>>>>);

fn weights<'a, E: Element>(graph: &'a Graph, parameters: &'a [E::Wide]) -> impl Iterator<Item = Option<&'a [E::Wide]>> {
    graph.nodes.iter().map(|node| match node {
        Node::Conv { shape, weight, .. } => Some(&parameters[*weight..weight + shape.weight_len()]),
        _ => None,
    })
}

impl<E: Element> Memo<E> {
    /// The weights packed for the forward pass alone, anew only if they are others than the last time.
    pub fn get(&self, runtime: &Arc<Runtime<E>>, graph: &Graph, parameters: &[E::Wide], winograd: bool) -> Weights<E> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|k| k.winograd == winograd && k.holds(graph, parameters)) {
            return known.packed.clone();
        }
        // The buffers of the old ones are free for the new ones.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let packed = pack(runtime, graph, parameters, winograd, false);
        let weights = weights::<E>(graph, parameters).map(|w| w.map(<[_]>::to_vec)).collect();
        let known = Known { weights, winograd, packed: packed.clone() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(known));
        packed
    }
}

impl<E: Element> Known<E> {
    /// Bit by bit: 0 and -0 are two numbers here, a NaN is itself.
    fn holds(&self, graph: &Graph, parameters: &[E::Wide]) -> bool {
        let pairs: Vec<_> = self.weights.iter().zip(weights::<E>(graph, parameters)).collect();
        pairs.par_iter().all(|(old, new)| match (old, new) {
            (Some(old), Some(new)) => bytes(old) == bytes(new),
            _ => true,
        })
    }
}

fn bytes<W: Element>(values: &[W]) -> &[u8] {
    // SAFETY: the memory of floats, which have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Packs the weights of all convolutions; for the backward pass too only if asked to.
pub fn pack<E: Element>(
    runtime: &Arc<Runtime<E>>,
    graph: &Graph,
    parameters: &[E::Wide],
    winograd: bool,
    backward: bool,
) -> Weights<E> {
    let nodes: Vec<_> = graph.nodes.iter().zip(weights::<E>(graph, parameters)).collect();
    let one = |(node, weight): &(&Node, Option<&[E::Wide]>)| match (node, weight) {
        (Node::Conv { shape, .. }, Some(weight)) => {
            let algorithm = if winograd { shape.algorithm::<E>(runtime.isa) } else { Algorithm::Direct };
            Some(Packed::new(runtime, shape, algorithm, weight, backward))
        }
        _ => None,
    };
    Arc::new(nodes.par_iter().map(one).collect())
}
