//! Both gradients.

use super::block::{Block, ELEMENTS, Sizes, gather};
use super::forward::{horizontal_input, vertical_input};
use super::points::{SIDE, TILE, gradient, input_gradient};
use crate::gemm::{Lhs, Out, Rhs, WHOLE, gemm, leading, padded, steps};
use crate::operand::{GradientReader, InputReader, load_channels, store_channels};
use crate::simd::{Element, Simd, Wide};
use crate::task::{Backward, ConvShape, Scratch, ScratchLen};

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
