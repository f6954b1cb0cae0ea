//! Nodes and constants of an ONNX graph under construction.

use super::message::{Attribute, Graph, Node, Tensor, Value};

/// A graph whose nodes are added in order. Values are known by their names.
#[derive(Default)]
pub struct Builder {
    nodes: Vec<Node>,
    constants: Vec<Tensor>,
}

impl Builder {
    /// Adds an f32 constant; returns its name.
    pub fn constant(&mut self, name: impl Into<String>, shape: &[usize], values: &[f32]) -> String {
        let name = name.into();
        self.constants.push(Tensor::f32(name.clone(), shape, values));
        name
    }

    /// Adds a node; its only output is named like the node.
    pub fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![name.to_string()],
            name: name.to_string(),
            op_type: op.to_string(),
            attribute: attributes,
        });
        name.to_string()
    }

    /// The same with whole numbers as further inputs, in the order in which the operator takes them.
    pub fn node_with(&mut self, op: &str, name: &str, input: &str, numbers: &[(&str, &[i64])]) -> String {
        let mut inputs = vec![input.to_string()];
        for (what, values) in numbers {
            let constant = format!("{name}.{what}");
            self.constants.push(Tensor::i64(constant.clone(), values));
            inputs.push(constant);
        }
        self.node(op, name, &inputs.iter().map(String::as_str).collect::<Vec<_>>(), vec![])
    }

    /// Gives a value another name.
    pub fn same(&mut self, name: &str, value: &str) {
        self.node("Identity", name, &[value], vec![]);
    }

    /// max(x, 0).
    pub fn relu(&mut self, name: &str, input: &str) -> String {
        self.node("Relu", name, &[input], vec![])
    }

    /// Zeros around images and around their channels: before and behind, of each.
    pub fn pad(&mut self, name: &str, input: &str, channels: [usize; 2], pixels: usize) -> String {
        let [before, behind] = channels.map(|c| c as i64);
        let p = pixels as i64;
        self.node_with("Pad", name, input, &[("pads", &[0, before, p, p, 0, behind, p, p])])
    }

    /// The mean over all positions, as rows.
    pub fn mean(&mut self, name: &str, input: &str) -> String {
        let mean = self.node("GlobalAveragePool", &format!("{name}.mean"), &[input], vec![]);
        self.node("Flatten", name, &[&mean], vec![Attribute::int("axis", 1)])
    }

    /// The graph; the value `from` is handed out under the name `to`.
    pub fn finish(mut self, name: &str, renamed: (&str, &str), input: Value, output: Vec<Value>) -> Graph {
        let (from, to) = renamed;
        let names = self.nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
        names.filter(|name| *name == from).for_each(|name| *name = to.to_string());
        Graph { node: self.nodes, name: name.to_string(), initializer: self.constants, input: vec![input], output }
    }
}
