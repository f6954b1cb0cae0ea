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
mod forward;
mod points;
mod weights;

pub use backward::{accumulator_len, backward, backward_scratch};
pub use forward::{forward, forward_scratch};
use points::{SIDE, TILE};
pub use weights::{fold, pack};

use crate::conv::ConvShape;
use crate::gemm::{STRIP, leading, padded};
use crate::simd::{Simd, Wide};

/// Elements of a tile.
const ELEMENTS: usize = SIDE * SIDE;
/// Tiles transformed together: enough rows for the matrix products, few enough for the cache.
const TILES: usize = 64;

/// One block: whole rows of tiles of the images of a chunk.
#[derive(Clone, Copy)]
struct Block {
    /// Tile rows and columns of an image.
    th: usize,
    tw: usize,
    /// Tile rows of the chunk that this block holds.
    first: usize,
    last: usize,
}

/// Sizes of a block's buffers for this many tile rows.
struct Sizes {
    /// Pixels of a line of the padded input, and of the output.
    columns: usize,
    width: usize,
    /// A line of the input, of the output or its gradient.
    line_in: usize,
    line_out: usize,
    /// A matrix of transformed inputs, outputs, or their gradients.
    matrix_in: usize,
    matrix_out: usize,
}

/// A buffer's length, and a cache line more: buffers a multiple of a page apart would fall into one cache set.
fn apart(len: usize) -> usize {
    len + STRIP
}

impl Sizes {
    fn new(s: &ConvShape, rows: usize, tw: usize) -> Sizes {
        let (columns, width) = (TILE * tw + SIDE - TILE, TILE * tw);
        let tiles = (rows * tw).next_multiple_of(2);
        Sizes {
            columns,
            width,
            line_in: apart(rows * columns * padded(s.c_in)),
            line_out: apart(rows * width * padded(s.c_out)),
            matrix_in: apart(tiles * leading(s.c_in)),
            matrix_out: apart(tiles * leading(s.c_out)),
        }
    }
}

impl Block {
    /// Tile rows of a block, for chunks of `images` images.
    fn rows(s: &ConvShape, images: usize) -> usize {
        (TILES / s.w.div_ceil(TILE)).clamp(1, images * s.h.div_ceil(TILE))
    }
    /// The blocks of a chunk of `images` images.
    fn all(s: &ConvShape, images: usize) -> impl Iterator<Item = Block> + use<> {
        let (th, tw, rows) = (s.h.div_ceil(TILE), s.w.div_ceil(TILE), Block::rows(s, images));
        let count = images * th;
        (0..count).step_by(rows).map(move |first| Block { th, tw, first, last: (first + rows).min(count) })
    }
    fn tiles(&self) -> usize {
        (self.last - self.first) * self.tw
    }
    /// (row in the block, image in the chunk, tile row in the image).
    fn tile_rows(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (self.first..self.last).map(move |r| (r - self.first, r / self.th, r % self.th))
    }
    /// (row in the block, tile column) of a tile.
    fn place(&self, tile: usize) -> (usize, usize) {
        (tile / self.tw, tile % self.tw)
    }
}

/// Images processed together, so that small images still fill a block.
pub fn images_per_chunk(s: &ConvShape) -> usize {
    (TILES / (s.h.div_ceil(TILE) * s.w.div_ceil(TILE)).max(1)).max(1)
}

/// `N` vectors, `step` elements apart. A loop, not `array::from_fn`: that one's closures are compiled without the
/// instruction set where they are not inlined.
#[inline(always)]
unsafe fn gather<S: Simd, const N: usize>(p: *const Wide<S>, step: usize) -> [S::V; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut out = [S::splat(Wide::<S>::default()); N];
        for (i, out) in out.iter_mut().enumerate() {
            *out = S::W::load(p.add(i * step));
        }
        out
    }
}
