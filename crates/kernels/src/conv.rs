//! Convolution over NHWC slices: one task a few images, the same split whatever the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::batch_norm::{self, NormSums};
use crate::operand::{Gradient, Input};
use crate::runtime::Runtime;
use crate::simd::{Element, Kernel, Simd};
use crate::{im2col, winograd};

/// Partial sums of a weight gradient: fixed, so that the order of the sum does not depend on the threads.
const GROUPS: usize = 16;

/// Sizes of one convolution, an image at a time. Kernels are square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel height and width.
    pub k: usize,
    /// Step between two output pixels.
    pub stride: usize,
    /// Zero pixels on every side.
    pub padding: usize,
}

impl ConvShape {
    /// Output height.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.k) / self.stride + 1
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.k) / self.stride + 1
    }
    /// Elements of an input image.
    pub fn input_len(&self) -> usize {
        self.h * self.w * self.c_in
    }
    /// Elements of an output image.
    pub fn output_len(&self) -> usize {
        self.out_h() * self.out_w() * self.c_out
    }
    /// Elements of the weight, (c_out, c_in, k, k).
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.k * self.k
    }
    /// Multiplications and additions of the definition, an image.
    pub fn macs(&self) -> usize {
        self.out_h() * self.out_w() * self.weight_len()
    }
    /// The algorithm that is fastest for these sizes.
    pub fn algorithm(&self) -> Algorithm {
        // Under 8 channels the transforms cost more than the multiplications they save.
        match (self.k, self.stride, self.padding) {
            (3, 1, 1) if self.c_in >= 8 && self.c_out >= 8 => Algorithm::Winograd,
            _ => Algorithm::Im2col,
        }
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// F(2x2, 3x3), only for 3x3, stride 1, padding 1.
    Winograd,
    /// Patches times weights, for every shape.
    Im2col,
}

/// A weight rearranged for both directions; made anew whenever the weight changes.
#[derive(Clone, Debug, Default)]
pub struct Packed<E> {
    /// For the output.
    pub forward: Vec<E>,
    /// For the input's gradient.
    pub backward: Vec<E>,
}

impl<E: Element> Packed<E> {
    /// Packs `weight` (c_out, c_in, k, k) for `algorithm`.
    pub fn new(shape: &ConvShape, algorithm: Algorithm, weight: &[E]) -> Self {
        let mut packed = Packed { forward: Vec::new(), backward: Vec::new() };
        match algorithm {
            Algorithm::Winograd => winograd::pack(shape, weight, &mut packed),
            Algorithm::Im2col => im2col::pack(shape, weight, &mut packed),
        }
        packed
    }
}

/// One forward task.
pub struct Forward<'a, E> {
    /// Sizes.
    pub shape: &'a ConvShape,
    /// The images of this task, indices into the whole activation.
    pub images: Range<usize>,
    /// The whole batch's input.
    pub input: Input<'a, E>,
    /// Packed weight.
    pub packed: &'a Packed<E>,
    /// The whole batch's residual, added to the output.
    pub residual: Option<&'a [E]>,
    /// The output of this task's images only.
    pub out: &'a mut [E],
    /// Scratch memory of the algorithm's own size; its content is arbitrary.
    pub scratch: &'a mut [E],
}

/// One backward task.
pub struct Backward<'a, E> {
    /// Sizes.
    pub shape: &'a ConvShape,
    /// The images of this task, indices into the whole activation.
    pub images: Range<usize>,
    /// The whole batch's input, as in the forward pass.
    pub input: Input<'a, E>,
    /// The whole batch's output gradient.
    pub gradient: Gradient<'a, E>,
    /// Packed weight.
    pub packed: &'a Packed<E>,
    /// The input gradient of this task's images only, and whether to add to it.
    pub dx: Option<(&'a mut [E], bool)>,
    /// Weight gradient in the algorithm's own layout; added to.
    pub dw: &'a mut [E],
    /// Scratch memory of the algorithm's own size; its content is arbitrary.
    pub scratch: &'a mut [E],
}

struct Run<T>(Algorithm, T);

impl<E: Element> Kernel<E> for Run<Forward<'_, E>> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: `Element::run` checked the instruction set; `forward` below sizes the buffers.
        unsafe {
            match self.0 {
                Algorithm::Winograd => winograd::forward::<S>(self.1),
                Algorithm::Im2col => im2col::forward::<S>(self.1),
            }
        }
    }
}

impl<E: Element> Kernel<E> for Run<Backward<'_, E>> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: as above.
        unsafe {
            match self.0 {
                Algorithm::Winograd => winograd::backward::<S>(self.1),
                Algorithm::Im2col => im2col::backward::<S>(self.1),
            }
        }
    }
}

fn images_per_chunk(s: &ConvShape, algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Winograd => winograd::images_per_chunk(s),
        Algorithm::Im2col => 1,
    }
}

/// `out = conv(input) [+ residual]` for `n` images. With `stats`, each image's mean and sum of squared
/// deviations per channel, (n, 2, c_out), are taken while the image is in the cache.
#[allow(clippy::too_many_arguments)]
pub fn forward<E: Element>(
    runtime: &Runtime<E>,
    shape: &ConvShape,
    algorithm: Algorithm,
    input: Input<'_, E>,
    packed: &Packed<E>,
    residual: Option<&[E]>,
    out: &mut [E],
    stats: Option<&mut [E]>,
) {
    let n = out.len() / shape.output_len();
    assert_eq!(input.u.len(), n * shape.input_len(), "the input does not hold {n} images of {shape:?}");
    let per_task = images_per_chunk(shape, algorithm);
    let len = match algorithm {
        Algorithm::Winograd => winograd::forward_scratch(shape, per_task),
        Algorithm::Im2col => im2col::forward_scratch(shape),
    };
    let mut none = Vec::new();
    let (stats, stat_len) = match stats {
        Some(s) => (s, 2 * shape.c_out),
        None => {
            none.resize(n, E::default());
            (none.as_mut_slice(), 1)
        }
    };
    out.par_chunks_mut(per_task * shape.output_len())
        .zip(stats.par_chunks_mut(per_task * stat_len))
        .enumerate()
        .for_each(|(task, (out, stats))| {
            let images = task * per_task..(task * per_task + out.len() / shape.output_len());
            let mut scratch = runtime.take(len);
            let forward = Forward { shape, images, input, packed, residual, out, scratch: &mut scratch };
            runtime.isa.run(Run(algorithm, forward));
            runtime.give(scratch);
            if stat_len > 1 {
                for (image, stats) in out.chunks_exact(shape.output_len()).zip(stats.chunks_exact_mut(2 * shape.c_out))
                {
                    batch_norm::image_stats(runtime.isa, image, shape.c_out, stats);
                }
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
    algorithm: Algorithm,
    input: Input<'_, E>,
    gradient: Gradient<'_, E>,
    packed: &Packed<E>,
    dx: Option<(&mut [E], bool)>,
    dw: &mut [E],
    sums: Option<NormSums<'_, E>>,
) {
    let n = input.u.len() / shape.input_len();
    let per_task = images_per_chunk(shape, algorithm);
    let (scratch_len, gradient_len) = match algorithm {
        Algorithm::Winograd => (winograd::backward_scratch(shape, per_task), winograd::gradient_len(shape)),
        Algorithm::Im2col => (im2col::backward_scratch(shape), im2col::gradient_len(shape)),
    };
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
    let mut no_sums = vec![E::default(); if norm.is_some() { 0 } else { n }];
    let (sum_out, sum_len) = if norm.is_some() { (sum_out, 2 * shape.c_in) } else { (no_sums.as_mut_slice(), 1) };

    let mut partial = runtime.take(groups * gradient_len);
    partial
        .par_chunks_mut(gradient_len)
        .zip(dx.par_chunks_mut(per_group * dx_len))
        .zip(sum_out.par_chunks_mut(per_group * sum_len))
        .enumerate()
        .for_each(|(group, ((partial, dx), sum_out))| {
            partial.fill(E::default());
            let mut scratch = runtime.take(scratch_len);
            let mut start = group * per_group;
            let chunks = dx.chunks_mut(per_task * dx_len).zip(sum_out.chunks_mut(per_task * sum_len));
            for (dx, sum_out) in chunks {
                let images = start..start + dx.len() / dx_len;
                start = images.end;
                let task = Backward {
                    shape,
                    images: images.clone(),
                    input,
                    gradient,
                    packed,
                    dx: wants_dx.then_some((&mut *dx, accumulate)),
                    dw: partial,
                    scratch: &mut scratch,
                };
                runtime.isa.run(Run(algorithm, task));
                if let Some((u, affine, mean)) = norm {
                    let len = shape.input_len();
                    for ((image, dx), out) in
                        images.zip(dx.chunks_exact(len)).zip(sum_out.chunks_exact_mut(2 * shape.c_in))
                    {
                        batch_norm::image_sums(runtime.isa, dx, &u[image * len..][..len], affine, mean, out);
                    }
                }
            }
            runtime.give(scratch);
        });
    let mut total = runtime.take(gradient_len);
    sum_groups(&partial, &mut total);
    runtime.give(partial);
    match algorithm {
        Algorithm::Winograd => winograd::unpack(shape, &total, dw),
        Algorithm::Im2col => im2col::unpack(shape, &total, dw),
    }
    runtime.give(total);
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
