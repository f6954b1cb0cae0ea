//! What a processor's multipliers can do: the register tile of the matrix product, without memory; and what a
//! convolution makes of them.

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use crate::conv::{self, Algorithm, ConvShape, Packed};
use crate::gemm::{Lhs, Out, Rhs, STRIP, WHOLE, gemm};
use crate::operand::{After, Gradient, Input};
use crate::runtime::Runtime;
use crate::simd::{Element, Isa, Kernel, Simd, TILE, Tiles};

/// The numbers that products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// 64 bits.
    F64,
    /// 32 bits.
    F32,
    /// 16 bits with sums in 32, where the processor [has them](Isa::has_bf16); else 32.
    Bf16,
}

impl Numbers {
    fn wide(self, isa: Isa) -> bool {
        self == Numbers::F32 || self == Numbers::Bf16 && !isa.has_bf16()
    }
}

/// The algorithm that is fastest for a convolution of these numbers.
pub fn algorithm(isa: Isa, numbers: Numbers, shape: &ConvShape) -> Algorithm {
    match numbers {
        wide if wide.wide(isa) => shape.algorithm::<f32>(isa),
        Numbers::F64 => shape.algorithm::<f64>(isa),
        _ => shape.algorithm::<bf16>(isa),
    }
}

/// Steps of the sum: operands of this length stay in the first cache.
const STEPS: usize = 128;

struct Tile<'a, E: Element> {
    a: &'a [E],
    b: &'a [E],
    c: &'a mut [E::Wide],
    times: usize,
}

impl<E: Element> Kernel<E> for Tile<'_, E> {
    /// Multiplications and additions done.
    type Output = f64;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> f64 {
        let (m, n) = (if S::T::PRESENT { 2 * TILE } else { S::ROWS }, 2 * STRIP);
        for _ in 0..self.times {
            // SAFETY: `gflops_of` sizes the operands for the largest tile.
            unsafe {
                gemm::<S>(
                    m,
                    n,
                    STEPS,
                    Lhs { data: self.a.as_ptr(), row: STEPS * E::DEPTH, col: E::DEPTH, segments: WHOLE },
                    Rhs::packed(self.b.as_ptr(), STEPS),
                    Out { data: self.c.as_mut_ptr(), row: n, accumulate: false },
                );
            }
        }
        // SAFETY: nothing is in the tiles that anyone reads.
        unsafe { S::T::release() };
        (2 * m * n * STEPS * E::DEPTH * self.times) as f64
    }
}

/// GFLOP/s of all threads of the current pool together, the best of several tries: operands lie in the first cache.
pub fn gflops(isa: Isa, numbers: Numbers) -> f64 {
    match numbers {
        wide if wide.wide(isa) => gflops_of::<f32>(isa),
        Numbers::F64 => gflops_of::<f64>(isa),
        _ => gflops_of::<bf16>(isa),
    }
}

fn gflops_of<E: Element>(isa: Isa) -> f64 {
    let runtime = Runtime::<E>::new(isa);
    let one = |times: usize| {
        let (mut a, mut b) = (runtime.take(2 * TILE * STEPS * E::DEPTH), runtime.take(2 * STRIP * STEPS * E::DEPTH));
        let mut c = runtime.take_wide(2 * TILE * 2 * STRIP);
        a.fill(E::default());
        b.fill(E::default());
        let flop = isa.run(Tile { a: &a, b: &b, c: &mut c, times });
        runtime.give(a);
        runtime.give(b);
        runtime.give_wide(c);
        flop
    };
    let threads = rayon::current_num_threads();
    one(100);
    (0..5)
        .map(|_| {
            let clock = Instant::now();
            let flop: f64 = (0..threads).into_par_iter().map(|_| one(20_000)).sum();
            flop / clock.elapsed().as_secs_f64() / 1e9
        })
        .fold(0.0, f64::max)
}

/// A convolution as a network runs it, on activations that are stored in the kernels' order: each call of what is
/// returned computes the output of `batch` images and both gradients.
pub fn convolution(
    isa: Isa,
    numbers: Numbers,
    shape: ConvShape,
    algorithm: Algorithm,
    batch: usize,
) -> Box<dyn FnMut()> {
    match numbers {
        wide if wide.wide(isa) => convolution_of::<f32>(isa, shape, algorithm, batch),
        Numbers::F64 => convolution_of::<f64>(isa, shape, algorithm, batch),
        _ => convolution_of::<bf16>(isa, shape, algorithm, batch),
    }
}

fn convolution_of<E: Element>(isa: Isa, shape: ConvShape, algorithm: Algorithm, batch: usize) -> Box<dyn FnMut()> {
    let runtime = Arc::new(Runtime::new(isa));
    let numbers = |len: usize| -> Vec<f64> { (0..len).map(|i| ((i * 37) % 101) as f64 / 50.0 - 1.0).collect() };
    let stored = |len: usize| -> Vec<E> { numbers(len).into_iter().map(E::of).collect() };
    let (x, g) = (stored(batch * shape.input_len()), stored(batch * shape.output_len()));
    let (mut y, mut dx) = (stored(g.len()), stored(x.len()));
    let weight: Vec<E::Wide> = numbers(shape.weight_len()).into_iter().map(E::Wide::of).collect();
    let mut dw = weight.clone();
    Box::new(move || {
        let packed = Packed::new(&runtime, &shape, algorithm, &weight, true);
        let (input, gradient) = (Input { u: &x, affine: None }, Gradient::stored(&g));
        conv::forward(&runtime, &shape, input, &packed, After::default(), &mut y, None, rayon::current_num_threads());
        conv::backward(&runtime, &shape, input, gradient, &packed, Some((&mut dx, false)), &mut dw, None);
    })
}
