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

mod points;
mod weights;

use points::{SIDE, TILE, gradient, input, input_gradient, output};
pub use weights::{fold, pack};

use crate::conv::{Backward, ConvShape, Forward, Scratch, ScratchLen};
use crate::gemm::{Lhs, Out, Rhs, STRIP, WHOLE, gemm, leading, padded, steps};
use crate::operand::{GradientReader, InputReader, load_channels, store_channels};
use crate::simd::{Element, Simd, Wide};

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

/// Scratch that [`forward`] needs for `images` images.
pub fn forward_scratch(s: &ConvShape, images: usize) -> ScratchLen {
    let z = Sizes::new(s, Block::rows(s, images), s.w.div_ceil(TILE));
    ScratchLen { stored: SIDE * z.matrix_in, wide: SIDE * (z.line_in + z.matrix_out + z.line_out), segments: 0 }
}

/// Convolves the images of one chunk.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn forward<S: Simd>(task: Forward<'_, S::E>) {
    let Forward { shape: s, images, input, packed, residual, out, scratch } = task;
    let Scratch { stored: v, wide, .. } = scratch;
    let z = Sizes::new(s, Block::rows(s, images.len()), s.w.div_ceil(TILE));
    let (lines_in, wide) = wide.split_at_mut(SIDE * z.line_in);
    let (m, lines_out) = wide.split_at_mut(SIDE * z.matrix_out);
    let reader = InputReader::new(input, s.c_in);
    let (k, product) = (steps::<S::E>(s.c_in), padded(s.c_out) * steps::<S::E>(s.c_in) * S::E::DEPTH);
    // SAFETY: images within the activation; blocks within the scratch sized by `forward_scratch`.
    unsafe {
        for block in Block::all(s, images.len()) {
            vertical_input::<S>(s, block, &z, images.start, &reader, lines_in);
            for u in 0..SIDE {
                horizontal_input::<S, false>(s, block, &z, &lines_in[u * z.line_in..], v);
                for f in 0..SIDE {
                    gemm::<S>(
                        block.tiles(),
                        padded(s.c_out),
                        k,
                        Lhs {
                            data: v[f * z.matrix_in..].as_ptr(),
                            row: leading(s.c_in),
                            col: S::E::DEPTH,
                            segments: WHOLE,
                        },
                        Rhs::packed(packed.forward.as_slice()[(u * SIDE + f) * product..].as_ptr(), k),
                        Out { data: m[f * z.matrix_out..].as_mut_ptr(), row: leading(s.c_out), accumulate: false },
                    );
                }
                horizontal_output::<S>(s, block, &z, m, &mut lines_out[u * z.line_out..]);
            }
            vertical_output::<S>(s, block, &z, lines_out, residual.map(|r| (r, images.start)), out);
        }
    }
}

/// Six lines of the padded input: `B^T` applied to the columns of each row of tiles.
#[inline(always)]
unsafe fn vertical_input<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    start: usize,
    reader: &InputReader<'_, S::E>,
    lines: &mut [Wide<S>],
) {
    let ld = padded(s.c_in);
    for (r, image, ty) in block.tile_rows() {
        for x in 0..z.columns {
            let to = lines[(r * z.columns + x) * ld..].as_mut_ptr();
            // Column x of the padded image is column x - 1 of the image, row y likewise.
            let inside = (1..=s.w).contains(&x);
            let mut c = 0;
            while c < ld {
                // SAFETY: only pixels inside the image are read; a pixel of each line is written.
                unsafe {
                    let mut column = [S::splat(Wide::<S>::default()); SIDE];
                    for j in 0..SIDE {
                        let y = TILE * ty + j;
                        if inside && c < s.c_in && (1..=s.h).contains(&y) {
                            let pixel = ((start + image) * s.h + y - 1) * s.w + x - 1;
                            column[j] = reader.load::<S>(pixel * s.c_in, c);
                        }
                    }
                    for (u, value) in input::<S>(column).into_iter().enumerate() {
                        S::W::store(to.add(u * z.line_in + c), value);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// A line's six matrices of transformed inputs: `B` applied to the rows of its tiles. `PAIRED` lays the tiles of a
/// step of the weight gradient's product side by side, otherwise the channels of a step of the output's.
#[inline(always)]
unsafe fn horizontal_input<S: Simd, const PAIRED: bool>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    line: &[Wide<S>],
    v: &mut [S::E],
) {
    let (ld, row, tiles) = (padded(s.c_in), leading(s.c_in), block.tiles());
    let tile = |i: usize, c: usize| {
        let (r, tx) = block.place(i);
        line[(r * z.columns + TILE * tx) * ld + c..].as_ptr()
    };
    let depth = if PAIRED { S::E::DEPTH } else { 1 };
    for i in (0..tiles).step_by(depth) {
        let mut c = 0;
        while c < s.c_in {
            // SAFETY: a tile's six pixels lie in the line; one vector of each matrix is written.
            unsafe {
                let mut out = [[S::splat(Wide::<S>::default()); SIDE]; 2];
                for (k, out) in out.iter_mut().enumerate().take(depth.min(tiles - i)) {
                    let from = tile(i + k, c);
                    *out = input::<S>(gather::<S, SIDE>(from, ld));
                }
                for f in 0..SIDE {
                    let matrix = v.as_mut_ptr().add(f * z.matrix_in);
                    if PAIRED {
                        S::store_operand(matrix.add(i * row + c * S::E::DEPTH), [out[0][f], out[1][f]]);
                    } else {
                        S::store(matrix.add(i * row + c), out[0][f]);
                    }
                }
            }
            c += S::LANES;
        }
    }
}

/// A line of the output: `A` applied to the rows of its tiles.
#[inline(always)]
unsafe fn horizontal_output<S: Simd>(s: &ConvShape, block: Block, z: &Sizes, m: &[Wide<S>], line: &mut [Wide<S>]) {
    let ld = padded(s.c_out);
    for i in 0..block.tiles() {
        let from = m[i * leading(s.c_out)..].as_ptr();
        let to = line[i * TILE * ld..].as_mut_ptr();
        let mut c = 0;
        while c < s.c_out {
            // SAFETY: one vector of each matrix is read, four pixels of the line are written.
            unsafe {
                let values = output::<S>(gather::<S, SIDE>(from.add(c), z.matrix_out));
                for (x, value) in values.into_iter().enumerate() {
                    S::W::store(to.add(x * ld + c), value);
                }
            }
            c += S::LANES;
        }
    }
}

/// The output: `A^T` applied to the columns of the six lines, plus the residual, cut at the image's border.
#[inline(always)]
unsafe fn vertical_output<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    lines: &[Wide<S>],
    residual: Option<(&[S::E], usize)>,
    out: &mut [S::E],
) {
    let (ld, image_len) = (padded(s.c_out), s.h * s.w * s.c_out);
    for (r, image, ty) in block.tile_rows() {
        let rows = (s.h - TILE * ty).min(TILE);
        for x in 0..s.w {
            let from = lines[(r * z.width + x) * ld..].as_ptr();
            let mut c = 0;
            while c < s.c_out {
                // SAFETY: a pixel of each line is read; only pixels inside the image are written.
                unsafe {
                    let values = output::<S>(gather::<S, SIDE>(from.add(c), z.line_out));
                    for (y, &value) in values.iter().enumerate().take(rows) {
                        let at = ((image * s.h + TILE * ty + y) * s.w + x) * s.c_out;
                        let value = match residual {
                            Some((r, start)) => {
                                let r = r.as_ptr().add(start * image_len + at);
                                S::add(value, load_channels::<S>(r, c, s.c_out))
                            }
                            None => value,
                        };
                        store_channels::<S>(out.as_mut_ptr().add(at), c, s.c_out, value);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// Scratch that [`backward`] needs for `images` images.
pub fn backward_scratch(s: &ConvShape, images: usize) -> ScratchLen {
    let z = Sizes::new(s, Block::rows(s, images), s.w.div_ceil(TILE));
    ScratchLen {
        stored: SIDE * (z.matrix_in + 2 * z.matrix_out),
        wide: SIDE * (z.line_in + z.line_out + z.matrix_in) + carry_len(s),
        segments: 0,
    }
}

/// The two rows that a row of tiles hands to the next one.
fn carry_len(s: &ConvShape) -> usize {
    (SIDE - TILE) * s.w * padded(s.c_in)
}

/// Length of what a group of chunks accumulates: `dU`, (36, c_in, padded c_out).
pub fn accumulator_len(s: &ConvShape) -> usize {
    ELEMENTS * s.c_in * padded(s.c_out)
}

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` in transformed form.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E>) {
    let Backward { shape: s, images, input, gradient, packed, mut dx, dw, scratch } = task;
    let Scratch { stored, wide, .. } = scratch;
    let z = Sizes::new(s, Block::rows(s, images.len()), s.w.div_ceil(TILE));
    let (v, stored) = stored.split_at_mut(SIDE * z.matrix_in);
    let (dm, dm_paired) = stored.split_at_mut(SIDE * z.matrix_out);
    let (lines_in, wide) = wide.split_at_mut(SIDE * z.line_in);
    let (lines_out, wide) = wide.split_at_mut(SIDE * z.line_out);
    let (dv, carry) = wide.split_at_mut(SIDE * z.matrix_in);
    let x = InputReader::new(input, s.c_in);
    let g = GradientReader::new(gradient, s.c_out);
    let (vi, vo, depth) = (leading(s.c_in), leading(s.c_out), S::E::DEPTH);
    let (k, product) = (steps::<S::E>(s.c_out), padded(s.c_in) * steps::<S::E>(s.c_out) * depth);
    // In f32 the two forms of dM are one.
    let paired = depth > 1;
    // SAFETY: images within the activation; blocks within the scratch sized by `backward_scratch`.
    unsafe {
        for block in Block::all(s, images.len()) {
            vertical_input::<S>(s, block, &z, images.start, &x, lines_in);
            vertical_gradient::<S>(s, block, &z, images.start, &g, lines_out);
            for u in 0..SIDE {
                let line_in = &mut lines_in[u * z.line_in..][..z.line_in];
                horizontal_input::<S, true>(s, block, &z, line_in, v);
                let line_out = &lines_out[u * z.line_out..];
                horizontal_gradient::<S>(s, block, &z, line_out, dm, paired.then_some(&mut *dm_paired), dx.is_some());
                let right = if paired { &*dm_paired } else { &*dm };
                for f in 0..SIDE {
                    gemm::<S>(
                        s.c_in,
                        padded(s.c_out),
                        steps::<S::E>(block.tiles()),
                        Lhs { data: v[f * z.matrix_in..].as_ptr(), row: depth, col: vi * depth, segments: WHOLE },
                        Rhs::rows(right[f * z.matrix_out..].as_ptr(), vo),
                        Out {
                            data: dw[(u * SIDE + f) * s.c_in * padded(s.c_out)..].as_mut_ptr(),
                            row: padded(s.c_out),
                            accumulate: true,
                        },
                    );
                    if dx.is_some() {
                        gemm::<S>(
                            block.tiles(),
                            padded(s.c_in),
                            k,
                            Lhs { data: dm[f * z.matrix_out..].as_ptr(), row: vo, col: depth, segments: WHOLE },
                            Rhs::packed(packed.backward.as_slice()[(u * SIDE + f) * product..].as_ptr(), k),
                            Out { data: dv[f * z.matrix_in..].as_mut_ptr(), row: vi, accumulate: false },
                        );
                    }
                }
                if dx.is_some() {
                    // The line of the input is not needed again: that of its gradient takes its place.
                    horizontal_input_gradient::<S>(s, block, &z, dv, line_in);
                }
            }
            if let Some((dx, accumulate)) = &mut dx {
                vertical_input_gradient::<S>(s, block, &z, lines_in, carry, dx, *accumulate);
            }
        }
    }
}

/// Six lines of the output's gradient: `A` applied to the columns of each row of tiles.
#[inline(always)]
unsafe fn vertical_gradient<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    start: usize,
    g: &GradientReader<'_, S::E>,
    lines: &mut [Wide<S>],
) {
    let ld = padded(s.c_out);
    for (r, image, ty) in block.tile_rows() {
        for x in 0..z.width {
            let to = lines[(r * z.width + x) * ld..].as_mut_ptr();
            let mut c = 0;
            while c < s.c_out {
                // SAFETY: only pixels inside the image are read; a pixel of each line is written.
                unsafe {
                    let mut column = [S::splat(Wide::<S>::default()); TILE];
                    for j in 0..TILE {
                        let y = TILE * ty + j;
                        if x < s.w && y < s.h {
                            column[j] = g.load::<S>((((start + image) * s.h + y) * s.w + x) * s.c_out, c);
                        }
                    }
                    for (u, value) in gradient::<S>(column).into_iter().enumerate() {
                        S::W::store(to.add(u * z.line_out + c), value);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// A line's six matrices `dM`: by channels for the input's gradient, if it is wanted, and, where they differ, by
/// tiles for the weights'.
#[inline(always)]
unsafe fn horizontal_gradient<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    line: &[Wide<S>],
    dm: &mut [S::E],
    mut paired: Option<&mut [S::E]>,
    by_channels: bool,
) {
    let (ld, row, tiles, depth) = (padded(s.c_out), leading(s.c_out), block.tiles(), S::E::DEPTH);
    for i in (0..tiles).step_by(depth) {
        let mut c = 0;
        while c < s.c_out {
            // SAFETY: a tile's four pixels lie in the line; vectors of each matrix are written.
            unsafe {
                let mut out = [[S::splat(Wide::<S>::default()); SIDE]; 2];
                for (k, out) in out.iter_mut().enumerate().take(depth.min(tiles - i)) {
                    let from = line[(i + k) * TILE * ld + c..].as_ptr();
                    *out = gradient::<S>(gather::<S, TILE>(from, ld));
                }
                for f in 0..SIDE {
                    match &mut paired {
                        None => S::store(dm.as_mut_ptr().add(f * z.matrix_out + i * row + c), out[0][f]),
                        Some(paired) => {
                            let to = paired.as_mut_ptr().add(f * z.matrix_out + i * row + c * depth);
                            S::store_operand(to, [out[0][f], out[1][f]]);
                            // The matrices have an even number of rows, so the last one may be written too.
                            for (k, out) in out.iter().enumerate().take(if by_channels { depth } else { 0 }) {
                                S::store(dm.as_mut_ptr().add(f * z.matrix_out + (i + k) * row + c), out[f]);
                            }
                        }
                    }
                }
            }
            c += S::LANES;
        }
    }
}

/// A line of the input's gradient: `B` applied to the rows of its tiles, added where neighbours overlap.
#[inline(always)]
unsafe fn horizontal_input_gradient<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    dv: &[Wide<S>],
    line: &mut [Wide<S>],
) {
    let ld = padded(s.c_in);
    for i in 0..block.tiles() {
        let (r, tx) = block.place(i);
        let from = dv[i * leading(s.c_in)..].as_ptr();
        let to = line[(r * z.columns + TILE * tx) * ld..].as_mut_ptr();
        let mut c = 0;
        while c < s.c_in {
            // SAFETY: one vector of each matrix is read, a tile's six pixels of the line are written.
            unsafe {
                let values = input_gradient::<S>(gather::<S, SIDE>(from.add(c), z.matrix_in));
                for (j, mut value) in values.into_iter().enumerate() {
                    let p = to.add(j * ld + c);
                    if j < SIDE - TILE && tx > 0 {
                        value = S::add(value, S::W::load(p));
                    }
                    S::W::store(p, value);
                }
            }
            c += S::LANES;
        }
    }
}

/// The input's gradient: `B` applied to the columns of the six lines, with the rows that the row of tiles above
/// left in `carry`; written or added to `dx`.
#[inline(always)]
unsafe fn vertical_input_gradient<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    lines: &[Wide<S>],
    carry: &mut [Wide<S>],
    dx: &mut [S::E],
    accumulate: bool,
) {
    let ld = padded(s.c_in);
    for (r, image, ty) in block.tile_rows() {
        // Below the last row of tiles one row of the image may still be waiting.
        let rows = if ty + 1 == block.th { TILE + 1 } else { TILE };
        for x in 0..s.w {
            let from = lines[(r * z.columns + x + 1) * ld..].as_ptr();
            let carry = carry[x * (SIDE - TILE) * ld..].as_mut_ptr();
            let mut c = 0;
            while c < s.c_in {
                // SAFETY: a pixel of each line and of the carry is read; only pixels inside the image are written.
                unsafe {
                    let mut values = input_gradient::<S>(gather::<S, SIDE>(from.add(c), z.line_in));
                    for j in 0..SIDE - TILE {
                        if ty > 0 {
                            values[j] = S::add(values[j], S::W::load(carry.add(j * ld + c)));
                        }
                        S::W::store(carry.add(j * ld + c), values[TILE + j]);
                    }
                    for (j, &value) in values.iter().enumerate().take(rows) {
                        // Row y of the padded image is row y - 1 of the image.
                        let y = TILE * ty + j;
                        if (1..=s.h).contains(&y) {
                            let to = dx.as_mut_ptr().add(((image * s.h + y - 1) * s.w + x) * s.c_in);
                            let value =
                                if accumulate { S::add(value, load_channels::<S>(to, c, s.c_in)) } else { value };
                            store_channels::<S>(to, c, s.c_in, value);
                        }
                    }
                }
                c += S::LANES;
            }
        }
    }
}
