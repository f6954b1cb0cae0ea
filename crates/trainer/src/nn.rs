//! A network: an architecture with weights on a device. The one place that chooses between the CPU kernels
//! and candle's own ops.

pub mod by_ops;
mod normalization;
mod parameters;
mod second_order;
mod view;

use anyhow::{Result, anyhow, bail};
use cams::LinearHead;
use candle_core::{DType, Device, Tensor, Var};
use kernels::Value;
use kernels::batch_norm::Statistics;
use kernels::graph::{Graph, Init};
use kernels::stage::{Memory, Mode, Precision, Stage};
pub use normalization::Normalization;
use parameters::Parameters;
use rand::RngExt;

use crate::data::loader::Batch;
use crate::models::Architecture;
use crate::random::{Purpose, stream};
pub use view::View;

/// BatchNorm's momentum, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// Which engine runs the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Our CPU kernels.
    Kernels,
    /// candle's ops, on any device.
    Ops,
}

/// What a network computes with.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Our kernels on the CPU, candle's ops elsewhere.
    pub engine: Engine,
    /// `F32`, or `F64` for checks.
    pub dtype: DType,
    /// What training passes and a teacher's signals are computed in where tensors are f32. Errors and explanations are
    /// always computed in full.
    pub precision: Precision,
    /// Where.
    pub device: Device,
}

impl Backend {
    /// The engine that serves this device best.
    pub fn new(dtype: DType, device: &Device) -> Backend {
        let engine = if device.is_cpu() { Engine::Kernels } else { Engine::Ops };
        Backend { engine, dtype, precision: Precision::F32, device: device.clone() }
    }

    /// In single precision.
    pub fn f32(device: &Device) -> Backend {
        Backend::new(DType::F32, device)
    }
}

enum Segment {
    Kernels(Box<Stage>),
    Ops(Box<Graph>),
}

/// An architecture with weights.
pub struct Network {
    /// What it is.
    pub architecture: Architecture,
    /// How it sees pixels.
    pub normalization: Normalization,
    /// Tracked by candle if the network is trained.
    parameters: Parameters,
    variables: Vec<Var>,
    /// BatchNorm's running statistics, flat.
    pub running: Vec<f32>,
    /// The channels' mean activations over the training set at the last layer, where they are known.
    pub feature_mean: Option<Vec<f32>>,
    layers: Vec<String>,
    segments: Vec<Segment>,
    memory: Memory,
    backend: Backend,
}

/// Everything one forward pass through a network gives.
pub struct Pass {
    /// Normalised images.
    pub images: Tensor,
    /// The outputs at the network's layers, in their order; the last is `last`.
    pub layers: Vec<Tensor>,
    /// (n, classes).
    pub logits: Tensor,
    /// Batch statistics, in train mode.
    pub statistics: Vec<Statistics>,
}

/// Weights as plain numbers, and where they live.
pub struct Weights {
    /// Parameters, flat.
    pub parameters: Vec<f32>,
    /// Running statistics, flat.
    pub running: Vec<f32>,
}

impl Weights {
    /// Seeded start: He-normal convolutions and classifier, beta 0, gamma as asked.
    pub fn init(architecture: &Architecture, seed: u64, uniform_gamma: bool) -> Weights {
        let graph = &architecture.graph;
        let mut parameters = vec![0.0; graph.parameter_len()];
        let mut running = vec![0.0; graph.statistics_len()];
        for (i, entry) in graph.parameters.iter().enumerate() {
            let mut rng = stream(seed, Purpose::Init, i as u64);
            let slice = &mut parameters[entry.range()];
            match entry.init {
                Init::Kaiming { fan_in } => {
                    let std = (2.0 / fan_in as f64).sqrt();
                    slice.iter_mut().for_each(|p| *p = (cams::random::normal(&mut rng) * std) as f32);
                }
                Init::Gamma if uniform_gamma => slice.iter_mut().for_each(|p| *p = rng.random::<f32>()),
                Init::Gamma | Init::Ones => slice.fill(1.0),
                Init::Zeros => {}
            }
        }
        for entry in &graph.statistics {
            running[entry.range()].fill(if entry.init == Init::Ones { 1.0 } else { 0.0 });
        }
        Weights { parameters, running }
    }
}

impl Network {
    /// A network that hands out the outputs of `layers` (`last` is always among them). `trained` makes its
    /// parameters variables; otherwise nothing of it is ever differentiated.
    pub fn new(
        architecture: Architecture,
        weights: Weights,
        normalization: Normalization,
        layers: &[&str],
        trained: bool,
        backend: Backend,
    ) -> Result<Network> {
        let parameters = Tensor::from_vec(weights.parameters, architecture.parameters(), &backend.device)?;
        let (parameters, variables) = Parameters::new(&parameters.to_dtype(backend.dtype)?, &architecture, trained)?;
        let mut network = Network {
            architecture,
            normalization,
            parameters,
            variables,
            running: weights.running,
            feature_mean: None,
            layers: vec![],
            segments: vec![],
            memory: Memory::new(kernels::Isa::best()),
            backend,
        };
        network.cut(layers)?;
        Ok(network)
    }

    fn cut(&mut self, layers: &[&str]) -> Result<()> {
        let graph = &self.architecture.graph;
        if let Some(wrong) = layers.iter().find(|l| !graph.cuts.iter().any(|(name, _)| name == *l)) {
            return Err(crate::error::unknown("layer", wrong, &self.architecture.layer_names()));
        }
        let mut from = Value(0);
        for (name, value) in &graph.cuts {
            let wanted = name == "last" || layers.contains(&name.as_str());
            if !wanted {
                continue;
            }
            if *value > from {
                let part = graph.between(from, *value);
                let part =
                    part.ok_or_else(|| anyhow!("the model cannot be cut at {name}: a later layer reads past it"))?;
                self.segments.push(match self.backend.engine {
                    Engine::Kernels => Segment::Kernels(Box::new(Stage::new(part, &self.memory))),
                    Engine::Ops => Segment::Ops(Box::new(part)),
                });
                self.layers.push(name.clone());
            } else if name == "last"
                && let Some(same) = self.layers.last_mut()
            {
                *same = name.clone(); // In a ResNet the output of layer3 is what enters the pooling.
            }
            from = *value;
        }
        Ok(())
    }

    /// The variables that hold the parameters in their order; none if the network is not trained.
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// The gradient of a loss (a scalar) with respect to each of the [`variables`](Self::variables).
    pub fn gradient(&self, of: &Tensor) -> Result<Vec<Tensor>> {
        if self.variables.is_empty() {
            bail!("the network is not trained: it has no gradient");
        }
        let grads = of.backward()?;
        let found: Vec<_> = self.variables.iter().map(|v| grads.get(v.as_tensor())).collect();
        if found.iter().all(Option::is_none) {
            bail!("no gradient reached the network");
        }
        // A loss on maps of activations says nothing of the classifier.
        let each = self.variables.iter().zip(found);
        Ok(each.map(|(v, g)| g.cloned().map_or_else(|| v.zeros_like(), Ok)).collect::<candle_core::Result<_>>()?)
    }

    /// Parameters and statistics as plain numbers.
    pub fn weights(&self) -> Result<Weights> {
        Ok(Weights { parameters: self.parameters.values()?, running: self.running.clone() })
    }

    /// The network's own view of a batch's pixels.
    pub fn images(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.normalization.apply(&batch.pixels, batch.shape, self.backend.dtype, &self.backend.device)
    }

    /// Pooling and classifier, as functions of the parameters.
    pub fn linear_head(&self) -> candle_core::Result<LinearHead> {
        self.parameters.head()
    }

    /// Runs segments `from..to` on `x`, collecting every segment's output.
    fn run(
        &self,
        mut x: Tensor,
        trunk: &Tensor,
        segments: std::ops::Range<usize>,
        mode: Mode,
        precision: Precision,
        out: &mut Vec<Tensor>,
    ) -> candle_core::Result<Vec<Statistics>> {
        let mut all = Vec::new();
        for segment in &self.segments[segments] {
            let (y, statistics) = match segment {
                Segment::Kernels(stage) => stage.forward(&x, trunk, &self.running, mode, precision)?,
                Segment::Ops(graph) => by_ops::forward(graph, &x, trunk, &self.running, mode)?,
            };
            all.extend(statistics);
            out.push(y.clone());
            x = y;
        }
        Ok(all)
    }

    /// One forward pass, in train mode (in the backend's precision) or in eval mode (in full), recorded for backward if the network is
    /// trained.
    pub fn pass(&self, images: &Tensor, mode: Mode) -> Result<Pass> {
        self.pass_in(images, mode, if mode == Mode::Train { self.backend.precision } else { Precision::Full }, true)
    }

    /// A pass in eval mode and in full, of which nothing is recorded: for errors and maps that are shown.
    pub fn observe(&self, images: &Tensor) -> Result<Pass> {
        self.pass_in(images, Mode::Eval, Precision::Full, false)
    }

    /// The same in the backend's precision: for what a teacher says during training, and for curves.
    pub fn signal_pass(&self, images: &Tensor) -> Result<Pass> {
        self.pass_in(images, Mode::Eval, self.backend.precision, false)
    }

    fn pass_in(&self, images: &Tensor, mode: Mode, precision: Precision, recorded: bool) -> Result<Pass> {
        let parameters = if recorded { self.parameters.clone() } else { self.parameters.detach() };
        let mut layers = Vec::new();
        let all = 0..self.segments.len();
        let statistics = self.run(images.clone(), &parameters.trunk, all, mode, precision, &mut layers)?;
        let Some(last) = layers.last() else { bail!("the model has no layers") };
        let logits = parameters.head()?.logits(last)?;
        Ok(Pass { images: images.clone(), layers, logits, statistics })
    }

    /// Folds batch statistics into the running ones, with PyTorch's momentum and unbiased variance.
    pub fn update_running(&mut self, statistics: &[Statistics]) {
        let mut at = 0;
        for s in statistics {
            let c = s.mean.len();
            let unbiased = s.count as f64 / (s.count as f64 - 1.0).max(1.0);
            for i in 0..c {
                let mix = |old: f32, new: f64| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * new) as f32;
                self.running[at + i] = mix(self.running[at + i], s.mean[i]);
                self.running[at + c + i] = mix(self.running[at + c + i], s.var[i] * unbiased);
            }
            at += 2 * c;
        }
    }

    /// Index of a layer among [`Pass::layers`].
    pub fn layer(&self, name: &str) -> Result<usize> {
        let names: Vec<_> = self.layers.iter().map(String::as_str).collect();
        // Where two layers are one (layer3 and last of a ResNet) either name will do.
        let cut = |n: &str| self.architecture.graph.cuts.iter().find(|(c, _)| c == n).map(|(_, v)| *v);
        let found = self.layers.iter().position(|l| l == name || (cut(name).is_some() && cut(l) == cut(name)));
        found.ok_or_else(|| crate::error::unknown("layer", name, &names))
    }

    /// The network cut at one of its layers, for explanations. Whatever a method computes beyond the given pass it
    /// computes in eval mode: in train mode BatchNorm would mix the images of a batch.
    pub fn view(&self, layer: &str) -> Result<View<'_>> {
        Ok(View { network: self, layer: self.layer(layer)?, second_order: false })
    }

    /// What lies behind a layer.
    fn head(&self, layer: usize) -> second_order::Head {
        let graphs = self.segments[layer + 1..].iter().map(|s| match s {
            Segment::Kernels(stage) => stage.graph().clone(),
            Segment::Ops(graph) => (**graph).clone(),
        });
        second_order::Head {
            graphs: graphs.collect(),
            running: self.running.clone(),
            engine: self.backend.engine,
            memory: self.memory.clone(),
        }
    }

    /// Device of the weights.
    pub fn device(&self) -> &Device {
        &self.backend.device
    }
}
