//! CPU kernels that train convolutional networks, and the graph that strings them together.
//!
//! | file | holds |
//! |---|---|
//! | [`simd`] | one vector vocabulary; the instruction set is chosen at run time |
//! | [`gemm`] | the one matrix product |
//! | [`operand`] | BatchNorm and ReLU applied while an activation is read |
//! | [`task`] | what one thread convolves at a time |
//! | [`winograd`], [`direct`] | the two convolution algorithms |
//! | [`conv`] | splits a convolution over images and threads |
//! | [`batch_norm`], [`bias`], [`pool`], [`pointwise`], [`sgd`], [`adamw`] | everything else a network does |
//! | [`graph`] | a network as a list of nodes |
//! | [`plan`], [`execute`] | which values are stored, and running a graph forward and backward |
//! | [`stage`] | a graph as one candle op |
//! | [`device`] | the same graph on a device: CUDA kernels, and candle's products between them |
//! | [`peak`] | what the processor could do |
//!
//! Activations are NHWC inside, NCHW at the border to candle. Nothing here allocates or locks in a
//! loop over pixels, and no sum depends on the number of threads.

pub mod adamw;
pub mod batch_norm;
pub mod bias;
pub mod conv;
pub mod device;
pub mod direct;
pub mod execute;
pub mod gemm;
pub mod graph;
pub mod operand;
pub mod peak;
pub mod plan;
pub mod pointwise;
pub mod pool;
pub mod runtime;
pub mod sgd;
pub mod simd;
pub mod stage;
pub mod task;
pub mod winograd;

pub use graph::{Graph, Node, Shape, Value};
pub use simd::Isa;
pub use stage::{Mode, Precision, Stage};
