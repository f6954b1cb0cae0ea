//! One vector vocabulary for every instruction set.
//!
//! A kernel is written once, generic over [`Simd`]; [`Isa::run`] compiles it for each instruction
//! set and picks one when it is called. Lanes always run over channels, so no sum is ever taken
//! across lanes and AVX2 and AVX-512 give the same bits.
// Every function here is a one-line wrapper of an intrinsic or of a raw load or store: the contract
// (valid pointers for LANES elements, the instruction set is present) is stated once, on the trait.
#![allow(clippy::missing_safety_doc)]

use std::ops::{Add, AddAssign, Mul, Sub};

/// A scalar that the kernels compute in: `f32` to train, `f64` to check gradients.
pub trait Element:
    candle_core::WithDType
    + Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + 'static
{
    /// The scalar as f64, in which all statistics are combined.
    fn f64(self) -> f64;
    /// Rounded from f64.
    fn of(value: f64) -> Self;
    /// Runs `kernel` compiled for `isa`; an `isa` that this scalar has no vectors for runs portably.
    fn run<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output;
}

/// An operation over slices, compiled once for each instruction set.
pub trait Kernel<E: Element> {
    /// What it returns.
    type Output;
    /// The body. Must be `#[inline(always)]`, so that it is compiled inside the function that
    /// enables the instruction set.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions.
    unsafe fn run<S: Simd<E = E>>(self) -> Self::Output;
}

/// A vector of `LANES` scalars.
///
/// # Safety
/// All functions require that the processor has the instruction set, and every pointer must be
/// valid for `LANES` elements (no alignment needed).
pub trait Simd: Copy + Send + Sync + 'static {
    /// Scalar.
    type E: Element;
    /// Register.
    type V: Copy;
    /// Scalars a register.
    const LANES: usize;
    /// Rows of the matrix product's register tile: as many as the register file holds.
    const ROWS: usize;
    /// `LANES` scalars from memory.
    unsafe fn load(p: *const Self::E) -> Self::V;
    /// `LANES` scalars to memory.
    unsafe fn store(p: *mut Self::E, v: Self::V);
    /// One scalar in every lane.
    unsafe fn splat(x: Self::E) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `max(a, 0)`.
    unsafe fn relu(a: Self::V) -> Self::V;
    /// `v` where `gate > 0`, else 0.
    unsafe fn gate(v: Self::V, gate: Self::V) -> Self::V;
}

/// Arrays that the compiler vectorises for the baseline processor.
#[derive(Clone, Copy)]
pub struct Portable<E>(std::marker::PhantomData<E>);

impl<E: Element> Simd for Portable<E> {
    type E = E;
    type V = [E; 8];
    const LANES: usize = 8;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const E) -> [E; 8] {
        // SAFETY: the trait's contract; an array has its element's alignment.
        unsafe { p.cast::<[E; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut E, v: [E; 8]) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[E; 8]>().write(v) }
    }
    #[inline(always)]
    unsafe fn splat(x: E) -> [E; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn fma(a: [E; 8], b: [E; 8], c: [E; 8]) -> [E; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [E; 8], b: [E; 8]) -> [E; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [E; 8], b: [E; 8]) -> [E; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [E; 8], b: [E; 8]) -> [E; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn relu(a: [E; 8]) -> [E; 8] {
        a.map(|x| if x > E::default() { x } else { E::default() })
    }
    #[inline(always)]
    unsafe fn gate(v: [E; 8], gate: [E; 8]) -> [E; 8] {
        std::array::from_fn(|i| if gate[i] > E::default() { v[i] } else { E::default() })
    }
}

/// Instruction sets, from slowest to fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Any processor.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
}

impl Isa {
    /// All that this processor has.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The fastest that this processor has.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Portable)
    }

    /// Compiles `kernel` for this instruction set (or the best one below it that the processor has) and runs it.
    pub fn run<E: Element, K: Kernel<E>>(self, kernel: K) -> K::Output {
        E::run(self, kernel)
    }
}

impl Element for f64 {
    fn f64(self) -> f64 {
        self
    }
    fn of(value: f64) -> f64 {
        value
    }
    fn run<K: Kernel<f64>>(_: Isa, kernel: K) -> K::Output {
        // SAFETY: portable code needs no instruction set.
        unsafe { kernel.run::<Portable<f64>>() }
    }
}

impl Element for f32 {
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn of(value: f64) -> f32 {
        value as f32
    }
    fn run<K: Kernel<f32>>(isa: Isa, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if isa == Isa::Avx512 && is_x86_feature_detected!("avx512f") {
                // SAFETY: the feature was just detected.
                return unsafe { x86::avx512(kernel) };
            }
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if isa >= Isa::Avx2 && avx2 {
                // SAFETY: the features were just detected.
                return unsafe { x86::avx2(kernel) };
            }
        }
        let _ = isa;
        // SAFETY: portable code needs no instruction set.
        unsafe { kernel.run::<Portable<f32>>() }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<K: Kernel<f32>>(kernel: K) -> K::Output {
        // SAFETY: the features are enabled for this function.
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512<K: Kernel<f32>>(kernel: K) -> K::Output {
        // SAFETY: the feature is enabled for this function.
        unsafe { kernel.run::<Avx512>() }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2;
    #[derive(Clone, Copy)]
    pub struct Avx512;

    /// The wrappers differ in nothing but the intrinsics' names.
    macro_rules! simd {
        ($name:ident, $v:ty, $lanes:literal, $rows:literal, $load:ident, $store:ident, $splat:ident,
         $fma:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, |$value:ident, $gate:ident| $gated:expr) => {
            impl Simd for $name {
                type E = f32;
                type V = $v;
                const LANES: usize = $lanes;
                const ROWS: usize = $rows;
                #[inline(always)]
                unsafe fn load(p: *const f32) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $load(p) }
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, v: $v) {
                    // SAFETY: the trait's contract.
                    unsafe { $store(p, v) }
                }
                #[inline(always)]
                unsafe fn splat(x: f32) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                unsafe fn add(a: $v, b: $v) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn sub(a: $v, b: $v) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $sub(a, b) }
                }
                #[inline(always)]
                unsafe fn mul(a: $v, b: $v) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                unsafe fn relu(a: $v) -> $v {
                    // `max(a, 0)` returns its second operand when `a` is NaN; the order of the
                    // operands keeps a NaN visible.
                    // SAFETY: the trait's contract.
                    unsafe { $max(Self::splat(0.0), a) }
                }
                #[inline(always)]
                unsafe fn gate($value: $v, $gate: $v) -> $v {
                    // SAFETY: the trait's contract.
                    unsafe { $gated }
                }
            }
        };
    }

    simd!(
        Avx2,
        __m256,
        8,
        6,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_max_ps,
        |v, gate| _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_GT_OQ>(gate, _mm256_setzero_ps()))
    );
    simd!(
        Avx512,
        __m512,
        16,
        12,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        |v, gate| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(gate, _mm512_setzero_ps()), v)
    );
}
