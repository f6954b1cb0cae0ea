//! Maximum and mean pooling over NHWC slices.
//!
//! candle's own max_pool2d has a wrong backward pass (its gradient is scaled by the wrong count), so
//! this one is used on the CPU and checked against finite differences.

use std::ops::Range;

use rayon::prelude::*;

use crate::runtime::Runtime;
use crate::simd::{Element, Kernel, Simd};

/// How a window moves over an image, with PyTorch's meaning of every field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width, at most 15.
    pub k: usize,
    /// Step between windows.
    pub stride: usize,
    /// Pixels on every side that no maximum sees and that count as zeros in a mean; at most half of `k`.
    pub padding: usize,
    /// Whether a last window that does not fit is cut off at the border instead of dropped. It is dropped all the
    /// same if it would start in the padding behind the image.
    pub ceil_mode: bool,
}

impl Window {
    /// A window without padding; those that do not fit are dropped.
    pub fn new(k: usize, stride: usize) -> Window {
        Window { k, stride, padding: 0, ceil_mode: false }
    }
    /// Windows along a side of `len` pixels.
    fn count(&self, len: usize) -> usize {
        let room = len + 2 * self.padding - self.k;
        if !self.ceil_mode {
            return room / self.stride + 1;
        }
        let count = room.div_ceil(self.stride) + 1;
        if (count - 1) * self.stride >= len + self.padding { count - 1 } else { count }
    }
    /// Pixels of a side of `len` under window `i`, and how many a mean counts there: the padding's too, but nothing
    /// behind it.
    fn pixels(&self, i: usize, len: usize) -> (Range<usize>, usize) {
        let (start, end) = (i * self.stride, i * self.stride + self.k);
        let inside = start.saturating_sub(self.padding)..(end - self.padding).min(len);
        (inside, end.min(len + 2 * self.padding) - start)
    }
}

/// Sizes of one pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub channels: usize,
    /// The window.
    pub window: Window,
    /// Maximum or mean.
    pub max: bool,
}

/// One output pixel's window.
struct Taps {
    rows: Range<usize>,
    columns: Range<usize>,
    /// What a mean divides by.
    count: usize,
}

impl PoolShape {
    /// Whether the window can be placed at all, and is one that the kernels know.
    pub fn fits(&self) -> bool {
        let Window { k, stride, padding, .. } = self.window;
        let room = self.h.min(self.w) + 2 * padding;
        (1..=15).contains(&k) && stride > 0 && 2 * padding <= k && k <= room
    }
    /// Output height.
    pub fn out_h(&self) -> usize {
        self.window.count(self.h)
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        self.window.count(self.w)
    }
    /// What a mean divides by, output pixel by output pixel.
    pub fn mean_counts(&self) -> Vec<usize> {
        let (h, w) = (self.out_h(), self.out_w());
        (0..h * w).map(|p| self.taps(p / w, p % w).count).collect()
    }
    /// Elements of an input image and of an output image.
    fn lens(&self) -> (usize, usize) {
        (self.h * self.w * self.channels, self.out_h() * self.out_w() * self.channels)
    }
    fn taps(&self, y: usize, x: usize) -> Taps {
        let (rows, high) = self.window.pixels(y, self.h);
        let (columns, wide) = self.window.pixels(x, self.w);
        Taps { rows, columns, count: high * wide }
    }
}

struct Pool<'a, E> {
    shape: PoolShape,
    image: &'a [E],
    out: &'a mut [E],
    winner: Option<&'a mut [u8]>,
}

impl<E: Element> Kernel<E> for Pool<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(mut self) {
        let (s, channels, width) = (self.shape, self.shape.channels, self.shape.out_w());
        let mut sums = vec![E::Wide::default(); channels];
        for (p, out) in self.out.chunks_exact_mut(channels).enumerate() {
            let Taps { rows, columns, count } = s.taps(p / width, p % width);
            let pixel = |y: usize, x: usize| &self.image[(y * s.w + x) * channels..][..channels];
            let first = pixel(rows.start, columns.start);
            if !s.max {
                sums.iter_mut().zip(first).for_each(|(s, x)| *s = x.widen());
                for (tap, (y, x)) in places(&rows, &columns).enumerate() {
                    if tap > 0 {
                        sums.iter_mut().zip(pixel(y, x)).for_each(|(s, x)| *s += x.widen());
                    }
                }
                let mean = E::Wide::of(1.0 / count as f64);
                out.iter_mut().zip(&sums).for_each(|(x, s)| *x = E::narrow(*s * mean));
                continue;
            }
            out.copy_from_slice(first);
            for (tap, (y, x)) in places(&rows, &columns).enumerate() {
                #[allow(clippy::eq_op)] // A NaN is what differs from itself; it wins, as in PyTorch.
                match &mut self.winner {
                    None => {
                        for (out, x) in out.iter_mut().zip(pixel(y, x)) {
                            *out = if *x > *out || *x != *x { *x } else { *out };
                        }
                    }
                    Some(winner) => {
                        let winner = &mut winner[p * channels..][..channels];
                        for ((out, x), w) in out.iter_mut().zip(pixel(y, x)).zip(winner) {
                            if tap == 0 || *x > *out || *x != *x {
                                (*out, *w) = (*x, tap as u8);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The pixels of a window, row by row.
#[inline(always)]
fn places<'a>(rows: &'a Range<usize>, columns: &'a Range<usize>) -> impl Iterator<Item = (usize, usize)> + 'a {
    rows.clone().flat_map(|y| columns.clone().map(move |x| (y, x)))
}

/// Pools `n` images. With `winner`, a maximum leaves there which of its window's pixels (row by row, without the
/// padding) is the first largest.
pub fn pool<E: Element>(
    runtime: &Runtime<E>,
    shape: PoolShape,
    input: &[E],
    out: &mut [E],
    mut winner: Option<&mut [u8]>,
) {
    assert!(shape.fits(), "the window of {shape:?} does not fit");
    let (from, to) = shape.lens();
    let n = out.len() / to.max(1);
    let winners: Vec<_> = match &mut winner {
        Some(winner) => winner.chunks_exact_mut(to).map(Some).collect(),
        None => (0..n).map(|_| None).collect(),
    };
    assert!(input.len() == n * from && winners.len() == n, "slices are not those of {n} images of {shape:?}");
    out.par_chunks_mut(to)
        .zip(input.par_chunks(from))
        .zip(winners)
        .for_each(|((out, image), winner)| runtime.isa.run(Pool { shape, image, out, winner }));
}

/// Gradient of [`pool`]: a maximum's goes to the winner whole, a mean's to all alike.
pub fn pool_gradient<E: Element>(shape: PoolShape, g: &[E], winner: Option<&[u8]>, dx: &mut [E]) {
    assert!(shape.fits(), "the window of {shape:?} does not fit");
    let ((from, to), width) = (shape.lens(), shape.out_w());
    dx.par_chunks_mut(from).zip(g.par_chunks(to)).enumerate().for_each(|(image, (out, g))| {
        let mut dx = vec![E::Wide::default(); from];
        for (p, g) in g.chunks_exact(shape.channels).enumerate() {
            let Taps { rows, columns, count } = shape.taps(p / width, p % width);
            let place = |y: usize, x: usize| (y * shape.w + x) * shape.channels;
            match winner {
                Some(winner) => {
                    let winner = &winner[image * to + p * shape.channels..];
                    for (c, (g, w)) in g.iter().zip(winner).enumerate() {
                        let (y, x) = (*w as usize / columns.len(), *w as usize % columns.len());
                        dx[place(rows.start + y, columns.start + x) + c] += g.widen();
                    }
                }
                None => {
                    let mean = E::Wide::of(1.0 / count as f64);
                    for (y, x) in places(&rows, &columns) {
                        let dx = &mut dx[place(y, x)..][..shape.channels];
                        dx.iter_mut().zip(g).for_each(|(dx, g)| *dx += g.widen() * mean);
                    }
                }
            }
        }
        out.iter_mut().zip(dx).for_each(|(to, x)| *to = E::narrow(x));
    });
}
