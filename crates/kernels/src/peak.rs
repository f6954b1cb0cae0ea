//! What a processor's multipliers can do: the register tile of the matrix product, without memory.

use std::time::Instant;

use rayon::prelude::*;

use crate::gemm::{Lhs, Out, Rhs, STRIP, WHOLE, gemm};
use crate::simd::{Element, Isa, Kernel, Simd};

/// Steps of the sum: operands of this length stay in the first cache.
const STEPS: usize = 256;

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
        let (m, n) = (S::ROWS, 2 * STRIP);
        for _ in 0..self.times {
            // SAFETY: `gflops` sizes the operands for the largest tile.
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
        (2 * m * n * STEPS * E::DEPTH * self.times) as f64
    }
}

/// GFLOP/s of all threads of the current pool together, the best of several tries: operands lie in the first cache.
pub fn gflops<E: Element>(isa: Isa) -> f64 {
    let one = |times: usize| {
        let (a, b) = (vec![E::default(); 16 * STEPS * E::DEPTH], vec![E::default(); 2 * STRIP * STEPS * E::DEPTH]);
        let mut c = vec![E::Wide::default(); 16 * 2 * STRIP];
        isa.run(Tile { a: &a, b: &b, c: &mut c, times })
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
