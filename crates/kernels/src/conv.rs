//! Convolution over NHWC slices: one task a few images, the same split whatever the number of threads.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::batch_norm::{self, NormSums};
use crate::gemm::padded;
use crate::operand::{After, Gradient, Input};
use crate::runtime::Runtime;
use crate::simd::{Element, Isa, Kernel, Simd, Tiles};
pub use crate::task::{Algorithm, ConvShape};
use crate::task::{Backward, Forward, Scratch, Sides};
use crate::{direct, winograd};

/// Partial sums of a weight gradient: fixed, so that the order of the sum does not depend on the threads.
const GROUPS: usize = 16;

/// A weight rearranged for an algorithm; made anew whenever the weight changes.
#[derive(Debug)]
pub enum Packed<E: Element> {
    /// Transformed.
    Winograd(Sides<E>),
    /// As it is.
    Direct(Sides<E>),
}

impl<E: Element> Packed<E> {
    /// Packs `weight` (c_out, c_in, k, k) for `algorithm`; for [`backward`] too only if asked to.
    pub fn new(
        runtime: &Arc<Runtime<E>>,
        shape: &ConvShape,
        algorithm: Algorithm,
        weight: &[E::Wide],
        backward: bool,
    ) -> Self {
        assert!(shape.fits(), "the kernel of {shape:?} does not fit");
        match algorithm {
            Algorithm::Winograd => {
                let fits = (shape.k, shape.stride, shape.padding) == (3, 1, 1);
                assert!(fits, "Winograd's algorithm is for 3x3, stride 1, padding 1, not for {shape:?}");
                Packed::Winograd(winograd::pack(runtime, shape, weight, backward))
            }
            Algorithm::Direct => Packed::Direct(direct::pack(runtime, shape, weight, backward)),
        }
    }
    fn sides(&self) -> &Sides<E> {
        let (Packed::Winograd(sides) | Packed::Direct(sides)) = self;
        sides
    }
    fn has_backward(&self) -> bool {
        !self.sides().backward.as_slice().is_empty()
    }
    /// Panics where the weights were packed for another convolution than `shape`, whatever its images' size, or for another
    /// algorithm.
    fn check(&self, shape: &ConvShape) {
        let of = self.sides().shape;
        assert!(shape.fits(), "the kernel of {shape:?} does not fit");
        assert_eq!(ConvShape { h: shape.h, w: shape.w, ..of }, *shape, "the weights were packed for {of:?}");
        let len = match self {
            Packed::Winograd(_) => winograd::packed_len::<E>(of.c_in, of.c_out),
            Packed::Direct(_) => direct::packed_len::<E>(&of),
        };
        assert_eq!(self.sides().forward.as_slice().len(), len, "the weights were packed for another algorithm");
    }
    fn images_per_chunk(&self, isa: Isa, s: &ConvShape) -> usize {
        match self {
            Packed::Winograd(_) => winograd::images_per_chunk(s),
            Packed::Direct(_) => direct::images_per_chunk::<E>(isa, s),
        }
    }
}

enum RunForward<'a, E: Element> {
    Winograd(Forward<'a, E>),
    Direct(Forward<'a, E>),
}

impl<E: Element> Kernel<E> for RunForward<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: `Element::run` checked the instruction set; the callers size the buffers.
        unsafe {
            match self {
                RunForward::Winograd(task) => winograd::forward::<S>(task),
                RunForward::Direct(task) => direct::forward::<S>(task),
            }
            S::T::release();
        }
    }
}

enum RunBackward<'a, E: Element> {
    Winograd(Backward<'a, E>),
    Direct(Backward<'a, E>),
}

impl<E: Element> Kernel<E> for RunBackward<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: as above.
        unsafe {
            match self {
                RunBackward::Winograd(task) => winograd::backward::<S>(task),
                RunBackward::Direct(task) => direct::backward::<S>(task),
            }
            S::T::release();
        }
    }
}

/// What the kernels read through pointers must be there.
fn check_input<E: Element>(shape: &ConvShape, input: &Input<'_, E>) {
    let fits = input.affine.is_none_or(|a| a.scale.len() == shape.c_in && a.shift.len() == shape.c_in);
    assert!(fits, "BatchNorm's coefficients are not those of {} channels", shape.c_in);
}

/// A task's images, rows of the output, and what it writes.
struct Part<'a, E: Element> {
    images: Range<usize>,
    rows: Range<usize>,
    out: &'a mut [E],
    stats: Option<&'a mut [E::Wide]>,
}

/// Cuts a batch into parts of at most `most` images; where images are fewer than `threads`, into rows of images.
fn parts<'a, E: Element>(
    shape: &ConvShape,
    (most, threads, step): (usize, usize, usize),
    n: usize,
    out: &'a mut [E],
    stats: Option<&'a mut [E::Wide]>,
) -> Vec<Part<'a, E>> {
    let (image_len, h) = ((out.len() / n.max(1)).max(1), shape.out_h());
    let mut parts = Vec::new();
    if n >= threads || stats.is_some() {
        let images = most.min(n.div_ceil(threads)).max(1);
        let mut stats = stats.map(|stats| stats.chunks_mut(images * 2 * shape.c_out));
        for (i, out) in out.chunks_mut(images * image_len).enumerate() {
            let stats = stats.as_mut().and_then(Iterator::next);
            let images: Range<usize> = i * images..(i * images + images).min(n);
            parts.push(Part { images, rows: 0..h, out, stats });
        }
        return parts;
    }
    let rows = h.div_ceil(threads.div_ceil(n.max(1))).next_multiple_of(step);
    for (image, out) in out.chunks_mut(image_len).enumerate() {
        for (i, out) in out.chunks_mut((image_len / h * rows).max(1)).enumerate() {
            let rows = i * rows..(i * rows + rows).min(h);
            parts.push(Part { images: image..image + 1, rows, out, stats: None });
        }
    }
    parts
}

/// `out = conv(input)`, finished as `after` says, for `n` images, in tasks for so many `threads`. With `stats`, each image's
/// mean and sum of squared deviations per channel, (n, 2, c_out), are taken while the image is in the cache.
#[allow(clippy::too_many_arguments)]
pub fn forward<E: Element>(
    runtime: &Runtime<E>,
    shape: &ConvShape,
    input: Input<'_, E>,
    packed: &Packed<E>,
    after: After<'_, E>,
    out: &mut [E],
    stats: Option<&mut [E::Wide]>,
    threads: usize,
) {
    packed.check(shape);
    let image_len = shape.output_len() / shape.c_out * after.within.map_or(shape.c_out, |w| w.channels);
    let n = out.len() / image_len;
    assert_eq!(input.u.len(), n * shape.input_len(), "the input does not hold {n} images of {shape:?}");
    check_input(shape, &input);
    let affine = after.affine.map(|a| [a.scale, a.shift]);
    let mut per_channel = after.bias.into_iter().chain(affine.into_iter().flatten());
    assert!(per_channel.all(|v| v.len() == shape.c_out), "what follows is not for {} channels", shape.c_out);
    assert!(after.residual.is_none_or(|r| r.len() == n * shape.output_len()));
    assert!(stats.as_ref().is_none_or(|s| s.len() == n * 2 * shape.c_out && after.within.is_none()));
    assert!(after.within.is_none_or(|w| w.first + shape.c_out <= w.channels) && out.len() == n * image_len);
    let most = packed.images_per_chunk(runtime.isa, shape);
    let (len, step) = match packed {
        Packed::Winograd(_) => (winograd::forward_scratch(shape, most), winograd::ROWS),
        Packed::Direct(_) => (direct::forward_scratch::<E>(shape), 1),
    };
    parts(shape, (most, threads.max(1), step), n, out, stats).into_par_iter().for_each(|part| {
        let Part { images, rows, out, stats } = part;
        let (mut stored, mut wide) = (runtime.take(len.stored), runtime.take_wide(len.wide));
        let mut segments = vec![0; len.segments];
        let scratch = Scratch { stored: &mut stored, wide: &mut wide, segments: &mut segments };
        runtime.isa.run(match packed {
            Packed::Winograd(packed) => {
                RunForward::Winograd(Forward { shape, images, input, packed, after, rows, out: &mut *out, scratch })
            }
            Packed::Direct(packed) => {
                RunForward::Direct(Forward { shape, images, input, packed, after, rows, out: &mut *out, scratch })
            }
        });
        runtime.give(stored);
        runtime.give_wide(wide);
        for (image, stats) in
            out.chunks_exact(image_len).zip(stats.into_iter().flat_map(|s| s.chunks_exact_mut(2 * shape.c_out)))
        {
            batch_norm::image_stats(runtime.isa, image, shape.c_out, stats);
        }
    });
}

/// Gradients of [`forward`]: the weight's into `dw` (c_out, c_in, k, k), overwritten; the input's into
/// `dx`, overwritten or added to. With `sums`, what the BatchNorm that made the input needs for its own
/// backward pass is taken from `dx` while an image is in the cache.
#[allow(clippy::too_many_arguments)]
pub fn backward<E: Element>(
    runtime: &Runtime<E>,
    shape: &ConvShape,
    input: Input<'_, E>,
    gradient: Gradient<'_, E>,
    packed: &Packed<E>,
    dx: Option<(&mut [E], bool)>,
    dw: &mut [E::Wide],
    sums: Option<NormSums<'_, E>>,
) {
    packed.check(shape);
    let n = input.u.len() / shape.input_len();
    check_input(shape, &input);
    assert_eq!(input.u.len(), n * shape.input_len(), "the input does not hold whole images of {shape:?}");
    assert_eq!(gradient.g.len(), n * shape.output_len(), "the gradient does not hold {n} images of {shape:?}");
    assert!(gradient.relu.is_none_or(|y| y.len() == gradient.g.len()), "the ReLU's output is as long as its gradient");
    if let Some(norm) = &gradient.norm {
        let per_channel = [norm.affine.scale, norm.affine.shift, norm.slope, norm.spread, norm.offset];
        assert!(norm.u.len() == gradient.g.len() && per_channel.iter().all(|v| v.len() == shape.c_out));
    }
    if let Some((dx, _)) = &dx {
        assert_eq!(dx.len(), input.u.len(), "the input's gradient is as long as the input");
        assert!(packed.has_backward(), "the weights were packed for the forward pass alone");
    }
    assert_eq!(dw.len(), shape.weight_len(), "the weight's gradient is as long as the weight");
    if let Some(s) = &sums {
        assert!(dx.is_some(), "the sums are of the input's gradient");
        let per_channel = [s.affine.scale, s.affine.shift, s.mean];
        assert!(s.u.len() == input.u.len() && per_channel.iter().all(|v| v.len() == shape.c_in));
        assert_eq!(s.out.len(), n * 2 * shape.c_in);
    }
    let per_task = packed.images_per_chunk(runtime.isa, shape);
    // The definition adds to the group's gradient itself.
    let (scratch_len, accumulator_len) = match packed {
        Packed::Winograd(_) => (winograd::backward_scratch(shape, per_task), winograd::accumulator_len(shape)),
        Packed::Direct(_) => (direct::backward_scratch::<E>(runtime.isa, shape), 0),
    };
    let gradient_len = shape.k * shape.k * shape.c_in * padded(shape.c_out);
    let chunks = n.div_ceil(per_task);
    let per_group = chunks.div_ceil(GROUPS).max(1) * per_task;
    let groups = n.div_ceil(per_group);
    let (wants_dx, accumulate) = (dx.is_some(), dx.as_ref().is_some_and(|(_, a)| *a));
    let mut no_dx = vec![E::default(); if wants_dx { 0 } else { n }];
    let (dx, dx_len) = match dx {
        Some((dx, _)) => (dx, shape.input_len()),
        None => (no_dx.as_mut_slice(), 1),
    };
    let (norm, sum_out) = match sums {
        Some(s) => (Some((s.u, s.affine, s.mean)), s.out),
        None => (None, &mut [][..]),
    };
    let mut no_sums = vec![E::Wide::default(); if norm.is_some() { 0 } else { n }];
    let (sum_out, sum_len) = if norm.is_some() { (sum_out, 2 * shape.c_in) } else { (no_sums.as_mut_slice(), 1) };

    let mut partial = runtime.take_wide(groups * gradient_len);
    partial
        .par_chunks_mut(gradient_len)
        .zip(dx.par_chunks_mut(per_group * dx_len))
        .zip(sum_out.par_chunks_mut(per_group * sum_len))
        .enumerate()
        .for_each(|(group, ((partial, dx), sum_out))| {
            let mut accumulator = runtime.take_wide(accumulator_len);
            let dw = if accumulator_len > 0 { &mut accumulator[..] } else { &mut *partial };
            dw.fill(E::Wide::default());
            let (mut stored, mut wide) = (runtime.take(scratch_len.stored), runtime.take_wide(scratch_len.wide));
            let mut segments = vec![0; scratch_len.segments];
            let mut start = group * per_group;
            let chunks = dx.chunks_mut(per_task * dx_len).zip(sum_out.chunks_mut(per_task * sum_len));
            for (dx, sum_out) in chunks {
                let images = start..start + dx.len() / dx_len;
                start = images.end;
                let of = images.clone();
                let wanted = wants_dx.then_some((&mut *dx, accumulate));
                let (dw, scratch) =
                    (&mut *dw, Scratch { stored: &mut stored, wide: &mut wide, segments: &mut segments });
                runtime.isa.run(match packed {
                    Packed::Winograd(packed) => RunBackward::Winograd(Backward {
                        shape,
                        images,
                        input,
                        gradient,
                        packed,
                        dx: wanted,
                        dw,
                        scratch,
                    }),
                    Packed::Direct(packed) => RunBackward::Direct(Backward {
                        shape,
                        images,
                        input,
                        gradient,
                        packed,
                        dx: wanted,
                        dw,
                        scratch,
                    }),
                });
                if let Some((u, affine, mean)) = norm {
                    let len = shape.input_len();
                    for ((image, dx), out) in of.zip(dx.chunks_exact(len)).zip(sum_out.chunks_exact_mut(2 * shape.c_in))
                    {
                        batch_norm::image_sums(runtime.isa, dx, &u[image * len..][..len], affine, mean, out);
                    }
                }
            }
            if let Packed::Winograd(_) = packed {
                winograd::fold(runtime.isa, shape, &accumulator, partial);
            }
            runtime.give(stored);
            runtime.give_wide(wide);
            runtime.give_wide(accumulator);
        });
    let mut total = runtime.take_wide(gradient_len);
    sum_groups(&partial, &mut total);
    runtime.give_wide(partial);
    unpack(shape, &total, dw);
    runtime.give_wide(total);
}

/// `total[i] = sum over groups, in order, of partial[group][i]`.
fn sum_groups<E: Element>(partial: &[E], total: &mut [E]) {
    let len = total.len();
    const BLOCK: usize = 1 << 14;
    total.par_chunks_mut(BLOCK).enumerate().for_each(|(block, total)| {
        total.fill(E::default());
        for group in partial.chunks_exact(len) {
            for (t, p) in total.iter_mut().zip(&group[block * BLOCK..]) {
                *t += *p;
            }
        }
    });
}

/// From (k, k, c_in, padded c_out) into PyTorch's (c_out, c_in, k, k).
fn unpack<W: Element>(s: &ConvShape, from: &[W], dw: &mut [W]) {
    let (taps, ld) = (s.k * s.k, padded(s.c_out));
    dw.par_chunks_mut(s.c_in * taps).enumerate().for_each(|(o, dw)| {
        for (i, dw) in dw.chunks_exact_mut(taps).enumerate() {
            for (tap, dw) in dw.iter_mut().enumerate() {
                *dw = from[(tap * s.c_in + i) * ld + o];
            }
        }
    });
}
