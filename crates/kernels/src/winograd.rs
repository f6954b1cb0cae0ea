//! 3x3 convolution, stride 1, padding 1, by Winograd's F(4x4, 3x3): 4 times fewer multiplications.
//!
//! Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308):
//! `Y = A^T [ (G g G^T) * (B^T d B) ] A` for every 6x6 input tile d and 4x4 output tile Y. The product
//! over channels is one matrix product for each of the 36 elements. The backward pass is the exact
//! adjoint of the same three maps, so one transform of the gradient serves both the input's and the
//! weights' gradient: `dM = A dY A^T`, `dU = V^T dM`, `dV = dM U^T`, `dd = B dV B^T`, `dg = G^T dU G`.
//! The interpolation points are not the usual 0, ±1, ±2: see `winograd/points.rs`.
//!
//! A block of tiles goes through in lines. First the vertical transforms: each column of pixels is read once (BatchNorm
//! and ReLU applied on the way) and gives one pixel in each of six lines. Neighbouring tiles share it. Then, line by line,
//! the horizontal transforms, six matrix products, and the horizontal transforms back; last the vertical ones back.
//! Between them lies only what one line needs, so that it stays in the cache.
#![allow(clippy::needless_range_loop)] // Tiles are indexed by row and column, as in the equations.

mod backward;
mod block;
mod forward;
mod points;
mod weights;

pub use backward::{accumulator_len, backward, backward_scratch};
pub use block::images_per_chunk;
pub use forward::{forward, forward_scratch};
use points::TILE;
pub use weights::{fold, pack, packed_len};

/// Rows of the output that are computed together: a task that takes a part of an image begins at a multiple.
pub const ROWS: usize = TILE;
