//! A graph, or a part of one, as a single candle op.
//!
//! candle's backward pass adds every op's gradient to a fresh zero tensor: two extra passes over
//! memory an op. A whole trunk as one op pays that once, and inside it BatchNorm and ReLU are never
//! stored. The op has two inputs: the images and the trunk's flat parameter vector.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Tensor, WithDType, bail};
use half::bf16;

use crate::batch_norm::Statistics;
pub use crate::execute::Mode;
use crate::execute::{Executor, How, Saved};
use crate::graph::{Graph, Shape};
use crate::plan::Plan;
use crate::pointwise;
use crate::runtime::{Buffer, Runtime};
use crate::simd::{Element, Isa};

/// How a stage computes on f32 tensors. Parameters, statistics and sums are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32, convolutions by their definition: for what is reported.
    Full,
    /// f32, convolutions by Winograd's algorithm: to train.
    #[default]
    F32,
    /// Activations and products in bf16 on a processor that [has it](Isa::has_bf16), and on a card; else as `F32`.
    Bf16,
    /// On a card, products of f32 rounded to 10 bits behind the point (TF32); elsewhere as `F32`.
    Tf32,
}

/// The memory of one network, shared by its stages.
#[derive(Clone, Debug)]
pub struct Memory {
    f32: Arc<Runtime<f32>>,
    f64: Arc<Runtime<f64>>,
    bf16: Arc<Runtime<bf16>>,
}

impl Memory {
    /// Memory for kernels of one instruction set.
    pub fn new(isa: Isa) -> Self {
        let (f32, f64, bf16) = (Runtime::new(isa), Runtime::new(isa), Runtime::new(isa));
        Memory { f32: Arc::new(f32), f64: Arc::new(f64), bf16: Arc::new(bf16) }
    }
}

/// A part of a network that runs as one op on the CPU, on f32 or f64 tensors.
#[derive(Clone, Debug)]
pub struct Stage {
    graph: Arc<Graph>,
    f32: Arc<Executor<f32>>,
    f64: Arc<Executor<f64>>,
    bf16: Arc<Executor<bf16>>,
    memory: Memory,
}

/// A stored scalar's own executor and memory.
trait Typed: Element {
    fn executor(stage: &Stage) -> &Arc<Executor<Self>>;
    fn runtime(stage: &Stage) -> &Arc<Runtime<Self>>;
}

macro_rules! typed {
    ($($t:ident),*) => {$(
        impl Typed for $t {
            fn executor(stage: &Stage) -> &Arc<Executor<$t>> {
                &stage.$t
            }
            fn runtime(stage: &Stage) -> &Arc<Runtime<$t>> {
                &stage.memory.$t
            }
        }
    )*};
}
typed!(f32, f64, bf16);

impl Stage {
    /// A stage that runs `graph`.
    pub fn new(graph: Graph, memory: &Memory) -> Self {
        let (plan, graph) = (Arc::new(Plan::new(&graph)), Arc::new(graph));
        Stage {
            f32: Arc::new(Executor::new(graph.clone(), plan.clone(), memory.f32.clone())),
            f64: Arc::new(Executor::new(graph.clone(), plan.clone(), memory.f64.clone())),
            bf16: Arc::new(Executor::new(graph.clone(), plan, memory.bf16.clone())),
            graph,
            memory: memory.clone(),
        }
    }

    /// What it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// `x` (n, c, h, w) through the graph, differentiable in `x` and in the flat `parameters` wherever
    /// candle tracks them. Also returns each BatchNorm's batch statistics (none in eval mode).
    pub fn forward(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        running: &[f32],
        mode: Mode,
        precision: Precision,
    ) -> Result<(Tensor, Vec<Statistics>)> {
        check(&self.graph, x, parameters.elem_count(), running.len())?;
        let record = x.track_op() || parameters.track_op();
        let (x, parameters) = (x.contiguous()?, parameters.contiguous()?);
        match x.dtype() {
            DType::F32 if precision == Precision::Bf16 && self.memory.f32.isa.has_bf16() => {
                self.apply::<bf16>(&x, &parameters, running, (mode, precision), record)
            }
            DType::F32 => self.apply::<f32>(&x, &parameters, running, (mode, precision), record),
            DType::F64 => self.apply::<f64>(&x, &parameters, running, (mode, precision), record),
            other => bail!("the CPU kernels compute in f32 and f64, not in {other:?}"),
        }
    }

    fn apply<E: Typed>(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        running: &[f32],
        (mode, precision): (Mode, Precision),
        record: bool,
    ) -> Result<(Tensor, Vec<Statistics>)> {
        let state = Arc::new(Mutex::new(State { saved: None, statistics: vec![] }));
        let op = StageOp::<E> {
            stage: self.clone(),
            running: running.to_vec(),
            mode,
            winograd: precision != Precision::Full,
            record,
            state: state.clone(),
        };
        let out = x.apply_op2(parameters, op)?;
        let statistics = std::mem::take(&mut state.lock().unwrap_or_else(PoisonError::into_inner).statistics);
        Ok((out, statistics))
    }
}

/// Whether images (n, c, h, w), so many parameters and so many running statistics are what a graph takes.
pub(crate) fn check(graph: &Graph, x: &Tensor, parameters: usize, running: usize) -> Result<()> {
    let (_, c, h, w) = x.dims4()?;
    let Shape { channels, h: eh, w: ew } = graph.shapes[0];
    if (c, h, w) != (channels, eh, ew) {
        bail!("images are ({c}, {h}, {w}), but the network takes ({channels}, {eh}, {ew})");
    }
    let needed = (graph.parameters_end(), graph.statistics_len());
    if parameters < needed.0 || running < needed.1 {
        bail!("{parameters} parameters and {running} running statistics given, {} and {} needed", needed.0, needed.1);
    }
    Ok(())
}

struct State<E: Element> {
    saved: Option<Arc<Saved<E>>>,
    statistics: Vec<Statistics>,
}

struct StageOp<E: Element> {
    stage: Stage,
    running: Vec<f32>,
    mode: Mode,
    winograd: bool,
    record: bool,
    state: Arc<Mutex<State<E>>>,
}

fn slice<'a, E: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [E]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a stage takes contiguous tensors") };
    Ok(&storage.as_slice::<E>()?[start..end])
}

impl<E: Typed> CustomOp2 for StageOp<E> {
    fn name(&self) -> &'static str {
        "stage"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let (x, parameters) = (slice::<E::Wide>(s1, l1)?, slice::<E::Wide>(s2, l2)?);
        let graph = self.stage.graph();
        let n = l1.dims()[0];
        let to = graph.shape(graph.last());
        let how = How { mode: self.mode, winograd: self.winograd, record: self.record };
        let mut out = vec![E::Wide::default(); n * to.len()];
        let kept = E::executor(&self.stage).forward(x, parameters, &self.running, how, &mut out);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.saved = kept.saved.map(Arc::new);
        state.statistics = kept.statistics;
        Ok((E::Wide::to_cpu_storage_owned(out), (n, to.channels, to.h, to.w).into()))
    }

    fn bwd(&self, x: &Tensor, parameters: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = self.state.lock().unwrap_or_else(PoisonError::into_inner).saved.clone() else {
            bail!("this forward pass was not recorded");
        };
        let graph = self.stage.graph();
        let (from, to) = (graph.shapes[0], graph.shape(graph.last()));
        let g = g.contiguous()?;
        let (g_storage, g_layout) = g.storage_and_layout();
        let (p_storage, p_layout) = parameters.storage_and_layout();
        let (candle_core::Storage::Cpu(g_cpu), candle_core::Storage::Cpu(p_cpu)) = (&*g_storage, &*p_storage) else {
            bail!("a stage runs on the CPU");
        };
        let g_nchw = slice::<E::Wide>(g_cpu, g_layout)?;
        let mut g = Buffer::take(E::runtime(&self.stage), g_nchw.len());
        pointwise::channels_last(g_nchw, to.channels, to.h * to.w, g.as_mut_slice());
        let (dp, dx) = E::executor(&self.stage).backward(&saved, slice::<E::Wide>(p_cpu, p_layout)?, g, x.track_op());
        let dx = match dx {
            None => None,
            Some(dx) => {
                let mut out = vec![E::Wide::default(); dx.as_slice().len()];
                pointwise::channels_first(dx.as_slice(), from.channels, from.h * from.w, &mut out);
                Some(Tensor::from_vec(out, x.shape(), x.device())?)
            }
        };
        let dp = Tensor::from_vec(dp, parameters.shape(), parameters.device())?;
        Ok((dx, parameters.track_op().then_some(dp)))
    }
}
