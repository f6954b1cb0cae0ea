//! Convolution of any kernel size, stride and padding by its definition: matrix products straight from a padded image.
//!
//! In a padded NHWC image the pixels under one row of the kernel lie side by side, so a patch is `k` segments of
//! `k * c_in` numbers, and neighbouring patches of a row of the output lie `stride` pixels apart. That is a matrix which the
//! product ([`crate::gemm`]) reads in place: nothing is copied into patches.
//!
//! The input's gradient is of the same kind. Input pixels fall into `stride * stride` classes by their position modulo
//! the stride; those of one class see the same taps of the kernel, and are a stride-1 convolution of the padded output
//! gradient with these taps, turned around. No pixel is written twice.

mod backward;
mod forward;
mod image;
mod tiled;
mod weights;

pub use backward::backward;
pub use forward::{forward, forward_scratch};
pub use weights::{pack, packed_len};

use crate::simd::{Element, Isa};
use crate::task::{ConvShape, ScratchLen};

/// Images processed together.
pub fn images_per_chunk<E: Element>(isa: Isa, s: &ConvShape) -> usize {
    if isa.on_tiles::<E>() { tiled::images_per_chunk(s) } else { 1 }
}

/// Scratch that [`backward`] needs.
pub fn backward_scratch<E: Element>(isa: Isa, s: &ConvShape) -> ScratchLen {
    if isa.on_tiles::<E>() { tiled::backward_scratch::<E>(s) } else { backward::backward_scratch::<E>(s) }
}
