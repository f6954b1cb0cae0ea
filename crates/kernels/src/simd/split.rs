//! bf16 on processors that multiply only f32, bit for bit what AVX512_BF16 computes.
//!
//! The product of two bf16 numbers has 16 significant bits, so it is exact in f32, and what `vdpbf16ps` is defined as is two
//! fused additions: of the odd products first, then of the even ones. Splitting a pair takes a shift and a mask, which run
//! beside the multipliers; activations take half of f32's memory as they do there.
//!
//! Where they part: sums below 1.2e-38 (denormal), which that instruction takes for 0 and these keep.

use std::marker::PhantomData;

use half::bf16;

use super::vocabulary::{NoTiles, Simd};

/// How vectors of f32 read and write bf16: a bf16 is the upper half of an f32.
pub trait Halves: Simd<E = f32> {
    /// Rows of a register tile whose operands lie split, two registers each.
    const ROWS: usize;
    /// `LANES` numbers, widened.
    unsafe fn widened(p: *const bf16) -> Self::V;
    /// `LANES` numbers, rounded to the nearest.
    unsafe fn rounded(p: *mut bf16, v: Self::V);
    /// The even and the odd ones of `2 LANES` numbers.
    unsafe fn split(p: *const bf16) -> [Self::V; 2];
    /// The two numbers at `p`, each in every lane.
    unsafe fn splat_split(p: *const bf16) -> [Self::V; 2];
    /// `2 LANES` numbers from the even and the odd ones, rounded to the nearest.
    unsafe fn interleaved(p: *mut bf16, rows: [Self::V; 2]);
}

/// Vectors stored as bf16 and computed in as `S` does.
pub struct Split<S>(PhantomData<S>);

impl<S> Clone for Split<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Split<S> {}

/// Functions that pass their arguments on.
macro_rules! pass {
    ($($name:ident($($arg:ident: $t:ty),*) -> $r:ty = $to:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $t),*) -> $r {
            // SAFETY: the trait's contract.
            unsafe { $to($($arg),*) }
        }
    )*};
}

impl<S: Halves> Simd for Split<S> {
    type E = bf16;
    type W = S;
    type V = S::V;
    type B = [S::V; 2];
    type T = NoTiles;
    const LANES: usize = S::LANES;
    const ROWS: usize = <S as Halves>::ROWS;
    pass! {
        load(p: *const bf16) -> S::V = S::widened;
        store(p: *mut bf16, v: S::V) -> () = S::rounded;
        splat(x: f32) -> S::V = S::splat;
        fma(a: S::V, b: S::V, c: S::V) -> S::V = S::fma;
        add(a: S::V, b: S::V) -> S::V = S::add;
        sub(a: S::V, b: S::V) -> S::V = S::sub;
        mul(a: S::V, b: S::V) -> S::V = S::mul;
        relu(a: S::V) -> S::V = S::relu;
        gate(v: S::V, gate: S::V) -> S::V = S::gate;
        load_operand(p: *const bf16) -> [S::V; 2] = S::split;
        splat_operand(p: *const bf16) -> [S::V; 2] = S::splat_split;
        store_operand(p: *mut bf16, rows: [S::V; 2]) -> () = S::interleaved;
    }
    #[inline(always)]
    unsafe fn product([a_even, a_odd]: Self::B, [b_even, b_odd]: Self::B, c: S::V) -> S::V {
        // SAFETY: the trait's contract.
        unsafe { S::fma(a_even, b_even, S::fma(a_odd, b_odd, c)) }
    }
}
