//! Which values of a graph are stored, and which operations ride along with a convolution.

use crate::graph::{Graph, Node, Value};

/// What the executor decides once, when a graph is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// BatchNorm values that are never stored: every reader is a convolution, which applies the
    /// BatchNorm (and ReLU) while it copies its operand.
    pub lazy: Vec<bool>,
    /// For a convolution without a ReLU whose only reader is a sum: the sum's value, written by the convolution
    /// itself, and the other summand.
    pub fused_sum: Vec<Option<(Value, Value)>>,
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
        let mut fused_sum = vec![None; n];
        for (i, node) in graph.nodes.iter().enumerate() {
            let Node::Add { a, b } = *node else { continue };
            // The later summand's convolution can add the earlier one, which is there by then.
            let (late, early) = if a > b { (a, b) } else { (b, a) };
            let sums = late.0 > 0 && matches!(graph.nodes[late.0 - 1], Node::Conv { relu: false, .. });
            if late != early && sums && readers[late.0].len() == 1 {
                fused_sum[late.0 - 1] = Some((Value(i + 1), early));
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
        Plan { lazy, fused_sum, sums_for, last_reader, normalised }
    }
}
