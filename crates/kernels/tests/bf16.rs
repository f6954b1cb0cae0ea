//! bf16 is the same on every set of vectors, whether the processor multiplies it or splits it into f32: AVX512_BF16's
//! definition, in plain code.

use half::bf16;
use kernels::gemm::{Lhs, Out, Rhs, STRIP, WHOLE, gemm};
use kernels::simd::{Element, Isa, Kernel, Simd};

/// The vectors that this processor has; AMX sums in another order.
fn vectors() -> Vec<Isa> {
    let all: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.has_bf16() && *isa < Isa::Amx).collect();
    println!("bf16 on {all:?}");
    all
}

/// Numbers of many sizes and both signs, with all bits in use.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = (state >> 33) as u32;
            let exponent = 117 + bits % 20;
            f32::from_bits(bits << 31 | exponent << 23 | (state >> 40) as u32 & 0x7F_FFFF)
        })
        .collect()
}

struct Product<'a> {
    sizes: [usize; 3],
    a: &'a [bf16],
    b: &'a [bf16],
    c: &'a mut [f32],
}

impl Kernel<bf16> for Product<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = bf16>>(self) {
        let [m, n, steps] = self.sizes;
        let a = Lhs { data: self.a.as_ptr(), row: 2 * steps, col: 2, segments: WHOLE };
        let c = Out { data: self.c.as_mut_ptr().cast(), row: n, accumulate: true };
        // SAFETY: the slices have the sizes' lengths.
        unsafe { gemm::<S>(m, n, steps, a, Rhs::packed(self.b.as_ptr(), steps), c) }
    }
}

#[test]
fn a_product_adds_the_odd_products_first_each_rounded_once() {
    for isa in vectors() {
        for (m, n, steps) in [(1, 16, 1), (3, 16, 5), (4, 32, 8), (13, 48, 33), (27, 16, 64)] {
            let narrow = |len, seed| numbers(len, seed).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            let (a, b) = (narrow(m * 2 * steps, 1), narrow(n * 2 * steps, 2));
            let start = numbers(m * n, 3);
            let mut found = start.clone();
            isa.run::<bf16, _>(Product { sizes: [m, n, steps], a: &a, b: &b, c: &mut found });
            for i in 0..m {
                for j in 0..n {
                    let mut sum = start[i * n + j];
                    for p in 0..steps {
                        let column = j / STRIP * STRIP * 2 * steps + p * 2 * STRIP + j % STRIP * 2;
                        for k in [1, 0] {
                            sum = a[(i * steps + p) * 2 + k].to_f32().mul_add(b[column + k].to_f32(), sum);
                        }
                    }
                    assert_eq!(found[i * n + j].to_bits(), sum.to_bits(), "{isa:?} {m}x{n}x{steps} at {i}, {j}");
                }
            }
        }
    }
}

struct Rounding<'a> {
    from: &'a [f32],
    stored: &'a mut [bf16],
    operands: &'a mut [bf16],
}

impl Kernel<bf16> for Rounding<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = bf16>>(self) {
        for i in (0..self.from.len()).step_by(S::LANES) {
            // SAFETY: the slices' lengths are multiples of the largest vector's.
            unsafe {
                let v = S::W::load(self.from.as_ptr().cast::<<S::W as Simd>::E>().add(i));
                S::store(self.stored.as_mut_ptr().add(i), v);
                S::store_operand(self.operands.as_mut_ptr().add(2 * i), [v, S::sub(S::splat(bf16::ZERO.widen()), v)]);
            }
        }
    }
}

/// Every bf16 with lower halves below, at and above the middle.
#[test]
fn numbers_are_rounded_to_the_nearest_and_denormals_to_zero() {
    let from: Vec<f32> = (0..=u16::MAX)
        .flat_map(|upper| {
            [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|lower| f32::from_bits(u32::from(upper) << 16 | lower))
        })
        .chain([f32::MAX, f32::MIN, f32::INFINITY, -0.0, 1e-39, f32::MIN_POSITIVE, 0.0, 1.0])
        .chain([1.0; 8])
        .collect();
    assert!(from.len().is_multiple_of(16));
    let rounded = |x: f32| bf16::from_f32(if x.is_subnormal() { 0f32.copysign(x) } else { x });
    for isa in vectors() {
        let (mut stored, mut operands) = (vec![bf16::ZERO; from.len()], vec![bf16::ZERO; 2 * from.len()]);
        isa.run::<bf16, _>(Rounding { from: &from, stored: &mut stored, operands: &mut operands });
        for (i, x) in from.iter().enumerate() {
            let expected = rounded(*x);
            for (found, expected) in
                [(stored[i], expected), (operands[2 * i], expected), (operands[2 * i + 1], rounded(0.0 - x))]
            {
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{isa:?}: {x:e} ({:08x}) became {found:?}, not {expected:?}", x.to_bits());
            }
        }
    }
}
