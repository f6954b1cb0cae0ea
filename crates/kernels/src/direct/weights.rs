//! Weights as the products read them.

use std::sync::Arc;

use super::image::{Class, channels};
use crate::gemm::{STRIP, padded, steps};
use crate::runtime::{Buffer, Runtime};
use crate::simd::Element;
use crate::task::{ConvShape, Sides};

/// The weights, packed: for the output as a (k, k * c_in; c_out) matrix, for the input's gradient, if asked for, as one
/// (taps, taps * c_out; c_in) matrix a class.
pub fn pack<E: Element>(runtime: &Arc<Runtime<E>>, s: &ConvShape, weight: &[E::Wide], backward: bool) -> Sides<E> {
    let (ci, co, taps) = (channels::<E>(s.c_in), channels::<E>(s.c_out), s.k * s.k);
    let (input, output) = (taps, s.c_in * taps);
    let mut forward = Buffer::take(runtime, packed_len::<E>(s));
    matrix(forward.as_mut_slice(), [taps, ci, s.c_in, s.c_out], |tap, i, o| weight[o * output + i * input + tap]);
    // Every tap belongs to one class.
    let mut side = Buffer::take(runtime, if backward { taps * co * padded(s.c_in) } else { 0 });
    let mut rest = side.as_mut_slice();
    for y in Class::all(s).filter(|_| backward) {
        for x in Class::all(s) {
            let (class, behind) = std::mem::take(&mut rest).split_at_mut(y.taps * x.taps * co * padded(s.c_in));
            rest = behind;
            matrix(class, [y.taps * x.taps, co, s.c_out, s.c_in], |tap, o, i| {
                // Turned around, so that the gradient's pixels come in their order in memory.
                let (jy, jx) = (y.taps - 1 - tap / x.taps, x.taps - 1 - tap % x.taps);
                let tap = (y.rest + s.stride * jy) * s.k + x.rest + s.stride * jx;
                weight[o * output + i * input + tap]
            });
        }
    }
    Sides { shape: *s, forward, backward: side }
}

/// Numbers of the weights packed for the output.
pub fn packed_len<E: Element>(s: &ConvShape) -> usize {
    s.k * s.k * channels::<E>(s.c_in) * padded(s.c_out)
}

/// Writes a matrix of `taps` times `ld` rows in strips of columns; `value` of (tap, channel, column) is asked for the first
/// `channels` rows of each tap and for real columns only, all else is zero.
#[inline(always)]
fn matrix<E: Element>(
    to: &mut [E],
    [taps, ld, channels, columns]: [usize; 4],
    value: impl Fn(usize, usize, usize) -> E::Wide,
) {
    to.fill(E::default());
    let strip_len = steps::<E>(taps * ld) * STRIP * E::DEPTH;
    // A class without taps has no rows.
    for (strip, to) in to.chunks_exact_mut(strip_len.max(1)).enumerate() {
        let first = strip * STRIP;
        // A column's weights lie side by side in memory, tap by tap.
        for i in 0..channels {
            for j in first..columns.min(first + STRIP) {
                for tap in 0..taps {
                    let row = tap * ld + i;
                    to[(row / E::DEPTH * STRIP + j - first) * E::DEPTH + row % E::DEPTH] = E::narrow(value(tap, i, j));
                }
            }
        }
    }
}
