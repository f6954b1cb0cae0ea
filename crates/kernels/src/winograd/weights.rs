//! Weights into the transformed, packed form and their gradient back from it.

use std::sync::Arc;

use super::block::{ELEMENTS, gather};
use super::points::{SIDE, weight, weight_gradient};
use crate::gemm::{STRIP, padded, steps};
use crate::runtime::{Buffer, Runtime};
use crate::simd::{Element, Isa, Kernel, Simd};
use crate::task::{ConvShape, Sides};

/// `U = G g G^T` for every pair of channels, packed for the forward product and, if asked for, transposed for the
/// backward one.
pub fn pack<E: Element>(runtime: &Arc<Runtime<E>>, s: &ConvShape, weight: &[E::Wide], backward: bool) -> Sides<E> {
    let (ci, co) = (s.c_in, s.c_out);
    let forward = pack_side(runtime, ci, co, |k, j| &weight[(j * ci + k) * 9..][..9]);
    let backward = if backward {
        pack_side(runtime, co, ci, |k, j| &weight[(k * ci + j) * 9..][..9])
    } else {
        Buffer::take(runtime, 0)
    };
    Sides { forward, backward }
}

/// The packed (k, columns) matrices of one direction; `taps(k, column)` are a pair's nine weights.
fn pack_side<'w, E: Element>(
    runtime: &Arc<Runtime<E>>,
    k: usize,
    columns: usize,
    taps: impl Fn(usize, usize) -> &'w [E::Wide],
) -> Buffer<E> {
    // Columns innermost, so that the transform runs over vectors.
    let (width, rows) = (padded(columns), steps::<E>(k) * E::DEPTH);
    let mut by_tap = runtime.take_wide(9 * rows * width);
    if k < rows || columns < width {
        by_tap.fill(E::Wide::default());
    }
    for i in 0..k {
        for j in 0..columns {
            for (tap, w) in taps(i, j).iter().enumerate() {
                by_tap[(tap * rows + i) * width + j] = *w;
            }
        }
    }
    let mut out = Buffer::take(runtime, ELEMENTS * rows * width);
    runtime.isa.run(Pack { by_tap: &by_tap, rows, width, out: out.as_mut_slice() });
    runtime.give_wide(by_tap);
    out
}

struct Pack<'a, E: Element> {
    /// (9, rows, width).
    by_tap: &'a [E::Wide],
    rows: usize,
    width: usize,
    /// For each of 36 elements: strips of (steps, columns, depth).
    out: &'a mut [E],
}

impl<E: Element> Kernel<E> for Pack<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Pack { by_tap, rows, width, out } = self;
        for i in (0..rows).step_by(E::DEPTH) {
            for j in (0..width).step_by(S::LANES) {
                let at = (j / STRIP * rows + i) * STRIP + j % STRIP * E::DEPTH;
                // SAFETY: i + DEPTH <= rows, j + LANES <= width; `out` holds 36 matrices of (rows, width).
                unsafe {
                    let mut u = [[S::splat(E::Wide::default()); ELEMENTS]; 2];
                    for (k, u) in u.iter_mut().enumerate().take(E::DEPTH) {
                        let mut columns = [[S::splat(E::Wide::default()); SIDE]; 3];
                        for (x, column) in columns.iter_mut().enumerate() {
                            let at = by_tap[(x * rows + i + k) * width + j..].as_ptr();
                            *column = weight::<S>(gather::<S, 3>(at, 3 * rows * width));
                        }
                        for y in 0..SIDE {
                            let row = weight::<S>([columns[0][y], columns[1][y], columns[2][y]]);
                            u[y * SIDE..][..SIDE].copy_from_slice(&row);
                        }
                    }
                    for f in 0..ELEMENTS {
                        S::store_operand(out.as_mut_ptr().add(f * rows * width + at), [u[0][f], u[1][f]]);
                    }
                }
            }
        }
    }
}

struct Fold<'a, W> {
    du: &'a [W],
    channels: usize,
    width: usize,
    out: &'a mut [W],
}

impl<W: Element<Wide = W>> Kernel<W> for Fold<'_, W> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = W>>(self) {
        let Fold { du, channels, width, out } = self;
        let len = channels * width;
        for at in (0..len).step_by(S::LANES) {
            // SAFETY: `width` is a whole number of strips; `du` holds 36 and `out` 9 matrices of `len`.
            unsafe {
                let mut columns = [[S::splat(W::default()); 3]; SIDE];
                for (x, column) in columns.iter_mut().enumerate() {
                    *column = weight_gradient::<S>(gather::<S, SIDE>(du[x * len + at..].as_ptr(), SIDE * len));
                }
                for y in 0..3 {
                    let mut row = [S::splat(W::default()); SIDE];
                    for (row, column) in row.iter_mut().zip(&columns) {
                        *row = column[y];
                    }
                    let row = weight_gradient::<S>(row);
                    for (x, &value) in row.iter().enumerate() {
                        S::store(out[(y * 3 + x) * len + at..].as_mut_ptr(), value);
                    }
                }
            }
        }
    }
}

/// `dg = G^T dU G`, from the accumulated (36, c_in, padded c_out) to (9, c_in, padded c_out).
pub fn fold<W: Element<Wide = W>>(isa: Isa, s: &ConvShape, du: &[W], out: &mut [W]) {
    isa.run(Fold { du, channels: s.c_in, width: padded(s.c_out), out });
}
