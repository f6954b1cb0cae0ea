//! What one thread does at a time, by either algorithm.

use std::ops::Range;

use super::{ConvShape, Sides};
use crate::operand::{Gradient, Input};
use crate::simd::{Element, Kernel, Simd};
use crate::{direct, winograd};

/// Lengths of a task's scratch memory.
#[derive(Clone, Copy, Debug)]
pub struct ScratchLen {
    /// Operands of matrix products.
    pub stored: usize,
    /// Everything else.
    pub wide: usize,
    /// Segments of a product's operand.
    pub segments: usize,
}

/// A task's scratch memory; its content is arbitrary.
pub struct Scratch<'a, E: Element> {
    /// Operands of matrix products.
    pub stored: &'a mut [E],
    /// Everything else.
    pub wide: &'a mut [E::Wide],
    /// Segments of a product's operand.
    pub segments: &'a mut [usize],
}

/// One forward task.
pub struct Forward<'a, E: Element> {
    /// Sizes.
    pub shape: &'a ConvShape,
    /// The images of this task, indices into the whole activation.
    pub images: Range<usize>,
    /// The whole batch's input.
    pub input: Input<'a, E>,
    /// Packed weight.
    pub packed: &'a Sides<E>,
    /// The whole batch's residual, added to the output.
    pub residual: Option<&'a [E]>,
    /// The output of this task's images only.
    pub out: &'a mut [E],
    /// Scratch of the algorithm's own size.
    pub scratch: Scratch<'a, E>,
}

/// One backward task.
pub struct Backward<'a, E: Element> {
    /// Sizes.
    pub shape: &'a ConvShape,
    /// The images of this task, indices into the whole activation.
    pub images: Range<usize>,
    /// The whole batch's input, as in the forward pass.
    pub input: Input<'a, E>,
    /// The whole batch's output gradient.
    pub gradient: Gradient<'a, E>,
    /// Packed weight.
    pub packed: &'a Sides<E>,
    /// The input gradient of this task's images only, and whether to add to it.
    pub dx: Option<(&'a mut [E], bool)>,
    /// Weight gradient in the algorithm's own layout; added to.
    pub dw: &'a mut [E::Wide],
    /// Scratch of the algorithm's own size.
    pub scratch: Scratch<'a, E>,
}

pub(super) enum RunForward<'a, E: Element> {
    Winograd(Forward<'a, E>),
    Direct(Forward<'a, E>),
}

impl<E: Element> Kernel<E> for RunForward<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: `Element::run` checked the instruction set; `forward` below sizes the buffers.
        unsafe {
            match self {
                RunForward::Winograd(task) => winograd::forward::<S>(task),
                RunForward::Direct(task) => direct::forward::<S>(task),
            }
        }
    }
}

pub(super) enum RunBackward<'a, E: Element> {
    Winograd(Backward<'a, E>),
    Direct(Backward<'a, E>),
}

impl<E: Element> Kernel<E> for RunBackward<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: as above.
        unsafe {
            match self {
                RunBackward::Winograd(task) => winograd::backward::<S>(task),
                RunBackward::Direct(task) => direct::backward::<S>(task),
            }
        }
    }
}
