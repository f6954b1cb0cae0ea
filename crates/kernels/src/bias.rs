//! The gradient of a convolution's bias: the sum of its output's gradient over all pixels.

use rayon::prelude::*;

use crate::operand::{Gradient, GradientReader, store_channels};
use crate::simd::{Element, Isa, Kernel, Simd, Wide};

struct Sum<'a, 'g, E: Element> {
    reader: &'a GradientReader<'g, E>,
    /// The image's elements in the batch.
    start: usize,
    len: usize,
    out: &'a mut [E::Wide],
}

impl<E: Element> Kernel<E> for Sum<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let mut c = 0;
        while c < self.out.len() {
            // SAFETY: c < channels.
            unsafe {
                if c + 4 * S::LANES <= self.out.len() {
                    sum_of::<S, 4>(self.reader, self.start, self.len, c, self.out);
                    c += 4 * S::LANES;
                } else {
                    sum_of::<S, 1>(self.reader, self.start, self.len, c, self.out);
                    c += S::LANES;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_of<S: Simd, const NV: usize>(
    reader: &GradientReader<'_, S::E>,
    start: usize,
    len: usize,
    c: usize,
    out: &mut [Wide<S>],
) {
    let channels = out.len();
    // SAFETY: every pixel holds `channels` elements and the NV vectors start below `channels`.
    unsafe {
        let mut sum = [S::splat(Wide::<S>::default()); NV];
        for at in (start..start + len).step_by(channels) {
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = S::add(*sum, reader.load::<S>(at, c + v * S::LANES));
            }
        }
        for (v, &sum) in sum.iter().enumerate() {
            store_channels::<S::W>(out.as_mut_ptr(), c + v * S::LANES, channels, sum);
        }
    }
}

/// Sums `gradient` of images of `len` elements into `out` (channels,): an image at a time, then the images in f64 and
/// in order, so that no bit depends on the number of threads.
pub fn gradient<E: Element>(isa: Isa, gradient: Gradient<'_, E>, len: usize, out: &mut [E::Wide]) {
    let channels = out.len();
    assert!(channels > 0 && len.is_multiple_of(channels) && gradient.g.len().is_multiple_of(len));
    let reader = GradientReader::new(gradient, channels);
    let mut per_image = vec![E::Wide::default(); gradient.g.len() / len * channels];
    per_image.par_chunks_mut(channels).enumerate().for_each(|(image, out)| {
        isa.run(Sum { reader: &reader, start: image * len, len, out });
    });
    for (c, out) in out.iter_mut().enumerate() {
        *out = E::Wide::of(per_image.iter().skip(c).step_by(channels).map(|x| x.f64()).sum());
    }
}
