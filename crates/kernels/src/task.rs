//! What one thread convolves at a time: sizes, operands and scratch memory, whatever the algorithm.

use std::ops::Range;

use crate::operand::{After, Gradient, Input};
use crate::runtime::Buffer;
use crate::simd::{Element, Isa};

/// Sizes of one convolution, an image at a time. Kernels are square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel height and width.
    pub k: usize,
    /// Step between two output pixels.
    pub stride: usize,
    /// Zero pixels on every side.
    pub padding: usize,
}

impl ConvShape {
    /// Whether the kernel can be placed at all.
    pub fn fits(&self) -> bool {
        self.k > 0
            && self.stride > 0
            && self.c_in > 0
            && self.c_out > 0
            && self.h.min(self.w) + 2 * self.padding >= self.k
    }
    /// Output height.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.k) / self.stride + 1
    }
    /// Output width.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.k) / self.stride + 1
    }
    /// Elements of an input image.
    pub fn input_len(&self) -> usize {
        self.h * self.w * self.c_in
    }
    /// Elements of an output image.
    pub fn output_len(&self) -> usize {
        self.out_h() * self.out_w() * self.c_out
    }
    /// Elements of the weight, (c_out, c_in, k, k).
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.k * self.k
    }
    /// Multiplications and additions of the definition, an image.
    pub fn macs(&self) -> usize {
        self.out_h() * self.out_w() * self.weight_len()
    }
    /// The algorithm that is fastest for these sizes and numbers.
    pub fn algorithm<E: Element>(&self, isa: Isa) -> Algorithm {
        // Under 8 channels the transforms cost more than the multiplications they save; on matrix registers, always.
        match (self.k, self.stride, self.padding) {
            (3, 1, 1) if !(isa >= Isa::Amx && isa.on_tiles::<E>()) && self.c_in >= 8 && self.c_out >= 8 => {
                Algorithm::Winograd
            }
            _ => Algorithm::Direct,
        }
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// F(4x4, 3x3), only for 3x3, stride 1, padding 1.
    Winograd,
    /// By the definition, for every shape.
    Direct,
}

/// A weight as the matrix products of both directions read it.
#[derive(Debug)]
pub struct Sides<E: Element> {
    /// The convolution that it is for; images of other sizes read it as well.
    pub(crate) shape: ConvShape,
    /// For the output.
    pub(crate) forward: Buffer<E>,
    /// For the input's gradient; empty where none is wanted.
    pub(crate) backward: Buffer<E>,
}

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
    /// What becomes of the sums.
    pub after: After<'a, E>,
    /// Rows of the output: all, or those of a part of one image.
    pub rows: Range<usize>,
    /// The output of this task's images and rows only.
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
