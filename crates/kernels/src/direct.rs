//! Convolution of any kernel size, stride and padding by its definition: matrix products straight from a padded image.
//!
//! In a padded NHWC image the pixels under one row of the kernel lie side by side, so a patch is `k` segments of
//! `k * c_in` numbers, and neighbouring patches of a row of the output lie `stride` pixels apart. That is a matrix which the
//! product ([`crate::gemm`]) reads in place: nothing is copied into patches.
//!
//! The input's gradient is of the same kind. Input pixels fall into `stride * stride` classes by their position modulo
//! the stride; those of one class see the same taps of the kernel, and are a stride-1 convolution of the padded output
//! gradient with these taps, turned around. No pixel is written twice.

use std::sync::Arc;

use crate::gemm::{Lhs, Out, Rhs, STRIP, gemm, padded, steps};
use crate::operand::{GradientReader, InputReader, OutputWriter, load_channels, store_channels};
use crate::runtime::{Buffer, Runtime};
use crate::simd::{Element, Simd, Wide};
use crate::task::{Backward, ConvShape, Forward, Scratch, ScratchLen, Sides};

/// Channels of a pixel of a padded image: whole steps of a product, nothing more.
fn channels<E: Element>(c: usize) -> usize {
    c.next_multiple_of(E::DEPTH)
}

/// A zero-bordered image.
#[derive(Clone, Copy)]
struct Padded {
    h: usize,
    w: usize,
    /// Distance of two pixels.
    ld: usize,
    /// Zero rows above and columns on the left.
    border: usize,
}

impl Padded {
    /// The input, stored as `T`.
    fn input<T: Element>(s: &ConvShape) -> Padded {
        let p = s.padding;
        Padded { h: s.h + 2 * p, w: s.w + 2 * p, ld: channels::<T>(s.c_in), border: p }
    }
    /// The output's gradient, with room for the taps of every class.
    fn gradient<E: Element>(s: &ConvShape) -> Padded {
        let border = s.k.div_ceil(s.stride) - 1;
        // The last pixel of a class may lie behind what the strides reach.
        let (h, w) = ((s.h + s.padding - 1) / s.stride + 1, (s.w + s.padding - 1) / s.stride + 1);
        let (h, w) = (h.max(s.out_h()) + border, w.max(s.out_w()) + border);
        Padded { h, w, ld: channels::<E>(s.c_out), border }
    }
    /// Elements, and a vector more: the last pixel may be read beyond its end.
    fn len(&self) -> usize {
        self.h * self.w * self.ld + 2 * STRIP
    }
    fn at(&self, y: usize, x: usize) -> usize {
        (y * self.w + x) * self.ld
    }
}

/// The pixels of one class in one direction: those at `rest + stride * q` of the padded input.
#[derive(Clone, Copy)]
struct Class {
    rest: usize,
    /// Taps that reach them: `rest`, `rest + stride`, ...
    taps: usize,
}

impl Class {
    fn all(s: &ConvShape) -> impl Iterator<Item = Class> + Clone + use<> {
        let (k, stride) = (s.k, s.stride);
        (0..stride).map(move |rest| Class { rest, taps: k.saturating_sub(rest).div_ceil(stride) })
    }
    /// The values of q that lie inside an image side of `len` pixels.
    fn range(&self, s: &ConvShape, len: usize) -> std::ops::Range<usize> {
        let first = s.padding.saturating_sub(self.rest).div_ceil(s.stride);
        let end = (s.padding + len).saturating_sub(self.rest).div_ceil(s.stride);
        first..end.max(first)
    }
}

/// The weights, packed: for the output as a (k, k * c_in; c_out) matrix, for the input's gradient, if asked for, as one
/// (taps, taps * c_out; c_in) matrix a class.
pub fn pack<E: Element>(runtime: &Arc<Runtime<E>>, s: &ConvShape, weight: &[E::Wide], backward: bool) -> Sides<E> {
    let (ci, co, taps) = (channels::<E>(s.c_in), channels::<E>(s.c_out), s.k * s.k);
    let (input, output) = (taps, s.c_in * taps);
    let mut forward = Buffer::take(runtime, taps * ci * padded(s.c_out));
    matrix(forward.as_mut_slice(), [taps, ci, s.c_in, s.c_out], |tap, i, o| weight[o * output + i * input + tap]);
    // Every tap belongs to one class.
    let mut side = Buffer::take(runtime, if backward { taps * co * padded(s.c_in) } else { 0 });
    let mut rest = side.as_mut_slice();
    for y in Class::all(s).filter(|_| backward) {
        for x in Class::all(s) {
            let (class, behind) = std::mem::take(&mut rest).split_at_mut(y.taps * x.taps * co * padded(s.c_in));
            rest = behind;
            matrix(class, [y.taps * x.taps, co, s.c_out, s.c_in], |tap, o, i| {
                // Turned around, so that the gradient's pixels come in their order in memory.
                let (jy, jx) = (y.taps - 1 - tap / x.taps, x.taps - 1 - tap % x.taps);
                let tap = (y.rest + s.stride * jy) * s.k + x.rest + s.stride * jx;
                weight[o * output + i * input + tap]
            });
        }
    }
    Sides { forward, backward: side }
}

/// Writes a matrix of `taps` times `ld` rows in strips of columns; `value` of (tap, channel, column) is asked for the first
/// `channels` rows of each tap and for real columns only, all else is zero.
#[inline(always)]
fn matrix<E: Element>(
    to: &mut [E],
    [taps, ld, channels, columns]: [usize; 4],
    value: impl Fn(usize, usize, usize) -> E::Wide,
) {
    to.fill(E::default());
    let strip_len = steps::<E>(taps * ld) * STRIP * E::DEPTH;
    // A class without taps has no rows.
    for (strip, to) in to.chunks_exact_mut(strip_len.max(1)).enumerate() {
        let first = strip * STRIP;
        // A column's weights lie side by side in memory, tap by tap.
        for i in 0..channels {
            for j in first..columns.min(first + STRIP) {
                for tap in 0..taps {
                    let row = tap * ld + i;
                    to[(row / E::DEPTH * STRIP + j - first) * E::DEPTH + row % E::DEPTH] = E::narrow(value(tap, i, j));
                }
            }
        }
    }
}

/// Scratch that [`forward`] needs: one padded image, the products of a row of the output.
pub fn forward_scratch<E: Element>(s: &ConvShape) -> ScratchLen {
    ScratchLen { stored: Padded::input::<E>(s).len(), wide: s.out_w() * padded(s.c_out), segments: s.k }
}

/// Convolves the images of one chunk.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn forward<S: Simd>(task: Forward<'_, S::E>) {
    let Forward { shape: s, images, input, packed, after, out, scratch } = task;
    let Scratch { stored: image_in, wide: products, segments } = scratch;
    let pad = Padded::input::<S::E>(s);
    let (reader, writer) = (InputReader::new(input, s.c_in), OutputWriter::new(after, s.c_out));
    let (k, ldo) = (steps::<S::E>(s.k * pad.ld), padded(s.c_out));
    segments.iter_mut().enumerate().for_each(|(ky, at)| *at = pad.at(ky, 0));
    let start = images.start;
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; a patch lies in the padded image, a row of products in the scratch.
        unsafe {
            copy_padded::<S, S>(s, &reader, image, image_in, pad);
            for y in 0..s.out_h() {
                gemm::<S>(
                    s.out_w(),
                    ldo,
                    k,
                    Lhs {
                        data: image_in[pad.at(y * s.stride, 0)..].as_ptr(),
                        row: s.stride * pad.ld,
                        col: S::E::DEPTH,
                        segments,
                    },
                    Rhs::packed(packed.forward.as_slice().as_ptr(), k * s.k),
                    Out { data: products.as_mut_ptr(), row: ldo, accumulate: false },
                );
                for x in 0..s.out_w() {
                    let from = products[x * ldo..].as_ptr();
                    let pixel = ((local * s.out_h() + y) * s.out_w() + x) * s.c_out;
                    let mut c = 0;
                    while c < s.c_out {
                        let to = out[pixel..][..s.c_out].as_mut_ptr();
                        writer.store::<S>(to, start * s.output_len() + pixel, c, S::W::load(from.add(c)));
                        c += S::LANES;
                    }
                }
            }
        }
    }
}

/// Copies one image into a zero-bordered one, stored as `T` stores.
#[inline(always)]
unsafe fn copy_padded<S: Simd, T: Simd<V = S::V>>(
    s: &ConvShape,
    reader: &InputReader<'_, S::E>,
    image: usize,
    to: &mut [T::E],
    pad: Padded,
) where
    T::E: Element<Wide = Wide<S>>,
{
    let zero = T::E::default();
    let (top, bottom) = (pad.at(pad.border, 0), pad.at(pad.border + s.h, 0));
    to[..top].fill(zero);
    to[bottom..].fill(zero);
    for y in 0..s.h {
        let row = &mut to[pad.at(y + pad.border, 0)..][..pad.w * pad.ld];
        row[..pad.border * pad.ld].fill(zero);
        row[(pad.border + s.w) * pad.ld..].fill(zero);
        if let (Some(u), true) = (reader.plain(), pad.ld == s.c_in) {
            let from = &u[(image * s.h + y) * s.w * s.c_in..][..s.w * s.c_in];
            let row = &mut row[pad.border * pad.ld..][..from.len()];
            row.iter_mut().zip(from).for_each(|(to, x)| *to = T::E::narrow(x.widen()));
            continue;
        }
        for x in 0..s.w {
            let from = ((image * s.h + y) * s.w + x) * s.c_in;
            let pixel = row[(x + pad.border) * pad.ld..][..pad.ld].as_mut_ptr();
            let mut c = 0;
            while c < pad.ld {
                // SAFETY: the pixel holds `ld` elements; what lies behind the last channel is zero.
                unsafe { store_channels::<T>(pixel, c, pad.ld, reader.load::<S>(from, c)) };
                c += S::LANES;
            }
        }
    }
}

/// Scratch that [`backward`] needs: the padded input and the output's gradient, both wide for the weight's gradient; the
/// padded gradient and a row of products for the input's.
pub fn backward_scratch<E: Element>(s: &ConvShape) -> ScratchLen {
    let gradient = s.out_h() * s.out_w() * padded(s.c_out);
    let row = (s.w.div_ceil(s.stride) + 1) * padded(s.c_in);
    ScratchLen {
        stored: Padded::gradient::<E>(s).len(),
        wide: Padded::input::<E::Wide>(s).len() + gradient + row,
        segments: s.k.max(s.out_h()),
    }
}

/// Length of the weight gradient that a group of chunks accumulates: (k, k, c_in, padded c_out).
pub fn accumulator_len(s: &ConvShape) -> usize {
    s.k * s.k * s.c_in * padded(s.c_out)
}

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` as (k, k, c_in, padded c_out).
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E>) {
    let Backward { shape: s, images, input, gradient, packed, mut dx, dw, scratch } = task;
    let Scratch { stored: padded_gradient, wide, segments } = scratch;
    let pad = Padded::input::<Wide<S>>(s);
    let ldo = padded(s.c_out);
    let (image_in, wide) = wide.split_at_mut(pad.len());
    let (dy, products) = wide.split_at_mut(s.out_h() * s.out_w() * ldo);
    let x = InputReader::new(input, s.c_in);
    let g = GradientReader::new(gradient, s.c_out);
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; every product's operands lie in the scratch.
        unsafe {
            copy_padded::<S, S::W>(s, &x, image, image_in, pad);
            copy_gradient::<S>(s, &g, image, dy, dx.is_some().then_some(&mut *padded_gradient));
            // A row of the kernel at a time: its (k * c_in) numbers under every output pixel, times the gradients there.
            let rows = &mut segments[..s.out_h()];
            rows.iter_mut().enumerate().for_each(|(y, at)| *at = pad.at(y * s.stride, 0));
            for ky in 0..s.k {
                gemm::<S::W>(
                    s.k * s.c_in,
                    ldo,
                    s.out_w(),
                    Lhs { data: image_in[pad.at(ky, 0)..].as_ptr(), row: 1, col: s.stride * pad.ld, segments: rows },
                    Rhs::rows(dy.as_ptr(), ldo),
                    Out { data: dw[ky * s.k * s.c_in * ldo..].as_mut_ptr(), row: ldo, accumulate: true },
                );
            }
            if let Some((dx, accumulate)) = &mut dx {
                let dx = &mut dx[local * s.input_len()..][..s.input_len()];
                input_gradient::<S>(
                    s,
                    padded_gradient,
                    packed.backward.as_slice(),
                    segments,
                    products,
                    dx,
                    *accumulate,
                );
            }
        }
    }
}

/// The gradient of one image as (pixels, padded c_out) and, if asked for, zero-bordered.
#[inline(always)]
unsafe fn copy_gradient<S: Simd>(
    s: &ConvShape,
    g: &GradientReader<'_, S::E>,
    image: usize,
    dy: &mut [Wide<S>],
    mut bordered: Option<&mut [S::E]>,
) {
    let (ldo, pad) = (padded(s.c_out), Padded::gradient::<S::E>(s));
    if let Some(to) = &mut bordered {
        to.fill(S::E::default());
    }
    for y in 0..s.out_h() {
        for x in 0..s.out_w() {
            let pixel = y * s.out_w() + x;
            let mut c = 0;
            while c < s.c_out {
                // SAFETY: c < c_out; both targets hold the pixel.
                unsafe {
                    let v = g.load::<S>((image * s.out_h() * s.out_w() + pixel) * s.c_out, c);
                    S::W::store(dy[pixel * ldo..][..ldo].as_mut_ptr().add(c), v);
                    if let Some(to) = &mut bordered {
                        let to = &mut to[pad.at(y + pad.border, x + pad.border)..][..pad.ld];
                        store_channels::<S>(to.as_mut_ptr(), c, pad.ld, v);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// The input's gradient of one image, class by class and row by row.
#[inline(always)]
unsafe fn input_gradient<S: Simd>(
    s: &ConvShape,
    gradient: &[S::E],
    weights: &[S::E],
    segments: &mut [usize],
    products: &mut [Wide<S>],
    dx: &mut [S::E],
    accumulate: bool,
) {
    let (ld, pad) = (padded(s.c_in), Padded::gradient::<S::E>(s));
    let mut weights = weights;
    for cy in Class::all(s) {
        for cx in Class::all(s) {
            let k = steps::<S::E>(cx.taps * pad.ld);
            let (class, rest) = weights.split_at(cy.taps * cx.taps * pad.ld * ld);
            weights = rest;
            let segments = &mut segments[..cy.taps];
            segments.iter_mut().enumerate().for_each(|(j, at)| *at = pad.at(j, 0));
            let columns = cx.range(s, s.w);
            for qy in cy.range(s, s.h) {
                // SAFETY: the taps of a pixel lie in the bordered gradient, a row of products in the scratch.
                unsafe {
                    if cy.taps * cx.taps > 0 {
                        let first = pad.at(qy + pad.border + 1 - cy.taps, columns.start + pad.border + 1 - cx.taps);
                        gemm::<S>(
                            columns.len(),
                            ld,
                            k,
                            Lhs { data: gradient[first..].as_ptr(), row: pad.ld, col: S::E::DEPTH, segments },
                            Rhs::packed(class.as_ptr(), k * cy.taps),
                            Out { data: products.as_mut_ptr(), row: ld, accumulate: false },
                        );
                    } else if accumulate {
                        continue;
                    } else {
                        products.fill(Wide::<S>::default());
                    }
                    let y = cy.rest + s.stride * qy - s.padding;
                    for (i, qx) in columns.clone().enumerate() {
                        let from = products[i * ld..][..ld].as_ptr();
                        let x = cx.rest + s.stride * qx - s.padding;
                        let to = dx[(y * s.w + x) * s.c_in..][..s.c_in].as_mut_ptr();
                        let mut c = 0;
                        while c < s.c_in {
                            let mut v = S::W::load(from.add(c));
                            if accumulate {
                                v = S::add(v, load_channels::<S>(to, c, s.c_in));
                            }
                            store_channels::<S>(to, c, s.c_in, v);
                            c += S::LANES;
                        }
                    }
                }
            }
        }
    }
}
