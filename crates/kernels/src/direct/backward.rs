//! Both gradients.

use super::image::{Class, Padded, Rows, copy_padded};
use super::tiled;
use crate::gemm::{Lhs, Out, Rhs, Target, gemm, padded, steps};
use crate::operand::{GradientReader, InputReader, load_channels, store_channels};
use crate::simd::{Element, Simd, Tiles, Wide};
use crate::task::{Backward, ConvShape, Scratch, ScratchLen};

/// Scratch that [`backward`] needs, if not on tiles: the padded input and the output's gradient, both wide for the weight's gradient; the
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

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` as (k, k, c_in, padded c_out).
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E>) {
    if S::T::PRESENT {
        // SAFETY: the caller's contract.
        return unsafe { tiled::backward::<S>(task) };
    }
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
            copy_padded::<S, S::W>(s, &x, image, image_in, pad, 0..pad.h);
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

/// Rows of a product that are pixels of the input's gradient.
#[derive(Clone, Copy)]
struct Pixels<E> {
    dx: *mut E,
    channels: usize,
    accumulate: bool,
    rows: Rows,
}

impl<S: Simd> Target<S> for Pixels<S::E> {
    #[inline(always)]
    fn row(self, i: usize) -> Option<usize> {
        self.rows.pixel(i)
    }
    #[inline(always)]
    unsafe fn store(self, row: usize, j: usize, mut v: S::V) {
        // Columns are filled up to whole strips.
        if j < self.channels {
            // SAFETY: the caller's contract; the pixel is one of the image's.
            unsafe {
                let to = self.dx.add(row * self.channels);
                if self.accumulate {
                    v = S::add(v, load_channels::<S>(to, j, self.channels));
                }
                store_channels::<S>(to, j, self.channels, v);
            }
        }
    }
}

/// The input's gradient of one image, class by class and row by row.
#[inline(always)]
pub(super) unsafe fn input_gradient<S: Simd>(
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
            if S::T::PRESENT && s.stride == 1 {
                // One class and, as in the forward pass, one product.
                let rows = cy.range(s, s.h);
                let first = pad.at(rows.start + pad.border + 1 - cy.taps, columns.start + pad.border + 1 - cx.taps);
                let a = Lhs { data: gradient[first..].as_ptr(), row: pad.ld, col: S::E::DEPTH, segments };
                let (m, b) = ((rows.len() - 1) * pad.w + columns.len(), Rhs::packed(class.as_ptr(), k * cy.taps));
                let (dx, channels) = (dx.as_mut_ptr(), s.c_in);
                let to = Pixels { dx, channels, accumulate, rows: Rows { width: columns.len(), pitch: pad.w } };
                // SAFETY: the taps of a pixel lie in the bordered gradient, all pixels in the image.
                unsafe { gemm::<S>(m, ld, k, a, b, to) };
                continue;
            }
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
