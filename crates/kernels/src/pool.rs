//! Maximum and mean pooling over NHWC slices.
//!
//! candle's own max_pool2d has a wrong backward pass (its gradient is scaled by the wrong count), so
//! this one is used on the CPU and checked against finite differences.

use rayon::prelude::*;

use crate::runtime::Runtime;
use crate::simd::{Element, Kernel, Simd};

struct Pool<'a, E> {
    shape: PoolShape,
    image: &'a [E],
    out: &'a mut [E],
    winner: Option<&'a mut [u8]>,
}

/// Sizes of one pooling, without padding; windows that do not fit are dropped, as PyTorch does by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub channels: usize,
    /// Window, at most 15.
    pub k: usize,
    /// Step between windows.
    pub stride: usize,
    /// Maximum or mean.
    pub max: bool,
}

impl PoolShape {
    /// Output height.
    pub fn out_h(&self) -> usize {
        (self.h - self.k) / self.stride + 1
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        (self.w - self.k) / self.stride + 1
    }
}

impl<E: Element> Kernel<E> for Pool<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(mut self) {
        let s = self.shape;
        let mean = E::Wide::of(1.0 / (s.k * s.k) as f64);
        let mut sums = vec![E::Wide::default(); s.channels];
        for (p, out) in self.out.chunks_exact_mut(s.channels).enumerate() {
            let corner = (p / s.out_w() * s.stride * s.w + p % s.out_w() * s.stride) * s.channels;
            out.copy_from_slice(&self.image[corner..][..s.channels]);
            sums.iter_mut().zip(&*out).for_each(|(s, x)| *s = x.widen());
            for tap in 1..s.k * s.k {
                let pixel = &self.image[corner + (tap / s.k * s.w + tap % s.k) * s.channels..][..s.channels];
                #[allow(clippy::eq_op)] // A NaN is what differs from itself; it wins, as in PyTorch.
                for c in 0..s.channels {
                    if !s.max {
                        sums[c] += pixel[c].widen();
                    } else if pixel[c] > out[c] || pixel[c] != pixel[c] {
                        out[c] = pixel[c];
                        if let Some(w) = &mut self.winner {
                            w[p * s.channels + c] = tap as u8;
                        }
                    }
                }
            }
            if !s.max {
                out.iter_mut().zip(&sums).for_each(|(x, s)| *x = E::narrow(*s * mean));
            }
        }
    }
}

/// Pools `n` images; for a maximum, `winner` (zeroed) gets the place of the first largest value in each window.
pub fn pool<E: Element>(runtime: &Runtime<E>, shape: PoolShape, input: &[E], out: &mut [E], winner: &mut [u8]) {
    let (from, to) = (shape.h * shape.w * shape.channels, shape.out_h() * shape.out_w() * shape.channels);
    out.par_chunks_mut(to)
        .zip(input.par_chunks(from))
        .zip(winner.par_chunks_mut(to))
        .for_each(|((out, image), winner)| runtime.isa.run(Pool { shape, image, out, winner: Some(winner) }));
}

/// Gradient of [`pool`]: a maximum's goes to the winner whole, a mean's to all alike.
pub fn pool_gradient<E: Element>(shape: PoolShape, g: &[E], winner: &[u8], dx: &mut [E]) {
    let (from, to) = (shape.h * shape.w * shape.channels, shape.out_h() * shape.out_w() * shape.channels);
    let mean = E::Wide::of(1.0 / (shape.k * shape.k) as f64);
    dx.par_chunks_mut(from).zip(g.par_chunks(to)).zip(winner.par_chunks(to)).for_each(|((to, g), winner)| {
        let mut dx = vec![E::Wide::default(); from];
        for p in 0..shape.out_h() * shape.out_w() {
            let corner =
                (p / shape.out_w() * shape.stride * shape.w + p % shape.out_w() * shape.stride) * shape.channels;
            for c in 0..shape.channels {
                let at = p * shape.channels + c;
                let place = |tap: usize| corner + (tap / shape.k * shape.w + tap % shape.k) * shape.channels + c;
                if shape.max {
                    dx[place(winner[at] as usize)] += g[at].widen();
                } else {
                    (0..shape.k * shape.k).for_each(|tap| dx[place(tap)] += g[at].widen() * mean);
                }
            }
        }
        to.iter_mut().zip(dx).for_each(|(to, x)| *to = E::narrow(x));
    });
}
