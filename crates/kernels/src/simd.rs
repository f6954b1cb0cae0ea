//! One vector vocabulary for every instruction set.
//!
//! A kernel is written once, generic over [`Simd`]; [`Isa::run`] compiles it for each instruction
//! set and picks one when it is called. Lanes always run over channels, so no sum is ever taken
//! across lanes and AVX2 and AVX-512 give the same bits.
//!
//! What is stored and what is computed in may differ: activations in bf16 are widened to f32 vectors
//! when they are loaded. Only the matrix product knows bf16 operands of its own ([`Simd::B`]): two
//! bf16 numbers a lane, whose products are added to an f32 (AVX512_BF16's `vdpbf16ps`).
// Every function here is a one-line wrapper of an intrinsic or of a raw load or store: the contract
// (valid pointers for LANES elements, the instruction set is present) is stated once, on the trait.
#![allow(clippy::missing_safety_doc)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, AddAssign, Mul, Sub};

use half::bf16;
pub use portable::{Portable, PortableBf16};

/// A stored scalar: `f32` or `bf16` to train, `f64` to check gradients.
pub trait Element:
    candle_core::WithDType
    + Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + 'static
{
    /// What it is computed in; parameters, statistics and sums are kept in this.
    type Wide: Element<Wide = Self::Wide> + std::fmt::Debug;
    /// Elements of the sum that one step of a matrix product takes: two for bf16.
    const DEPTH: usize;
    /// The scalar as f64, in which all statistics are combined.
    fn f64(self) -> f64;
    /// Rounded from f64.
    fn of(value: f64) -> Self;
    /// Exactly.
    fn widen(self) -> Self::Wide;
    /// Rounded to the nearest.
    fn narrow(value: Self::Wide) -> Self;
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

/// The scalar that vectors over `S` compute in.
pub type Wide<S> = <<S as Simd>::E as Element>::Wide;

/// A vector of `LANES` scalars.
///
/// # Safety
/// All functions require that the processor has the instruction set, and every pointer must be
/// valid for `LANES` elements (no alignment needed).
pub trait Simd: Copy + Send + Sync + 'static {
    /// Stored scalar.
    type E: Element;
    /// The same vectors over what they compute in.
    type W: Simd<E = Wide<Self>, V = Self::V>;
    /// Register of `LANES` wide scalars.
    type V: Copy;
    /// Register of a matrix product's operand: `LANES` columns, `DEPTH` rows.
    type B: Copy;
    /// Scalars a register.
    const LANES: usize;
    /// Rows of the matrix product's register tile: as many as the register file holds.
    const ROWS: usize;
    /// `LANES` scalars from memory.
    unsafe fn load(p: *const Self::E) -> Self::V;
    /// `LANES` scalars to memory.
    unsafe fn store(p: *mut Self::E, v: Self::V);
    /// One scalar in every lane.
    unsafe fn splat(x: Wide<Self>) -> Self::V;
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
    /// `LANES` columns of `DEPTH` rows, a column's rows side by side.
    unsafe fn load_operand(p: *const Self::E) -> Self::B;
    /// The `DEPTH` scalars at `p` for every column.
    unsafe fn splat_operand(p: *const Self::E) -> Self::B;
    /// `c` plus the products of the operands' rows.
    unsafe fn product(a: Self::B, b: Self::B, c: Self::V) -> Self::V;
    /// `DEPTH` rows as [`load_operand`](Self::load_operand) reads them; further rows are ignored.
    unsafe fn store_operand(p: *mut Self::E, rows: [Self::V; 2]);
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
    /// x86-64 with AVX-512 F, BW and BF16: the one that multiplies bf16 faster than f32.
    Avx512Bf16,
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
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16") {
                all.push(Isa::Avx512Bf16);
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

/// What f32 and f64 share: they are computed in as they are.
macro_rules! itself {
    () => {
        type Wide = Self;
        const DEPTH: usize = 1;
        fn widen(self) -> Self {
            self
        }
        fn narrow(value: Self) -> Self {
            value
        }
    };
}

impl Element for f64 {
    itself!();
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
    itself!();
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn of(value: f64) -> f32 {
        value as f32
    }
    fn run<K: Kernel<f32>>(isa: Isa, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512f") {
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

impl Element for bf16 {
    type Wide = f32;
    const DEPTH: usize = 2;
    fn f64(self) -> f64 {
        self.to_f64()
    }
    fn of(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn run<K: Kernel<bf16>>(isa: Isa, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            let bw = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if isa >= Isa::Avx512Bf16 && bw && is_x86_feature_detected!("avx512bf16") {
                // SAFETY: the features were just detected.
                return unsafe { x86::avx512_bf16(kernel) };
            }
        }
        let _ = isa;
        // SAFETY: portable code needs no instruction set.
        unsafe { kernel.run::<PortableBf16>() }
    }
}
