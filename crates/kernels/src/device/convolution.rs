//! A convolution as a matrix product of its windows. Images go through it a few at a time where their windows would fill
//! the memory; backward makes the windows again instead of keeping them.

use candle_core::{Result, Tensor};

use super::ops;
use crate::task::ConvShape;

/// Elements of the windows that are in memory at once, unless an image has more: 1 GB of bf16.
pub const WINDOWS: usize = 1 << 29;

/// Images whose windows are in memory at once.
fn images_at_once(s: &ConvShape, windows: usize) -> usize {
    (windows / (s.out_h() * s.out_w() * s.k * s.k * s.c_in).max(1)).max(1)
}

/// Whether the windows are the pixels themselves.
fn is_product(s: &ConvShape) -> bool {
    s.k == 1 && s.stride == 1 && s.padding == 0
}

/// The windows of x (n, h, w, c) as rows.
fn windows(x: &Tensor, s: &ConvShape) -> Result<Tensor> {
    if is_product(s) { x.reshape((x.elem_count() / s.c_in, s.c_in)) } else { ops::im2col(x, s) }
}

/// x (n, h, w, c) to (n, oh, ow, outputs), by a packed weight.
pub fn convolve(x: &Tensor, packed: &Tensor, s: &ConvShape, at_once: usize) -> Result<Tensor> {
    let n = x.dim(0)?;
    let mut parts = Vec::new();
    for (from, count) in pieces(n, images_at_once(s, at_once)) {
        parts.push(windows(&x.narrow(0, from, count)?, s)?.matmul(packed)?);
    }
    let y = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
    y.reshape((n, s.out_h(), s.out_w(), s.c_out))
}

/// The gradients of a packed weight and, where it is wanted, of x.
pub fn convolve_back(
    x: &Tensor,
    g: &Tensor,
    packed: &Tensor,
    s: &ConvShape,
    (at_once, wanted): (usize, bool),
) -> Result<(Tensor, Option<Tensor>)> {
    let (n, mut of_weight, mut of_x) = (x.dim(0)?, None, Vec::new());
    for (from, count) in pieces(n, images_at_once(s, at_once)) {
        let g = g.narrow(0, from, count)?.reshape((count * s.out_h() * s.out_w(), s.c_out))?;
        let share = windows(&x.narrow(0, from, count)?, s)?.t()?.matmul(&g)?;
        of_weight = Some(match of_weight {
            Some(sum) => (sum + share)?,
            None => share,
        });
        if wanted {
            let rows = g.matmul(&packed.t()?)?;
            of_x.push(if is_product(s) {
                rows.reshape((count, s.h, s.w, s.c_in))?
            } else {
                ops::col2im(&rows, s, count)?
            });
        }
    }
    let of_weight = match of_weight {
        Some(sum) => sum,
        None => packed.zeros_like()?,
    };
    let of_x = match of_x.len() {
        0 => None,
        1 => of_x.pop(),
        _ => Some(Tensor::cat(&of_x, 0)?),
    };
    Ok((of_weight, of_x))
}

/// `n` images, some at a time: where each piece begins, and how many it has.
fn pieces(n: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(at_once).map(move |from| (from, at_once.min(n - from)))
}
