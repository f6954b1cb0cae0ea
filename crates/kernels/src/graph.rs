//! A network as a list of nodes: the one description that every backend runs.
//!
//! All parameters of a network lie in one flat vector and all running statistics in another, in the
//! order in which the nodes were added. A checkpoint is that vector cut up by name.

use crate::pool::{PoolShape, Window};
use crate::task::ConvShape;

/// BatchNorm's epsilon, as in PyTorch.
pub const EPS: f64 = 1e-5;

/// A value of a [`Graph`]: 0 is the input, node i makes value i + 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub usize);

/// Sizes of one image's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
}

impl Shape {
    /// Elements of one image.
    pub fn len(&self) -> usize {
        self.channels * self.h * self.w
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One operation. Parameters are given by their offset in the flat vector.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Convolution, with or without a ReLU behind it.
    Conv {
        /// What it reads.
        input: Value,
        /// Sizes.
        shape: ConvShape,
        /// Offset of the weight (c_out, c_in, k, k).
        weight: usize,
        /// Offset of the bias (c_out,), if there is one.
        bias: Option<usize>,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// BatchNorm, with or without a ReLU behind it.
    BatchNorm {
        /// What it reads.
        input: Value,
        /// Offset of gamma (channels,); beta follows it.
        gamma: usize,
        /// Offset of the running mean (channels,) among the statistics; the running variance follows it.
        running: usize,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// max(x, 0).
    Relu {
        /// What it reads.
        input: Value,
    },
    /// Sum of two values of one shape.
    Add {
        /// One.
        a: Value,
        /// The other.
        b: Value,
    },
    /// The channels of `a`, then those of `b`.
    Concat {
        /// First.
        a: Value,
        /// Second.
        b: Value,
    },
    /// He et al.'s parameter-free shortcut ("option A"): every `stride`-th pixel, new channels zero,
    /// as many before the old ones as after.
    Subsample {
        /// What it reads.
        input: Value,
        /// Step between pixels.
        stride: usize,
        /// Output channels.
        channels: usize,
    },
    /// Maximum or mean pooling.
    Pool {
        /// What it reads.
        input: Value,
        /// Sizes.
        shape: PoolShape,
    },
}

impl Node {
    /// The values it reads.
    pub fn inputs(&self) -> Vec<Value> {
        match *self {
            Node::Conv { input, .. }
            | Node::BatchNorm { input, .. }
            | Node::Relu { input }
            | Node::Subsample { input, .. }
            | Node::Pool { input, .. } => vec![input],
            Node::Add { a, b } | Node::Concat { a, b } => vec![a, b],
        }
    }

    /// The same, to change them.
    pub fn inputs_mut(&mut self) -> Vec<&mut Value> {
        match self {
            Node::Conv { input, .. }
            | Node::BatchNorm { input, .. }
            | Node::Relu { input }
            | Node::Subsample { input, .. }
            | Node::Pool { input, .. } => vec![input],
            Node::Add { a, b } | Node::Concat { a, b } => vec![a, b],
        }
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with standard deviation sqrt(2 / fan_in) (He et al. 2015).
    Kaiming {
        /// Inputs of one output.
        fan_in: usize,
    },
    /// BatchNorm's gamma: ones, or uniform in [0, 1).
    Gamma,
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
}

/// A named slice of the flat parameters or of the flat statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// PyTorch's name.
    pub name: String,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// Where it starts.
    pub offset: usize,
    /// How it starts.
    pub init: Init,
}

impl Entry {
    /// Its elements in the flat vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.iter().product::<usize>()
    }
}

/// A network's trunk: nodes, shapes, parameters, and the layers at which it can be cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Operations in order.
    pub nodes: Vec<Node>,
    /// Shape of every value; the input's first.
    pub shapes: Vec<Shape>,
    /// Parameters; a classifier behind the trunk appends its own.
    pub parameters: Vec<Entry>,
    /// BatchNorm's running means and variances.
    pub statistics: Vec<Entry>,
    /// Layers where exactly one value is alive: name and value, in order.
    pub cuts: Vec<(String, Value)>,
}

fn end(entries: &[Entry]) -> usize {
    entries.last().map_or(0, |e| e.range().end)
}

impl Graph {
    /// An empty network for images of this shape.
    pub fn new(input: Shape) -> Self {
        Graph { nodes: vec![], shapes: vec![input], parameters: vec![], statistics: vec![], cuts: vec![] }
    }

    /// The last value.
    pub fn last(&self) -> Value {
        Value(self.nodes.len())
    }

    /// Shape of a value.
    pub fn shape(&self, v: Value) -> Shape {
        self.shapes[v.0]
    }

    /// Elements of the flat parameters.
    pub fn parameter_len(&self) -> usize {
        end(&self.parameters)
    }

    /// Where, among the flat parameters, the last one ends that its nodes read: a classifier's lie behind it.
    pub fn parameters_end(&self) -> usize {
        let ends = self.nodes.iter().enumerate().map(|(i, node)| match node {
            Node::Conv { shape, weight, bias, .. } => {
                (weight + shape.weight_len()).max(bias.map_or(0, |bias| bias + shape.c_out))
            }
            Node::BatchNorm { gamma, .. } => gamma + 2 * self.shapes[i + 1].channels,
            _ => 0,
        });
        ends.max().unwrap_or(0)
    }

    /// Elements of the flat running statistics.
    pub fn statistics_len(&self) -> usize {
        end(&self.statistics)
    }

    /// Multiplications and additions of all convolutions, an image.
    pub fn macs(&self) -> usize {
        self.nodes.iter().map(|n| if let Node::Conv { shape, .. } = n { shape.macs() } else { 0 }).sum()
    }

    /// Appends a parameter; returns its offset.
    pub fn parameter(&mut self, name: String, shape: Vec<usize>, init: Init) -> usize {
        let offset = self.parameter_len();
        self.parameters.push(Entry { name, shape, offset, init });
        offset
    }

    fn push(&mut self, node: Node, shape: Shape) -> Value {
        self.nodes.push(node);
        self.shapes.push(shape);
        self.last()
    }

    /// A convolution with parameter `{name}.weight`. The caller has checked that the kernel fits.
    pub fn conv(&mut self, name: &str, input: Value, c_out: usize, k: usize, stride: usize, padding: usize) -> Value {
        self.convolution(name, input, false, [c_out, k, stride, padding])
    }

    /// The same with parameters `{name}.{weight,bias}`.
    pub fn conv_biased(
        &mut self,
        name: &str,
        input: Value,
        c_out: usize,
        k: usize,
        stride: usize,
        padding: usize,
    ) -> Value {
        self.convolution(name, input, true, [c_out, k, stride, padding])
    }

    fn convolution(&mut self, name: &str, input: Value, biased: bool, sizes: [usize; 4]) -> Value {
        let [c_out, k, stride, padding] = sizes;
        let Shape { channels: c_in, h, w } = self.shape(input);
        let weight =
            self.parameter(format!("{name}.weight"), vec![c_out, c_in, k, k], Init::Kaiming { fan_in: c_in * k * k });
        let bias = biased.then(|| self.parameter(format!("{name}.bias"), vec![c_out], Init::Zeros));
        let shape = ConvShape { h, w, c_in, c_out, k, stride, padding };
        assert!(shape.fits(), "{name}: the kernel of {shape:?} does not fit");
        let out = Shape { channels: c_out, h: shape.out_h(), w: shape.out_w() };
        self.push(Node::Conv { input, shape, weight, bias, relu: false }, out)
    }

    /// BatchNorm with parameters `{name}.{weight,bias}` and statistics `{name}.running_{mean,var}`.
    pub fn batch_norm(&mut self, name: &str, input: Value, relu: bool) -> Value {
        let shape = self.shape(input);
        let c = vec![shape.channels];
        let gamma = self.parameter(format!("{name}.weight"), c.clone(), Init::Gamma);
        self.parameter(format!("{name}.bias"), c.clone(), Init::Zeros);
        let running = self.statistics_len();
        for (what, init) in [("mean", Init::Zeros), ("var", Init::Ones)] {
            let offset = self.statistics_len();
            self.statistics.push(Entry { name: format!("{name}.running_{what}"), shape: c.clone(), offset, init });
        }
        self.push(Node::BatchNorm { input, gamma, running, relu }, shape)
    }

    /// ReLU; one right behind a convolution or a BatchNorm becomes part of it, unless the network can be cut in between.
    pub fn relu(&mut self, input: Value) -> Value {
        if input == self.last()
            && self.cuts.last().is_none_or(|(_, cut)| *cut != input)
            && let Some(Node::Conv { relu, .. } | Node::BatchNorm { relu, .. }) = self.nodes.last_mut()
        {
            *relu = true;
            return input;
        }
        self.separate_relu(input)
    }

    /// ReLU whose input is needed elsewhere too.
    pub fn separate_relu(&mut self, input: Value) -> Value {
        self.push(Node::Relu { input }, self.shape(input))
    }

    /// `a + b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        assert_eq!(self.shape(a), self.shape(b), "values of two shapes cannot be added");
        self.push(Node::Add { a, b }, self.shape(a))
    }

    /// The channels of `a`, then those of `b`.
    pub fn concat(&mut self, a: Value, b: Value) -> Value {
        let (first, second) = (self.shape(a), self.shape(b));
        assert_eq!((first.h, first.w), (second.h, second.w), "images of two sizes cannot be put together");
        self.push(Node::Concat { a, b }, Shape { channels: first.channels + second.channels, ..first })
    }

    /// The parameter-free shortcut; the value itself where nothing changes.
    pub fn subsample(&mut self, input: Value, stride: usize, channels: usize) -> Value {
        let Shape { channels: c, h, w } = self.shape(input);
        if stride == 1 && channels == c {
            return input;
        }
        let shape = Shape { channels, h: h.div_ceil(stride), w: w.div_ceil(stride) };
        self.push(Node::Subsample { input, stride, channels }, shape)
    }

    /// Maximum or mean pooling without padding. The caller has checked that the window fits.
    pub fn pool(&mut self, input: Value, k: usize, stride: usize, max: bool) -> Value {
        self.pool_window(input, Window::new(k, stride), max)
    }

    /// Maximum or mean pooling over any window. The caller has checked that it [fits](PoolShape::fits).
    pub fn pool_window(&mut self, input: Value, window: Window, max: bool) -> Value {
        let Shape { channels, h, w } = self.shape(input);
        let shape = PoolShape { h, w, channels, window, max };
        assert!(shape.fits(), "the window of {shape:?} does not fit");
        self.push(Node::Pool { input, shape }, Shape { channels, h: shape.out_h(), w: shape.out_w() })
    }

    /// Names the last value as a layer at which the network can be cut.
    pub fn cut(&mut self, name: &str) {
        let v = self.last();
        self.cuts.push((name.to_string(), v));
    }

    /// The nodes between two values as a graph of its own, with the same offsets and without cuts.
    ///
    /// `None` if a node in between reads a value from before `from`, or nothing lies in between.
    pub fn between(&self, from: Value, to: Value) -> Option<Graph> {
        if to <= from {
            return None;
        }
        let nodes = self.nodes[from.0..to.0].to_vec();
        if nodes.iter().flat_map(Node::inputs).any(|v| v < from) {
            return None;
        }
        let mut graph = Graph { nodes, cuts: vec![], ..self.clone() };
        graph.shapes = self.shapes[from.0..=to.0].to_vec();
        for input in graph.nodes.iter_mut().flat_map(Node::inputs_mut) {
            input.0 -= from.0;
        }
        Some(graph)
    }
}
