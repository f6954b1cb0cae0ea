//! What makes logits of the activations at `last`: a sequence of steps, of which some have parameters.

use kernels::graph::{Graph, Init, Shape};

use super::Options;

/// A step. Parameters are given by their offset in the flat vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// The mean over all positions: (n, k, h, w) to (n, k).
    Pool,
    /// Average pooling to this many rows and columns, PyTorch's windows.
    AdaptivePool(usize),
    /// So many rows and columns of zeros on each side of (n, k, h, w).
    Pad(usize),
    /// Activations (n, k, h, w) to rows (n, k h w).
    Flatten,
    /// In training, zero with this probability, and what is left scaled up.
    Dropout(f64),
    /// max(x, 0).
    Relu,
    /// Rows times a weight (outputs, inputs), plus a bias.
    Linear {
        /// Offset of the weight.
        weight: usize,
        /// Offset of the bias (outputs,).
        bias: usize,
        /// Columns of the weight.
        inputs: usize,
        /// Rows of the weight.
        outputs: usize,
    },
    /// A 1x1 convolution with bias: the same at every position.
    Conv {
        /// Offset of the weight (outputs, inputs, 1, 1).
        weight: usize,
        /// Offset of the bias (outputs,).
        bias: usize,
        /// Channels in.
        inputs: usize,
        /// Channels out.
        outputs: usize,
    },
}

/// Where the parameters of a linear head lie, and its sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearAt {
    /// Offset of the weight (outputs, inputs).
    pub weight: usize,
    /// Offset of the bias (outputs,).
    pub bias: usize,
    /// Channels at `last`.
    pub inputs: usize,
    /// Classes.
    pub outputs: usize,
}

/// The steps behind `last`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classifier {
    /// In order.
    pub steps: Vec<Step>,
}

impl Classifier {
    /// Average pooling and a linear layer `fc`: what most networks end with, and where the closed forms of the maps hold.
    pub fn pooled(graph: &mut Graph, classes: usize, _: &Options) -> Classifier {
        let k = graph.shape(graph.last()).channels;
        Classifier { steps: vec![Step::Pool, Self::linear(graph, "fc", k, classes)] }
    }

    /// A linear layer with parameters `{name}.{weight,bias}`.
    pub fn linear(graph: &mut Graph, name: &str, inputs: usize, outputs: usize) -> Step {
        let (weight, bias) = Self::parameters(graph, name, vec![outputs, inputs], inputs);
        Step::Linear { weight, bias, inputs, outputs }
    }

    /// A 1x1 convolution with parameters `{name}.{weight,bias}`.
    pub fn conv(graph: &mut Graph, name: &str, inputs: usize, outputs: usize) -> Step {
        let (weight, bias) = Self::parameters(graph, name, vec![outputs, inputs, 1, 1], inputs);
        Step::Conv { weight, bias, inputs, outputs }
    }

    fn parameters(graph: &mut Graph, name: &str, shape: Vec<usize>, fan_in: usize) -> (usize, usize) {
        let outputs = shape[0];
        let weight = graph.parameter(format!("{name}.weight"), shape, Init::Kaiming { fan_in });
        (weight, graph.parameter(format!("{name}.bias"), vec![outputs], Init::Zeros))
    }

    /// Pooling and a linear layer, in either order, if in eval mode that is all.
    pub fn linear_head(&self) -> Option<LinearAt> {
        let matters = |s: &&Step| !matches!(s, Step::Dropout(_) | Step::Flatten);
        let steps: Vec<&Step> = self.steps.iter().filter(matters).collect();
        let ([Step::Pool, Step::Linear { weight, bias, inputs, outputs }]
        | [Step::Conv { weight, bias, inputs, outputs }, Step::Pool]) = steps[..]
        else {
            return None;
        };
        Some(LinearAt { weight: *weight, bias: *bias, inputs: *inputs, outputs: *outputs })
    }

    /// Multiplications and additions, per image whose activations have this shape.
    pub fn macs(&self, last: Shape) -> usize {
        let (mut rows, mut columns) = (last.h, last.w);
        let of = |step: &Step| match *step {
            Step::Pool | Step::Flatten => {
                (rows, columns) = (1, 1);
                0
            }
            Step::AdaptivePool(side) => {
                (rows, columns) = (side, side);
                0
            }
            Step::Pad(by) => {
                (rows, columns) = (rows + 2 * by, columns + 2 * by);
                0
            }
            Step::Linear { inputs, outputs, .. } => inputs * outputs,
            Step::Conv { inputs, outputs, .. } => inputs * outputs * rows * columns,
            Step::Dropout(_) | Step::Relu => 0,
        };
        self.steps.iter().map(of).sum()
    }
}
