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
    let side = |rows: usize, columns: usize, row: usize, column: usize| {
        let mut out = Buffer::take(runtime, packed_len::<E>(rows, columns));
        runtime.isa.run(Pack { weight, rows, columns, row, column, out: out.as_mut_slice() });
        out
    };
    let (input, output) = (9, 9 * s.c_in);
    Sides {
        shape: *s,
        forward: side(s.c_in, s.c_out, input, output),
        backward: if backward { side(s.c_out, s.c_in, output, input) } else { Buffer::take(runtime, 0) },
    }
}

/// Numbers of the packed matrices of one direction.
pub fn packed_len<E: Element>(rows: usize, columns: usize) -> usize {
    ELEMENTS * steps::<E>(rows) * E::DEPTH * padded(columns)
}

/// The packed matrices of one direction.
struct Pack<'a, E: Element> {
    /// Nine weights for each pair of channels.
    weight: &'a [E::Wide],
    rows: usize,
    columns: usize,
    /// Distances of two rows and of two columns in `weight`.
    row: usize,
    column: usize,
    /// For each of 36 elements: strips of (steps, columns, depth).
    out: &'a mut [E],
}

impl<E: Element> Pack<'_, E> {
    /// The weights of a row in a strip of columns, by tap; zero behind the last row and column.
    #[inline(always)]
    fn strip(&self, row: usize, first: usize) -> [[E::Wide; STRIP]; 9] {
        let mut by_tap = [[E::Wide::default(); STRIP]; 9];
        if row < self.rows {
            for j in 0..STRIP.min(self.columns - first) {
                let taps = &self.weight[row * self.row + (first + j) * self.column..][..9];
                for (by_tap, w) in by_tap.iter_mut().zip(taps) {
                    by_tap[j] = *w;
                }
            }
        }
        by_tap
    }
}

impl<E: Element> Kernel<E> for Pack<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let rows = steps::<E>(self.rows) * E::DEPTH;
        let matrix = rows * padded(self.columns);
        for first in (0..self.columns).step_by(STRIP) {
            for i in (0..rows).step_by(E::DEPTH) {
                let mut strips = [[[E::Wide::default(); STRIP]; 9]; 2];
                for (k, strip) in strips.iter_mut().enumerate().take(E::DEPTH) {
                    *strip = self.strip(i + k, first);
                }
                for j in (0..STRIP).step_by(S::LANES) {
                    let at = (first / STRIP * rows + i) * STRIP + j * E::DEPTH;
                    // SAFETY: i + DEPTH <= rows, j + LANES <= STRIP; `out` holds 36 matrices.
                    unsafe {
                        let mut u = [[S::splat(E::Wide::default()); ELEMENTS]; 2];
                        for (u, strip) in u.iter_mut().zip(&strips).take(E::DEPTH) {
                            let mut columns = [[S::splat(E::Wide::default()); SIDE]; 3];
                            for (x, column) in columns.iter_mut().enumerate() {
                                *column = weight::<S>(gather::<S, 3>(
                                    strip.as_flattened()[x * STRIP + j..].as_ptr(),
                                    3 * STRIP,
                                ));
                            }
                            for y in 0..SIDE {
                                let row = weight::<S>([columns[0][y], columns[1][y], columns[2][y]]);
                                u[y * SIDE..][..SIDE].copy_from_slice(&row);
                            }
                        }
                        for f in 0..ELEMENTS {
                            S::store_operand(self.out.as_mut_ptr().add(f * matrix + at), [u[0][f], u[1][f]]);
                        }
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
    let per_element = s.c_in * padded(s.c_out);
    assert!(s.k == 3 && du.len() >= ELEMENTS * per_element && out.len() >= 9 * per_element);
    isa.run(Fold { du, channels: s.c_in, width: padded(s.c_out), out });
}
