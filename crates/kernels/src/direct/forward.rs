//! The output.

use super::image::{Padded, Rows, channels, copy_padded, copy_pixels};
use crate::gemm::{Lhs, Rhs, Target, WHOLE, gemm, padded, steps};
use crate::operand::{InputReader, OutputWriter};
use crate::simd::{Element, Simd, Tiles};
use crate::task::{ConvShape, Forward, Scratch, ScratchLen};

/// A 1x1 convolution of stride 1 is one product, whose rows are the pixels of all images: so many at a time that they and
/// their outputs stay in the second cache.
fn rows_at_a_time(s: &ConvShape) -> Option<usize> {
    const FLOATS: usize = 1 << 15;
    let rows = FLOATS / (padded(s.c_in) + padded(s.c_out));
    ((s.k, s.stride, s.padding) == (1, 1, 0)).then(|| rows.next_multiple_of(12).max(24))
}

/// Scratch that [`forward`] needs: one padded image, or the rows at a time.
pub fn forward_scratch<E: Element>(s: &ConvShape) -> ScratchLen {
    let stored = match rows_at_a_time(s) {
        Some(rows) => rows * channels::<E>(s.c_in),
        None => Padded::input::<E>(s).len(),
    };
    ScratchLen { stored, wide: 0, segments: s.k }
}

/// Rows of a product that are pixels of the output, side by side.
#[derive(Clone, Copy)]
struct Pixels<'a, E: Element> {
    writer: &'a OutputWriter<'a, E>,
    out: *mut E,
    first: usize,
    channels: usize,
    rows: Rows,
}

impl<S: Simd> Target<S> for Pixels<'_, S::E> {
    #[inline(always)]
    fn row(self, i: usize) -> Option<usize> {
        self.rows.pixel(i)
    }
    #[inline(always)]
    unsafe fn store(self, row: usize, j: usize, v: S::V) {
        // Columns are filled up to whole strips.
        if j < self.channels {
            // SAFETY: the caller's contract; `forward` asks for pixels of its own images only.
            unsafe { self.writer.store::<S>(self.out, self.first + row, j, v) }
        }
    }
}

/// Convolves the images of one chunk.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn forward<S: Simd>(task: Forward<'_, S::E>) {
    let Forward { shape: s, images, input, packed, after, rows, out, scratch } = task;
    let Scratch { stored: image_in, segments, .. } = scratch;
    let (h, w) = (s.out_h(), s.out_w());
    let start = (images.start * h + rows.start) * w;
    let (reader, writer) = (InputReader::new(input, s.c_in), OutputWriter::new(after, s.c_out, start));
    let target = Pixels {
        writer: &writer,
        out: out.as_mut_ptr(),
        first: 0,
        channels: s.c_out,
        rows: Rows { width: w, pitch: w },
    };
    let pad = Padded::input::<S::E>(s);
    let (k, ldo, depth) = (steps::<S::E>(s.k * pad.ld), padded(s.c_out), S::E::DEPTH);
    let weight = Rhs::packed(packed.forward.as_slice().as_ptr(), k * s.k);
    if let Some(at_a_time) = rows_at_a_time(s) {
        let count = ((images.len() - 1) * h + rows.len()) * w;
        for first in (0..count).step_by(at_a_time) {
            let rows = at_a_time.min(count - first);
            // SAFETY: pixels of the activation and of the output.
            unsafe {
                copy_pixels::<S, S>(&reader, start + first, s.c_in, &mut image_in[..rows * pad.ld], pad.ld);
                let a = Lhs { data: image_in.as_ptr(), row: pad.ld, col: depth, segments: WHOLE };
                gemm::<S>(rows, ldo, k, a, weight, Pixels { first, ..target });
            }
        }
        return;
    }
    segments.iter_mut().enumerate().for_each(|(ky, at)| *at = pad.at(ky, 0));
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; a patch lies in the padded image, a row of pixels in the output.
        unsafe {
            copy_padded::<S, S>(
                s,
                &reader,
                image,
                image_in,
                pad,
                rows.start * s.stride..(rows.end - 1) * s.stride + s.k,
            );
            if S::T::PRESENT && s.stride == 1 && s.padding < s.k {
                // Tiles want many rows: all pixels of the padded image in one product, those of its border for nothing.
                let data = image_in[pad.at(rows.start, 0)..].as_ptr();
                let a = Lhs { data, row: pad.ld, col: depth, segments };
                let m = (rows.len() - 1) * pad.w + w;
                gemm::<S>(
                    m,
                    ldo,
                    k,
                    a,
                    weight,
                    Pixels { first: local * h * w, rows: Rows { width: w, pitch: pad.w }, ..target },
                );
                continue;
            }
            for y in rows.clone() {
                let data = image_in[pad.at(y * s.stride, 0)..].as_ptr();
                let a = Lhs { data, row: s.stride * pad.ld, col: depth, segments };
                let first = (local * h + y - rows.start) * w;
                gemm::<S>(w, ldo, k, a, weight, Pixels { first, ..target });
            }
        }
    }
}
