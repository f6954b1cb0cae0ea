//! The gradient of a score at an inner layer as a tensor that a loss can differentiate once more, exactly, with nothing
//! but first-order autograd.
//!
//! Let G = d y / d A be that gradient and U what the loss passes back to it. What has to be differentiated is `<U, G>`,
//! and that is the derivative of y along U: one pass of the head that carries tangents beside values (forward mode), in
//! which every ReLU is open or shut as its value says. Its own gradient with respect to the parameters and, for scores
//! that bend, to A is an ordinary backward pass. No sum over second derivatives is ever formed.

use std::sync::Arc;

use cams::Score;
use cams::maps::gated;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor, Var, bail};
use kernels::Value;
use kernels::device::{Trunk, known};
use kernels::graph::{EPS, Graph, Node};
use kernels::stage::{Memory, Mode, Precision, Stage};

use super::{Engine, Parameters, by_ops};
use crate::models::Architecture;

/// The part of a network behind the explained layer.
pub struct Head {
    /// Its pieces up to `last`, in order.
    pub graphs: Vec<Graph>,
    /// What follows them.
    pub architecture: Architecture,
    /// The network's running statistics, flat.
    pub running: Tensor,
    /// What convolutions run on.
    pub engine: Engine,
    /// Their memory.
    pub memory: Memory,
}

/// A value and its derivative along the direction.
#[derive(Clone)]
struct Dual {
    value: Tensor,
    tangent: Tensor,
}

impl Dual {
    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Dual> {
        Ok(Dual { value: f(&self.value)?, tangent: f(&self.tangent)? })
    }
    /// ReLU: both pass where the value is positive.
    fn relu(&self) -> Result<Dual> {
        self.map(|t| gated(&self.value, t))
    }
}

impl Head {
    /// The linear part of one node as a graph of its own.
    fn single(graph: &Graph, node: usize) -> Graph {
        let mut one = graph.nodes[node].clone();
        let from = one.inputs()[0];
        one.inputs_mut().into_iter().for_each(|input| *input = Value(0));
        if let Node::Conv { bias, relu, .. } = &mut one {
            (*bias, *relu) = (None, false);
        }
        let shapes = vec![graph.shape(from), graph.shapes[node + 1]];
        Graph { nodes: vec![one], shapes, parameters: vec![], statistics: vec![], cuts: vec![] }
    }

    /// A linear node, on values and tangents alike.
    fn linear(&self, graph: &Graph, node: usize, x: &Dual, parameters: &Tensor) -> Result<Dual> {
        let single = Head::single(graph, node);
        match self.engine {
            Engine::Kernels if matches!(single.nodes[0], Node::Conv { .. }) => {
                let stage = Stage::new(single, &self.memory);
                return x.map(|t| Ok(stage.forward(t, parameters, &[], Mode::Eval, Precision::Full)?.0));
            }
            Engine::Device => {
                let trunk = Trunk::new(single);
                return x.map(|t| Ok(trunk.forward(t, parameters, &self.running, Mode::Eval, Precision::Full)?.0));
            }
            Engine::Kernels | Engine::Ops => {}
        }
        x.map(|t| by_ops::forward(&single, t, parameters, &self.running, Mode::Eval, &mut vec![]))
    }

    fn batch_norm(&self, x: &Dual, parameters: &Tensor, gamma: usize, at: usize) -> Result<Dual> {
        let c = x.value.dim(1)?;
        let column = |t: Tensor| t.reshape((1, c, 1, 1));
        let statistic = |at: usize| column(self.running.narrow(0, at, c)?.to_dtype(x.value.dtype())?);
        let scale = (column(parameters.narrow(0, gamma, c)?)? / (statistic(at + c)? + EPS)?.sqrt()?)?;
        let shift = column(parameters.narrow(0, gamma + c, c)?)?;
        let value = x.value.broadcast_sub(&statistic(at)?)?.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        Ok(Dual { value, tangent: x.tangent.broadcast_mul(&scale)? })
    }

    /// Logits and their derivative along `direction`, both (n, classes), in eval mode.
    fn tangent(&self, features: &Tensor, direction: &Tensor, parameters: &Parameters) -> Result<(Tensor, Tensor)> {
        let mut x = Dual { value: features.clone(), tangent: direction.clone() };
        for graph in &self.graphs {
            let mut values = vec![x];
            for (i, node) in graph.nodes.iter().enumerate() {
                let y = match *node {
                    Node::BatchNorm { input, gamma, running, relu } => {
                        let y = self.batch_norm(&values[input.0], &parameters.trunk, gamma, running)?;
                        if relu { y.relu()? } else { y }
                    }
                    Node::Relu { input } => values[input.0].relu()?,
                    Node::Add { a, b } => {
                        let (a, b) = (&values[a.0], &values[b.0]);
                        Dual { value: (&a.value + &b.value)?, tangent: (&a.tangent + &b.tangent)? }
                    }
                    Node::Pool { shape, .. } if shape.max => bail!(
                        "loss.gradient = \"double\" does not go through max pooling behind the explained layer: use \"stop_grad\""
                    ),
                    Node::Concat { a, b } => {
                        let (a, b) = (&values[a.0], &values[b.0]);
                        Dual {
                            value: Tensor::cat(&[&a.value, &b.value], 1)?,
                            tangent: Tensor::cat(&[&a.tangent, &b.tangent], 1)?,
                        }
                    }
                    Node::Conv { input, shape, bias, relu, .. } => {
                        let mut y = self.linear(graph, i, &values[input.0], &parameters.trunk)?;
                        if let Some(at) = bias {
                            let bias = parameters.trunk.narrow(0, at, shape.c_out)?.reshape((1, shape.c_out, 1, 1))?;
                            y.value = y.value.broadcast_add(&bias)?;
                        }
                        if relu { y.relu()? } else { y }
                    }
                    Node::Subsample { input, .. } | Node::Pool { input, .. } => {
                        self.linear(graph, i, &values[input.0], &parameters.trunk)?
                    }
                };
                values.push(y);
            }
            x = values.swap_remove(graph.nodes.len());
        }
        parameters.tail(&self.architecture).tangent(&x.value, &x.tangent)
    }
}

/// `gradient` (n, k, h, w), the score's at `features` under `parameters`, as a function of both.
pub fn differentiable(
    head: Arc<Head>,
    features: &Tensor,
    parameters: &Parameters,
    gradient: &Tensor,
    score: Score,
    classes: &Tensor,
) -> Result<Tensor> {
    let op = ScoreGradient { head, score, classes: classes.detach(), value: gradient.detach() };
    features.contiguous()?.apply_op3(&parameters.trunk, &parameters.classifier, op)
}

struct ScoreGradient {
    head: Arc<Head>,
    score: Score,
    classes: Tensor,
    value: Tensor,
}

impl CustomOp3 for ScoreGradient {
    fn name(&self) -> &'static str {
        "score gradient"
    }

    /// The value is known; only its derivatives are new.
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        known::on_cpu(&self.value)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        known::on_card(&self.value)
    }

    fn bwd(
        &self,
        features: &Tensor,
        trunk: &Tensor,
        classifier: &Tensor,
        _: &Tensor,
        direction: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, t, c] = [features, trunk, classifier].map(|t| Var::from_tensor(&t.detach()));
        let (a, t, c) = (a?, t?, c?);
        let parameters = Parameters { trunk: t.as_tensor().clone(), classifier: c.as_tensor().clone() };
        let (logits, along) = self.head.tangent(&a, &direction.detach().contiguous()?, &parameters)?;
        let slope = self.score.gradient(&logits, &self.classes)?;
        let grads = (slope * along)?.sum_all()?.backward()?;
        let of = |v: &Var| grads.get(v).cloned().map_or_else(|| v.zeros_like(), Ok).map(|g| Some(g.detach()));
        Ok((of(&a)?, of(&t)?, of(&c)?))
    }
}
