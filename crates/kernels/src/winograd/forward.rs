//! The output.

use super::block::{Block, Sizes, gather};
use super::points::{SIDE, TILE, input, output};
use crate::gemm::{Lhs, Out, Rhs, WHOLE, gemm, leading, padded, steps};
use crate::operand::{InputReader, OutputWriter};
use crate::simd::{Element, Simd, Wide};
use crate::task::{ConvShape, Forward, Scratch, ScratchLen};

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
    let Forward { shape: s, images, input, packed, after, rows, out, scratch } = task;
    let Scratch { stored: v, wide, .. } = scratch;
    let z = Sizes::new(s, Block::rows(s, images.len()), s.w.div_ceil(TILE));
    let (lines_in, wide) = wide.split_at_mut(SIDE * z.line_in);
    let (m, lines_out) = wide.split_at_mut(SIDE * z.matrix_out);
    let (reader, writer) =
        (InputReader::new(input, s.c_in), OutputWriter::new(after, s.c_out, (images.start * s.h + rows.start) * s.w));
    let (k, product) = (steps::<S::E>(s.c_in), padded(s.c_out) * steps::<S::E>(s.c_in) * S::E::DEPTH);
    // SAFETY: images within the activation; blocks within the scratch sized by `forward_scratch`.
    unsafe {
        // Of several images all rows are wanted.
        let tile_rows = rows.start / TILE..(images.len() - 1) * s.h.div_ceil(TILE) + rows.end.div_ceil(TILE);
        for block in Block::some(s, images.len(), tile_rows) {
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
            vertical_output::<S>(s, block, &z, lines_out, rows.start, &writer, out);
        }
    }
}

/// Six lines of the padded input: `B^T` applied to the columns of each row of tiles.
#[inline(always)]
pub(super) unsafe fn vertical_input<S: Simd>(
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
pub(super) unsafe fn horizontal_input<S: Simd, const PAIRED: bool>(
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

/// The output, from row `start` on: `A^T` applied to the columns of the six lines, finished, cut at the image's border.
#[inline(always)]
unsafe fn vertical_output<S: Simd>(
    s: &ConvShape,
    block: Block,
    z: &Sizes,
    lines: &[Wide<S>],
    start: usize,
    writer: &OutputWriter<'_, S::E>,
    out: &mut [S::E],
) {
    let ld = padded(s.c_out);
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
                        let pixel = (image * s.h + TILE * ty + y - start) * s.w + x;
                        writer.store::<S>(out.as_mut_ptr(), pixel, c, value);
                    }
                }
                c += S::LANES;
            }
        }
    }
}
