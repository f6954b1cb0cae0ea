//! A network: an architecture with weights on a device. The one place that chooses between our kernels, for the CPU and
//! for a card, and candle's own ops.

pub mod by_ops;
mod classifier;
mod cut;
mod model;
mod normalization;
mod parameters;
mod running;
mod second_order;

use anyhow::{Result, anyhow, bail};
use cams::CamModel;
use candle_core::{DType, Device, Tensor, Var};
use classifier::Tail;
use kernels::Value;
use kernels::device::{Batch, Trunk};
use kernels::graph::{Graph, Init, Shape};
use kernels::stage::{Memory, Precision, Stage};
pub use model::{Mode, Model, Pass, gradient, linear_head};
pub use normalization::Normalization;
use parameters::Parameters;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
pub use running::Measured;
use running::Running;

use crate::models::Architecture;
use crate::random::{Purpose, stream};
pub use cut::Cut;

/// Which engine runs the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Our CPU kernels.
    Kernels,
    /// Our kernels for a card.
    Device,
    /// candle's ops, on any device.
    Ops,
}

/// What a network computes with.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Ours where there are some, candle's ops elsewhere.
    pub engine: Engine,
    /// `F32`, or `F64` for checks.
    pub dtype: DType,
    /// Precision on f32 tensors of training passes and of [`Model::glance`]: a teacher's answers (its maps too) and the error curve
    /// during training. [`Model::observe`], for what is reported, is always in `Full`; the masked images of RISE, Score-CAM and
    /// others always in `F32`.
    pub precision: Precision,
    /// Where.
    pub device: Device,
}

impl Backend {
    /// The engine that serves this device best.
    pub fn new(dtype: DType, device: &Device) -> Backend {
        let engine = match device {
            Device::Cpu => Engine::Kernels,
            device if kernels::device::serves(device) => Engine::Device,
            _ => Engine::Ops,
        };
        Backend { engine, dtype, precision: Precision::F32, device: device.clone() }
    }

    /// In single precision.
    pub fn f32(device: &Device) -> Backend {
        Backend::new(DType::F32, device)
    }
}

enum Segment {
    Kernels(Box<Stage>),
    Device(Box<Trunk>),
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
    running: Running,
    /// The channels' mean activations over the training set at the last layer, where they are known.
    pub feature_mean: Option<Vec<f32>>,
    segments: Vec<Segment>,
    /// The names of each segment's output.
    layers: Vec<Vec<String>>,
    memory: Memory,
    backend: Backend,
    /// Whether the classifier alone is trained.
    frozen_trunk: bool,
    /// What the next training pass draws its dropout from.
    pub dropout: Dropout,
}

/// Where the dropout of a training pass comes from: the same seed and pass, the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// Of the run.
    pub seed: u64,
    /// Training passes made so far.
    pub pass: u64,
}

/// All that a network has learned, as plain numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    /// Parameters, flat.
    pub parameters: Vec<f32>,
    /// Running statistics, flat.
    pub running: Vec<f32>,
}

impl StateDict {
    /// Initial weights of a run: convolutions and linear layers He-normal (fan-in), biases and beta 0, gamma 1 or, with
    /// `uniform_gamma`, from U(0, 1).
    pub fn init(architecture: &Architecture, seed: u64, uniform_gamma: bool) -> StateDict {
        Self::draw(architecture, uniform_gamma, |entry| stream(seed, Purpose::Init, entry))
    }

    /// Random weights as `init` draws them (gamma 1), for randomisation tests: from streams that no run's start uses, one for each
    /// number `draw`.
    pub fn anew(architecture: &Architecture, seed: u64, draw: u32) -> StateDict {
        Self::draw(architecture, false, |entry| stream(seed, Purpose::Anew, u64::from(draw) << 32 | entry))
    }

    /// Each parameter's numbers from the stream of its position.
    fn draw(architecture: &Architecture, uniform_gamma: bool, rng: impl Fn(u64) -> ChaCha8Rng) -> StateDict {
        let graph = &architecture.graph;
        let mut parameters = vec![0.0; graph.parameter_len()];
        let mut running = vec![0.0; graph.statistics_len()];
        for (i, entry) in graph.parameters.iter().enumerate() {
            let mut rng = rng(i as u64);
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
        StateDict { parameters, running }
    }
}

impl Network {
    /// A network that hands out the outputs of `layers` (`last` is always among them). `trained` makes its
    /// parameters variables; otherwise nothing of it is ever differentiated.
    pub fn new(
        architecture: Architecture,
        weights: StateDict,
        normalization: Normalization,
        layers: &[String],
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
            running: Running::new(weights.running, backend.engine, &backend.device)?,
            feature_mean: None,
            layers: vec![],
            segments: vec![],
            memory: Memory::new(kernels::Isa::best()),
            backend,
            frozen_trunk: false,
            dropout: Dropout::default(),
        };
        network.divide(layers)?;
        Ok(network)
    }

    /// From now on the classifier alone is trained: the trunk stays as it is, and its BatchNorm uses running statistics
    /// in training too.
    pub fn freeze_trunk(&mut self) {
        self.parameters.trunk = self.parameters.trunk.detach();
        self.variables.retain(|v| v.as_tensor().id() == self.parameters.classifier.id());
        self.frozen_trunk = true;
    }

    /// Makes a segment up to each of these layers, and to `last`.
    fn divide(&mut self, layers: &[String]) -> Result<()> {
        let graph = &self.architecture.graph;
        if let Some(wrong) = layers.iter().find(|l| !graph.cuts.iter().any(|(name, _)| name == *l)) {
            return Err(crate::error::unknown("layer", wrong, &self.architecture.layer_names()));
        }
        let mut from = Value(0);
        for (name, value) in &graph.cuts {
            let wanted = name == "last" || layers.contains(name);
            if !wanted || *value <= from {
                continue;
            }
            let part = graph.between(from, *value);
            let part = part.ok_or_else(|| anyhow!("the model cannot be cut at {name}: a later layer reads past it"))?;
            self.segments.push(match self.backend.engine {
                Engine::Kernels => Segment::Kernels(Box::new(Stage::new(part, &self.memory))),
                Engine::Device => Segment::Device(Box::new(Trunk::new(part))),
                Engine::Ops => Segment::Ops(Box::new(part)),
            });
            // Two layers may be one: in a ResNet the output of layer3 is what enters the pooling.
            let names = graph.cuts.iter().filter(|(_, v)| v == value).map(|(name, _)| name.clone());
            self.layers.push(names.collect());
            from = *value;
        }
        Ok(())
    }

    /// Everything it has learned, as plain numbers.
    pub fn state_dict(&self) -> Result<StateDict> {
        Ok(StateDict { parameters: self.parameters.values()?, running: self.running.values()?.into_owned() })
    }

    /// What stands behind `last`.
    fn tail(&self) -> Tail {
        self.parameters.tail(&self.architecture)
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
    ) -> candle_core::Result<Vec<Measured>> {
        let mut all = Vec::new();
        for segment in &self.segments[segments] {
            let y = match segment {
                Segment::Kernels(stage) => {
                    let (y, statistics) = stage.forward(&x, trunk, &self.running.values()?, mode, precision)?;
                    for measured in statistics {
                        all.push(Measured::of(measured)?);
                    }
                    y
                }
                Segment::Device(trunk_part) => {
                    let running = self.running.tensor()?;
                    let (y, batches) = trunk_part.forward(&x, trunk, &running, mode, precision)?;
                    all.extend(batches.into_iter().map(|Batch { mean, var, count }| Measured { mean, var, count }));
                    y
                }
                Segment::Ops(graph) => by_ops::forward(graph, &x, trunk, &self.running.tensor()?, mode, &mut all)?,
            };
            out.push(y.clone());
            x = y;
        }
        Ok(all)
    }

    fn pass_in(&self, images: &Tensor, mode: Mode, precision: Precision, recorded: bool) -> Result<Pass> {
        let parameters = if recorded { self.parameters.clone() } else { self.parameters.detach() };
        let mut outputs = Vec::new();
        let all = 0..self.segments.len();
        let of_trunk = if self.frozen_trunk { Mode::Eval } else { mode };
        let statistics = self.run(images.clone(), &parameters.trunk, all, of_trunk, precision, &mut outputs)?;
        let Some(last) = outputs.last() else { bail!("the model has no layers") };
        let mut rng = stream(self.dropout.seed, Purpose::Dropout, self.dropout.pass);
        let logits = parameters.tail(&self.architecture).forward(last, mode, &mut |p, x| dropped(&mut rng, p, &x))?;
        let named = |(names, output): (&Vec<String>, Tensor)| -> Vec<_> {
            names.iter().map(|name| (name.clone(), output.clone())).collect()
        };
        let features = self.layers.iter().zip(outputs).flat_map(named).collect();
        Ok(Pass { images: images.clone(), features, logits, statistics })
    }

    /// What lies behind a layer.
    fn head(&self, layer: usize) -> candle_core::Result<second_order::Head> {
        let graphs = self.segments[layer + 1..].iter().map(|s| match s {
            Segment::Kernels(stage) => stage.graph().clone(),
            Segment::Device(trunk) => trunk.graph().clone(),
            Segment::Ops(graph) => (**graph).clone(),
        });
        Ok(second_order::Head {
            graphs: graphs.collect(),
            architecture: self.architecture.clone(),
            running: self.running.tensor()?,
            engine: self.backend.engine,
            memory: self.memory.clone(),
        })
    }

    /// Sizes of the activations at `last`.
    fn last(&self) -> Shape {
        let graph = &self.architecture.graph;
        graph.shape(graph.last())
    }

    /// Device of the weights.
    pub fn device(&self) -> &Device {
        &self.backend.device
    }
}

/// What dropout with probability `p` leaves of `x`.
fn dropped(rng: &mut impl RngExt, p: f64, x: &Tensor) -> candle_core::Result<Tensor> {
    let keep = (1.0 / (1.0 - p)) as f32;
    let mask = (0..x.elem_count()).map(|_| if rng.random::<f64>() < p { 0.0 } else { keep }).collect::<Vec<f32>>();
    x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?
}

impl Model for Network {
    fn images(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.normalization.apply(pixels, self.backend.dtype, &self.backend.device)?)
    }

    /// In train mode in the backend's precision, in eval mode in full.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Pass> {
        self.pass_in(images, mode, if mode == Mode::Train { self.backend.precision } else { Precision::Full }, true)
    }

    fn observe(&self, images: &Tensor) -> Result<Pass> {
        self.pass_in(images, Mode::Eval, Precision::Full, false)
    }

    fn glance(&self, images: &Tensor) -> Result<Pass> {
        self.pass_in(images, Mode::Eval, self.backend.precision, false)
    }

    fn cut<'m>(&'m self, layer: &str) -> Result<Box<dyn CamModel + 'm>> {
        let Some(segment) = self.layers.iter().position(|names| names.iter().any(|name| name == layer)) else {
            let names: Vec<_> = self.layers.iter().flatten().map(String::as_str).collect();
            return Err(crate::error::unknown("layer", layer, &names));
        };
        Ok(Box::new(Cut { network: self, segment }))
    }

    fn variables(&self) -> &[Var] {
        &self.variables
    }

    fn update_statistics(&mut self, pass: &Pass) -> Result<()> {
        self.dropout.pass += 1;
        Ok(self.running.update(&pass.statistics)?)
    }

    fn statistics(&self) -> Result<Vec<Tensor>> {
        Ok(vec![self.running.tensor()?])
    }

    fn attention_layers(&self) -> Vec<String> {
        self.architecture.attention_layers()
    }
}
