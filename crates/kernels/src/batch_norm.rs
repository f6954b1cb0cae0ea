//! BatchNorm's statistics and backward sums (Ioffe & Szegedy 2015). The normalisation itself is an
//! affine map per channel and is applied by whoever reads the activation ([`crate::operand`]).

use crate::operand::{Affine, load_channels, store_channels};
use crate::simd::{Element, Isa, Kernel, Simd, Wide};

/// Where a backward pass leaves BatchNorm's two sums of each image.
pub struct NormSums<'a, E: Element> {
    /// The BatchNorm's input, NHWC, whole batch.
    pub u: &'a [E],
    /// The BatchNorm (and ReLU) itself.
    pub affine: Affine<'a, E>,
    /// Mean it subtracts, (channels,).
    pub mean: &'a [E::Wide],
    /// (n, 2, channels): sum of g' and of g' (u - mean).
    pub out: &'a mut [E::Wide],
}

/// Batch statistics of one BatchNorm.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Mean, (channels,).
    pub mean: Vec<f64>,
    /// Biased variance, (channels,).
    pub var: Vec<f64>,
    /// Values a channel: n h w.
    pub count: usize,
}

struct ImageStats<'a, E: Element> {
    image: &'a [E],
    channels: usize,
    out: &'a mut [E::Wide],
}

impl<E: Element> Kernel<E> for ImageStats<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let mut c = 0;
        while c < self.channels {
            // SAFETY: c < channels.
            unsafe {
                if c + 4 * S::LANES <= self.channels {
                    stats_of::<S, 4>(self.image, self.channels, c, self.out);
                    c += 4 * S::LANES;
                } else {
                    stats_of::<S, 1>(self.image, self.channels, c, self.out);
                    c += S::LANES;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn stats_of<S: Simd, const NV: usize>(image: &[S::E], channels: usize, c: usize, out: &mut [Wide<S>]) {
    let pixels = image.len() / channels;
    let (means, squares) = out.split_at_mut(channels);
    // SAFETY: every pixel holds `channels` elements and the NV vectors start below `channels`.
    unsafe {
        let load =
            |p: usize, v: usize| load_channels::<S>(image.as_ptr().add(p * channels), c + v * S::LANES, channels);
        let mut sum = [S::splat(Wide::<S>::default()); NV];
        for p in 0..pixels {
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = S::add(*sum, load(p, v));
            }
        }
        let scale = S::splat(Wide::<S>::of(1.0 / pixels as f64));
        let mean: [S::V; NV] = std::array::from_fn(|v| S::mul(sum[v], scale));
        let mut square = [S::splat(Wide::<S>::default()); NV];
        for p in 0..pixels {
            for (v, square) in square.iter_mut().enumerate() {
                let d = S::sub(load(p, v), mean[v]);
                *square = S::fma(d, d, *square);
            }
        }
        for v in 0..NV {
            store_channels::<S::W>(means.as_mut_ptr(), c + v * S::LANES, channels, mean[v]);
            store_channels::<S::W>(squares.as_mut_ptr(), c + v * S::LANES, channels, square[v]);
        }
    }
}

/// Mean and sum of squared deviations of one image's channels into `out` (2, channels).
pub fn image_stats<E: Element>(isa: Isa, image: &[E], channels: usize, out: &mut [E::Wide]) {
    assert!(channels > 0 && image.len().is_multiple_of(channels) && out.len() == 2 * channels);
    isa.run(ImageStats { image, channels, out });
}

/// Combines the images' statistics (n, 2, channels) in f64 and in order (Chan et al. 1983).
pub fn combine<E: Element>(per_image: &[E], channels: usize, pixels: usize) -> Statistics {
    let n = per_image.len() / (2 * channels).max(1);
    let mut mean = vec![0.0; channels];
    let mut var = vec![0.0; channels];
    for image in per_image.chunks_exact(2 * channels) {
        for (m, x) in mean.iter_mut().zip(image) {
            *m += x.f64() / n as f64;
        }
    }
    for image in per_image.chunks_exact(2 * channels) {
        for c in 0..channels {
            let d = image[c].f64() - mean[c];
            var[c] += (image[channels + c].f64() / pixels as f64 + d * d) / n as f64;
        }
    }
    Statistics { mean, var, count: n * pixels }
}

struct ImageSums<'a, E: Element> {
    g: &'a [E],
    u: &'a [E],
    affine: Affine<'a, E>,
    mean: &'a [E::Wide],
    out: &'a mut [E::Wide],
}

impl<E: Element> Kernel<E> for ImageSums<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let ImageSums { g, u, affine, mean, out } = self;
        let mut c = 0;
        while c < mean.len() {
            // SAFETY: c < channels.
            unsafe {
                if c + 2 * S::LANES <= mean.len() {
                    sums_of::<S, 2>(g, u, affine, mean, c, out);
                    c += 2 * S::LANES;
                } else {
                    sums_of::<S, 1>(g, u, affine, mean, c, out);
                    c += S::LANES;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sums_of<S: Simd, const NV: usize>(
    g: &[S::E],
    u: &[S::E],
    affine: Affine<'_, S::E>,
    mean: &[Wide<S>],
    c: usize,
    out: &mut [Wide<S>],
) {
    let channels = mean.len();
    let (sums, products) = out.split_at_mut(channels);
    // SAFETY: every pixel holds `channels` elements and the NV vectors start below `channels`.
    unsafe {
        let load = |p: *const S::E, v: usize| load_channels::<S>(p, c + v * S::LANES, channels);
        let wide = |p: &[Wide<S>]| -> [S::V; NV] {
            std::array::from_fn(|v| load_channels::<S::W>(p.as_ptr(), c + v * S::LANES, channels))
        };
        let (scale, shift, mean) = (wide(affine.scale), wide(affine.shift), wide(mean));
        let mut sum = [S::splat(Wide::<S>::default()); NV];
        let mut product = [S::splat(Wide::<S>::default()); NV];
        for at in (0..g.len()).step_by(channels) {
            for v in 0..NV {
                let (mut g, u) = (load(g.as_ptr().add(at), v), load(u.as_ptr().add(at), v));
                if affine.relu {
                    g = S::gate(g, S::fma(u, scale[v], shift[v]));
                }
                sum[v] = S::add(sum[v], g);
                product[v] = S::fma(g, S::sub(u, mean[v]), product[v]);
            }
        }
        for v in 0..NV {
            store_channels::<S::W>(sums.as_mut_ptr(), c + v * S::LANES, channels, sum[v]);
            store_channels::<S::W>(products.as_mut_ptr(), c + v * S::LANES, channels, product[v]);
        }
    }
}

/// Sums of g' and of g' (u - mean) over one image's pixels into `out` (2, channels).
pub fn image_sums<E: Element>(
    isa: Isa,
    g: &[E],
    u: &[E],
    affine: Affine<'_, E>,
    mean: &[E::Wide],
    out: &mut [E::Wide],
) {
    let channels = mean.len();
    assert!(channels > 0 && g.len().is_multiple_of(channels) && g.len() == u.len() && out.len() == 2 * channels);
    assert!(affine.scale.len() == channels && affine.shift.len() == channels);
    isa.run(ImageSums { g, u, affine, mean, out });
}

/// The images' sums (n, 2, channels), added in f64 and in order: (sum g', sum g' (u - mean)).
pub fn combine_sums<E: Element>(per_image: &[E], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let mut sum = vec![0.0; channels];
    let mut product = vec![0.0; channels];
    for image in per_image.chunks_exact(2 * channels) {
        for c in 0..channels {
            sum[c] += image[c].f64();
            product[c] += image[channels + c].f64();
        }
    }
    (sum, product)
}
