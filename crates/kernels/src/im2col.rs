//! Convolution of any kernel size, stride and padding as a matrix product: the patches of a block of
//! output pixels become the rows of a matrix (im2col), whose product with the weights is the output.

use crate::conv::{Backward, ConvShape, Forward, Scratch, ScratchLen, Sides};
use crate::gemm::{Lhs, Out, Rhs, STRIP, gemm, leading, padded};
use crate::operand::{GradientReader, InputReader, copy_padded, crop_padded, load_channels, store_channels};
use crate::simd::{Element, Simd, Wide};

/// Output pixels a block.
const PIXELS: usize = 96;

/// Length of a patch: (ky, kx, channel), each pixel's channels filled up to whole strips.
fn patch(s: &ConvShape) -> usize {
    s.k * s.k * padded_in(s)
}

/// Channels of a patch's pixel. Few channels are kept dense: filling 3 up to 16 would cost five times the work.
fn padded_in(s: &ConvShape) -> usize {
    if s.c_in < STRIP { s.c_in } else { padded(s.c_in) }
}

/// A padded scratch image, (rows, columns, channels).
fn padded_shape(s: &ConvShape) -> (usize, usize, usize) {
    (s.h + 2 * s.padding, s.w + 2 * s.padding, padded(s.c_in))
}

fn padded_len(s: &ConvShape) -> usize {
    let (h, w, c) = padded_shape(s);
    h * w * c
}

/// The weights as a (patch, c_out) matrix, packed, and, if asked for, its transpose, packed.
pub fn pack<W: Element>(s: &ConvShape, weight: &[W], backward: bool) -> Sides<W> {
    let (ci, co, k) = (s.c_in, s.c_out, patch(s));
    let mut packed = Sides {
        forward: vec![W::default(); padded(co) * k],
        backward: vec![W::default(); if backward { padded(k) * co } else { 0 }],
    };
    for o in 0..co {
        for i in 0..ci {
            for tap in 0..s.k * s.k {
                let w = weight[(o * ci + i) * s.k * s.k + tap];
                let p = tap * padded_in(s) + i;
                packed.forward[(o / STRIP * k + p) * STRIP + o % STRIP] = w;
                if backward {
                    packed.backward[(p / STRIP * co + o) * STRIP + p % STRIP] = w;
                }
            }
        }
    }
    packed
}

/// Scratch elements that [`forward`] needs: one padded image, the patches and the products of a block.
pub fn forward_scratch(s: &ConvShape) -> ScratchLen {
    ScratchLen { stored: 0, wide: padded_len(s) + PIXELS * (leading(patch(s)) + leading(s.c_out)) + 2 * STRIP }
}

/// Convolves the images of one chunk.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn forward<S: Simd>(task: Forward<'_, S::E, Wide<S>>) {
    let Forward { shape: s, images, input, packed, residual, out, scratch: Scratch { wide: scratch, .. } } = task;
    let (k, ldk, ldo) = (patch(s), leading(patch(s)), leading(s.c_out));
    let (pad, rest) = scratch.split_at_mut(padded_len(s));
    let (products, patches) = rest.split_at_mut(PIXELS * ldo);
    let reader = InputReader::new(input, s.c_in);
    let pixels = s.out_h() * s.out_w();
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; blocks within the scratch sized by `forward_scratch`.
        unsafe {
            let at = image * s.h * s.w * s.c_in;
            copy_padded::<S>(&reader, at, (s.h, s.w, s.c_in), pad, padded_shape(s), (s.padding, s.padding));
            let mut first = 0;
            while first < pixels {
                let count = PIXELS.min(pixels - first);
                gather_patches::<S::W>(s, pad, first, count, patches, ldk);
                gemm::<S::W>(
                    count,
                    padded(s.c_out),
                    k,
                    Lhs { data: patches.as_ptr(), row: ldk, col: 1 },
                    Rhs::packed(packed.forward.as_ptr(), k),
                    Out { data: products.as_mut_ptr(), row: ldo, accumulate: false },
                );
                for i in 0..count {
                    let from = products[i * ldo..].as_ptr();
                    let at = (local * pixels + first + i) * s.c_out;
                    let mut c = 0;
                    while c < s.c_out {
                        let mut v = S::W::load(from.add(c));
                        if let Some(r) = residual {
                            let r = r.as_ptr().add((image * pixels + first + i) * s.c_out);
                            v = S::add(v, load_channels::<S>(r, c, s.c_out));
                        }
                        store_channels::<S>(out[at..][..s.c_out].as_mut_ptr(), c, s.c_out, v);
                        c += S::LANES;
                    }
                }
                first += count;
            }
        }
    }
}

/// Where the patch of output pixel `pixel` starts in the padded image.
fn patch_start(s: &ConvShape, pixel: usize) -> usize {
    let (y, x) = (pixel / s.out_w(), pixel % s.out_w());
    let (_, width, ld) = padded_shape(s);
    (y * s.stride * width + x * s.stride) * ld
}

#[inline(always)]
unsafe fn gather_patches<S: Simd>(
    s: &ConvShape,
    pad: &[S::E],
    first: usize,
    count: usize,
    patches: &mut [S::E],
    ldk: usize,
) {
    let (_, width, ld) = padded_shape(s);
    let channels = padded_in(s);
    for i in 0..count {
        let from = patch_start(s, first + i);
        for ky in 0..s.k {
            for kx in 0..s.k {
                let from = pad[from + (ky * width + kx) * ld..][..channels].as_ptr();
                let to = patches[i * ldk + (ky * s.k + kx) * channels..][..channels].as_mut_ptr();
                let mut c = 0;
                while c < channels {
                    // SAFETY: both slices hold `channels` elements.
                    unsafe { store_channels::<S>(to, c, channels, load_channels::<S>(from, c, channels)) };
                    c += S::LANES;
                }
            }
        }
    }
}

/// Scratch elements that [`backward`] needs.
pub fn backward_scratch(s: &ConvShape) -> ScratchLen {
    ScratchLen { stored: 0, wide: 2 * padded_len(s) + PIXELS * (leading(patch(s)) + leading(s.c_out)) + 2 * STRIP }
}

/// Length of the gradient that a group of chunks accumulates: (patch, padded c_out).
pub fn accumulator_len(s: &ConvShape) -> usize {
    patch(s) * padded(s.c_out)
}

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` as a (patch, c_out) matrix.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E, Wide<S>>) {
    let Backward { shape: s, images, input, gradient, packed, mut dx, dw, scratch: Scratch { wide: scratch, .. } } = task;
    let (k, ldk, ldo) = (patch(s), leading(patch(s)), leading(s.c_out));
    let (pad, rest) = scratch.split_at_mut(padded_len(s));
    let (dpad, rest) = rest.split_at_mut(padded_len(s));
    let (dy, patches) = rest.split_at_mut(PIXELS * ldo);
    let x = InputReader::new(input, s.c_in);
    let g = GradientReader::new(gradient, s.c_out);
    let pixels = s.out_h() * s.out_w();
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; blocks within the scratch sized by `backward_scratch`.
        unsafe {
            let at = image * s.h * s.w * s.c_in;
            copy_padded::<S>(&x, at, (s.h, s.w, s.c_in), pad, padded_shape(s), (s.padding, s.padding));
            dpad.fill(Wide::<S>::default());
            let mut first = 0;
            while first < pixels {
                let count = PIXELS.min(pixels - first);
                gather_patches::<S::W>(s, pad, first, count, patches, ldk);
                for i in 0..count {
                    let at = (image * pixels + first + i) * s.c_out;
                    let mut c = 0;
                    while c < s.c_out {
                        S::W::store(dy[i * ldo..].as_mut_ptr().add(c), g.load::<S>(at, c));
                        c += S::LANES;
                    }
                }
                gemm::<S::W>(
                    k,
                    padded(s.c_out),
                    count,
                    Lhs { data: patches.as_ptr(), row: 1, col: ldk },
                    Rhs::rows(dy.as_ptr(), ldo),
                    Out { data: dw.as_mut_ptr(), row: padded(s.c_out), accumulate: true },
                );
                if dx.is_some() {
                    // The patches are not needed again: their gradient takes their place.
                    gemm::<S::W>(
                        count,
                        padded(k),
                        s.c_out,
                        Lhs { data: dy.as_ptr(), row: ldo, col: 1 },
                        Rhs::packed(packed.backward.as_ptr(), s.c_out),
                        Out { data: patches.as_mut_ptr(), row: ldk, accumulate: false },
                    );
                    add_patches::<S::W>(s, patches, ldk, first, count, dpad);
                }
                first += count;
            }
            if let Some((dx, accumulate)) = &mut dx {
                let dx = &mut dx[local * s.h * s.w * s.c_in..][..s.h * s.w * s.c_in];
                crop_padded::<S>(dpad, padded_shape(s), (s.padding, s.padding), (s.h, s.w, s.c_in), dx, *accumulate);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_patches<S: Simd>(
    s: &ConvShape,
    patches: &[S::E],
    ldk: usize,
    first: usize,
    count: usize,
    dpad: &mut [S::E],
) {
    let (_, width, ld) = padded_shape(s);
    let channels = padded_in(s);
    for i in 0..count {
        let to = patch_start(s, first + i);
        for ky in 0..s.k {
            for kx in 0..s.k {
                let from = patches[i * ldk + (ky * s.k + kx) * channels..][..channels].as_ptr();
                let to = dpad[to + (ky * width + kx) * ld..][..channels].as_mut_ptr();
                let mut c = 0;
                while c < channels {
                    // SAFETY: both slices hold `channels` elements.
                    unsafe {
                        let sum = S::add(load_channels::<S>(to, c, channels), load_channels::<S>(from, c, channels));
                        store_channels::<S>(to, c, channels, sum);
                    }
                    c += S::LANES;
                }
            }
        }
    }
}

/// From the accumulated (patch, padded c_out) to (k, k, c_in, padded c_out).
pub fn fold<W: Element>(s: &ConvShape, accumulated: &[W], out: &mut [W]) {
    let row = padded(s.c_out);
    for (to, from) in out.chunks_exact_mut(s.c_in * row).zip(accumulated.chunks_exact(padded_in(s) * row)) {
        to.copy_from_slice(&from[..to.len()]);
    }
}
