//! How the tiles of a chunk of images are cut into blocks, and the sizes of a block's buffers.

use std::ops::Range;

use super::points::{SIDE, TILE};
use crate::gemm::{STRIP, leading, padded};
use crate::simd::{Simd, Wide};
use crate::task::ConvShape;

/// Elements of a tile.
pub const ELEMENTS: usize = SIDE * SIDE;
/// Tiles transformed together: enough rows for the matrix products, few enough for the cache.
pub const TILES: usize = 64;

/// One block: whole rows of tiles of the images of a chunk.
#[derive(Clone, Copy)]
pub struct Block {
    /// Tile rows and columns of an image.
    pub th: usize,
    pub tw: usize,
    /// Tile rows of the chunk that this block holds.
    pub first: usize,
    pub last: usize,
}

/// Sizes of a block's buffers for this many tile rows.
pub struct Sizes {
    /// Pixels of a line of the padded input, and of the output.
    pub columns: usize,
    pub width: usize,
    /// A line of the input, of the output or its gradient.
    pub line_in: usize,
    pub line_out: usize,
    /// A matrix of transformed inputs, outputs, or their gradients.
    pub matrix_in: usize,
    pub matrix_out: usize,
}

/// A buffer's length, and a cache line more: buffers a multiple of a page apart would fall into one cache set.
fn apart(len: usize) -> usize {
    len + STRIP
}

impl Sizes {
    pub fn new(s: &ConvShape, rows: usize, tw: usize) -> Sizes {
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
    pub fn rows(s: &ConvShape, images: usize) -> usize {
        (TILES / s.w.div_ceil(TILE)).clamp(1, images * s.h.div_ceil(TILE))
    }
    /// The blocks of a chunk of `images` images.
    pub fn all(s: &ConvShape, images: usize) -> impl Iterator<Item = Block> + use<> {
        Block::some(s, images, 0..images * s.h.div_ceil(TILE))
    }
    /// The same, of some of the chunk's tile rows.
    pub fn some(s: &ConvShape, images: usize, tile_rows: Range<usize>) -> impl Iterator<Item = Block> + use<> {
        let (th, tw, rows) = (s.h.div_ceil(TILE), s.w.div_ceil(TILE), Block::rows(s, images));
        let last = tile_rows.end;
        tile_rows.step_by(rows).map(move |first| Block { th, tw, first, last: (first + rows).min(last) })
    }
    pub fn tiles(&self) -> usize {
        (self.last - self.first) * self.tw
    }
    /// (row in the block, image in the chunk, tile row in the image).
    pub fn tile_rows(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (self.first..self.last).map(move |r| (r - self.first, r / self.th, r % self.th))
    }
    /// (row in the block, tile column) of a tile.
    pub fn place(&self, tile: usize) -> (usize, usize) {
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
pub unsafe fn gather<S: Simd, const N: usize>(p: *const Wide<S>, step: usize) -> [S::V; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut out = [S::splat(Wide::<S>::default()); N];
        for (i, out) in out.iter_mut().enumerate() {
            *out = S::W::load(p.add(i * step));
        }
        out
    }
}
