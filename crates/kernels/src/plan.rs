//! Which values of a graph are stored, and which operations ride along with a convolution.

use crate::graph::{Graph, Node, Value};

/// What a convolution does to its output while it stores it, in this order, each or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tail {
    /// The BatchNorm's node, whose statistics must be known beforehand.
    pub norm: Option<usize>,
    /// What is added to it.
    pub residual: Option<Value>,
    /// Whether a ReLU node follows.
    pub relu: bool,
    /// What it is then a part of: the node of a concatenation, and the first of its channels there.
    pub part: Option<(usize, usize)>,
    /// The nodes that are done by it.
    pub nodes: Vec<usize>,
}

/// What the executor decides once, when a graph is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// BatchNorm values that are never stored: every reader is a convolution, which applies the
    /// BatchNorm (and ReLU) while it copies its operand.
    pub lazy: Vec<bool>,
    /// For a convolution: the sum that it writes itself, if it is its only reader.
    pub sums: Vec<Tail>,
    /// For a convolution: all that it can write itself where no value in between is kept and every statistic is known.
    pub tails: Vec<Tail>,
    /// For a convolution that reads a lazy BatchNorm and is the last to add to its gradient: that
    /// BatchNorm's node, whose backward sums it takes on the way.
    pub sums_for: Vec<Option<usize>>,
    /// For each value: the last node that reads it.
    pub last_reader: Vec<Option<usize>>,
    /// For each value: whether a BatchNorm reads it.
    pub normalised: Vec<bool>,
}

impl Plan {
    /// Analyses `graph`.
    pub fn new(graph: &Graph) -> Plan {
        let n = graph.nodes.len();
        let mut readers = vec![Vec::new(); n + 1];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs() {
                readers[v.0].push(i);
            }
        }
        let is_conv = |i: &usize| matches!(graph.nodes[*i], Node::Conv { .. });
        let lazy = (0..=n)
            .map(|v| {
                let norm = v > 0 && matches!(graph.nodes[v - 1], Node::BatchNorm { .. });
                norm && v < n && !readers[v].is_empty() && readers[v].iter().all(is_conv)
            })
            .collect::<Vec<_>>();
        let tails = |whole: bool| (0..n).map(|i| tail(graph, &readers, &lazy, i, whole)).collect();
        let (sums, mut tails): (Vec<Tail>, Vec<Tail>) = (tails(false), tails(true));
        for (at, node) in graph.nodes.iter().enumerate() {
            let Node::Concat { a, b } = *node else { continue };
            let ends_at = |v: Value| {
                let ends = |i: usize| is_conv(&i) && tails[i].nodes.last().unwrap_or(&i) + 1 == v.0;
                (0..v.0).find(|&i| ends(i)).filter(|_| readers[v.0].len() == 1)
            };
            // Both write their channels of the one value.
            if let (Some(first), Some(second)) = (ends_at(a), ends_at(b)) {
                tails[first].part = Some((at, 0));
                tails[second].part = Some((at, graph.shape(a).channels));
            }
        }
        let mut sums_for = vec![None; n];
        for v in (1..=n).filter(|&v| lazy[v]) {
            sums_for[readers[v][0]] = Some(v - 1);
        }
        let normalised =
            readers.iter().map(|r| r.iter().any(|&i| matches!(graph.nodes[i], Node::BatchNorm { .. }))).collect();
        let mut last_reader: Vec<_> = readers.iter().map(|r| r.last().copied()).collect();
        // A lazy value lives in what its BatchNorm reads.
        for v in (1..=n).rev().filter(|&v| lazy[v]) {
            let u = graph.nodes[v - 1].inputs()[0];
            last_reader[u.0] = last_reader[u.0].max(last_reader[v]);
        }
        Plan { lazy, sums, tails, sums_for, last_reader, normalised }
    }
}

/// What node `i` can take over if it is a convolution: a sum, or the `whole` of what may follow.
fn tail(graph: &Graph, readers: &[Vec<usize>], lazy: &[bool], i: usize, whole: bool) -> Tail {
    let mut tail = Tail::default();
    let mut value = Value(i + 1);
    if !matches!(graph.nodes[i], Node::Conv { relu: false, .. }) {
        return tail;
    }
    while let ([reader], false) = (&readers[value.0][..], tail.relu) {
        match graph.nodes[*reader] {
            // A lazy one is applied by who reads it.
            Node::BatchNorm { .. } if whole && tail.nodes.is_empty() && !lazy[reader + 1] => tail.norm = Some(*reader),
            Node::Add { a, b } if tail.residual.is_none() => {
                let other = if a == value { b } else { a };
                // It must be there when the convolution runs.
                if other.0 > i {
                    break;
                }
                tail.residual = Some(other);
            }
            Node::Relu { .. } if whole => tail.relu = true,
            _ => break,
        }
        tail.nodes.push(*reader);
        value = Value(reader + 1);
    }
    tail
}
