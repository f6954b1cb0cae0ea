//! Passes over whole activations: what no convolution can do on the fly.

use rayon::prelude::*;

use crate::operand::{Gradient, GradientReader, Input, InputReader, store_channels};
use crate::runtime::Runtime;
use crate::simd::{Element, Kernel, Simd};

/// Elements a task, cut at whole pixels.
const TASK: usize = 1 << 15;

struct Apply<'a, 'i, E: Element> {
    reader: &'a InputReader<'i, E>,
    start: usize,
    channels: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for Apply<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (p, pixel) in self.out.chunks_exact_mut(self.channels).enumerate() {
            let mut c = 0;
            while c < self.channels {
                // SAFETY: c < channels; the pixel lies within both slices.
                unsafe {
                    let v = self.reader.load::<S>(self.start + p * self.channels, c);
                    store_channels::<S>(pixel.as_mut_ptr(), c, self.channels, v);
                }
                c += S::LANES;
            }
        }
    }
}

fn task_len(channels: usize) -> usize {
    (TASK / channels).max(1) * channels
}

/// Stores what `input` stands for.
pub fn apply<E: Element>(runtime: &Runtime<E>, input: Input<'_, E>, channels: usize, out: &mut [E]) {
    assert_eq!(input.u.len(), out.len());
    let reader = InputReader::new(input, channels);
    let len = task_len(channels);
    out.par_chunks_mut(len).enumerate().for_each(|(i, out)| {
        runtime.isa.run(Apply { reader: &reader, start: i * len, channels, out });
    });
}

struct AddGradients<'a, 'g, E: Element> {
    readers: &'a [GradientReader<'g, E>],
    start: usize,
    channels: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for AddGradients<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (p, pixel) in self.out.chunks_exact_mut(self.channels).enumerate() {
            let at = self.start + p * self.channels;
            let mut c = 0;
            while c < self.channels {
                // SAFETY: c < channels; the pixel lies within all slices.
                unsafe {
                    let mut sum = S::splat(E::Wide::default());
                    for reader in self.readers {
                        sum = S::add(sum, reader.load::<S>(at, c));
                    }
                    store_channels::<S>(pixel.as_mut_ptr(), c, self.channels, sum);
                }
                c += S::LANES;
            }
        }
    }
}

/// Stores the sum of several gradients.
pub fn add_gradients<E: Element>(runtime: &Runtime<E>, gradients: &[Gradient<'_, E>], channels: usize, out: &mut [E]) {
    assert!(gradients.iter().all(|g| g.g.len() == out.len()));
    let readers: Vec<_> = gradients.iter().map(|g| GradientReader::new(*g, channels)).collect();
    let len = task_len(channels);
    out.par_chunks_mut(len).enumerate().for_each(|(i, out)| {
        runtime.isa.run(AddGradients { readers: &readers, start: i * len, channels, out });
    });
}

/// `out = a + b`.
pub fn add<E: Element>(a: &[E], b: &[E], out: &mut [E]) {
    out.par_chunks_mut(TASK).zip(a.par_chunks(TASK)).zip(b.par_chunks(TASK)).for_each(|((out, a), b)| {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o = *a + *b;
        }
    });
}

/// The channels of `a`, then those of `b`, pixel by pixel.
pub fn concat<E: Element>(a: &[E], b: &[E], channels: [usize; 2], out: &mut [E]) {
    let [ca, cb] = channels;
    let pixels = (TASK / (ca + cb)).max(1);
    out.par_chunks_mut(pixels * (ca + cb)).zip(a.par_chunks(pixels * ca)).zip(b.par_chunks(pixels * cb)).for_each(
        |((out, a), b)| {
            for ((out, a), b) in out.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca)).zip(b.chunks_exact(cb)) {
                out[..ca].copy_from_slice(a);
                out[ca..].copy_from_slice(b);
            }
        },
    );
}

/// Its gradient: each value's own channels of `g`.
pub fn split<E: Element>(g: &[E], channels: [usize; 2], da: &mut [E], db: &mut [E]) {
    let [ca, cb] = channels;
    let pixels = (TASK / (ca + cb)).max(1);
    g.par_chunks(pixels * (ca + cb)).zip(da.par_chunks_mut(pixels * ca)).zip(db.par_chunks_mut(pixels * cb)).for_each(
        |((g, da), db)| {
            for ((g, da), db) in g.chunks_exact(ca + cb).zip(da.chunks_exact_mut(ca)).zip(db.chunks_exact_mut(cb)) {
                da.copy_from_slice(&g[..ca]);
                db.copy_from_slice(&g[ca..]);
            }
        },
    );
}

/// `out = max(u, 0)`; a NaN stays one.
pub fn relu<E: Element>(u: &[E], out: &mut [E]) {
    let zero = E::default();
    out.par_chunks_mut(TASK).zip(u.par_chunks(TASK)).for_each(|(out, u)| {
        for (o, u) in out.iter_mut().zip(u) {
            *o = if *u < zero { zero } else { *u };
        }
    });
}

/// ReLU's gradient: `g` where the output `y` is positive, 0 elsewhere (PyTorch's choice at 0).
pub fn relu_gradient<E: Element>(y: &[E], g: &[E], out: &mut [E]) {
    let zero = E::default();
    out.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).zip(g.par_chunks(TASK)).for_each(|((out, y), g)| {
        for ((o, y), g) in out.iter_mut().zip(y).zip(g) {
            *o = if *y > zero { *g } else { zero };
        }
    });
}

/// One image from (channels, pixels) to (pixels, channels), or back with the two sizes exchanged, each element
/// passed through `convert`.
///
/// By way of a tile: columns that lie a power of two apart share few lines of the first cache, so that whoever writes
/// one element into each of them writes every line many times.
fn transpose<A: Copy, B: Copy + Default>(
    from: &[A],
    rows: usize,
    columns: usize,
    to: &mut [B],
    convert: impl Fn(A) -> B,
) {
    const TILE: usize = 16;
    let mut tile = [[B::default(); TILE]; TILE];
    for r0 in (0..rows).step_by(TILE) {
        let height = TILE.min(rows - r0);
        for c0 in (0..columns).step_by(TILE) {
            let width = TILE.min(columns - c0);
            for r in 0..height {
                let row = &from[(r0 + r) * columns + c0..][..width];
                row.iter().zip(&mut tile).for_each(|(x, column)| column[r] = convert(*x));
            }
            for (c, column) in tile[..width].iter().enumerate() {
                to[(c0 + c) * rows + r0..][..height].copy_from_slice(&column[..height]);
            }
        }
    }
}

/// A batch from NCHW to NHWC, as it is stored.
pub fn channels_last<E: Element>(from: &[E::Wide], channels: usize, pixels: usize, to: &mut [E]) {
    let len = (channels * pixels).max(1);
    let chunks = to.par_chunks_mut(len).zip(from.par_chunks(len));
    chunks.for_each(|(to, from)| transpose(from, channels, pixels, to, E::narrow));
}

/// A batch from NHWC to NCHW, as it is computed in.
pub fn channels_first<E: Element>(from: &[E], channels: usize, pixels: usize, to: &mut [E::Wide]) {
    let len = (channels * pixels).max(1);
    let chunks = to.par_chunks_mut(len).zip(from.par_chunks(len));
    chunks.for_each(|(to, from)| transpose(from, pixels, channels, to, E::widen));
}
