//! bf16 on processors that multiply only f32, bit for bit what AVX512_BF16 computes.
//!
//! The product of two bf16 numbers has 16 significant bits, so it is exact in f32, and what `vdpbf16ps` is defined as is two
//! fused additions: of the odd products first, then of the even ones. Splitting a pair takes a shift and a mask, which run
//! beside the multipliers; activations take half of f32's memory as they do there.
//!
//! Where they part: factors and sums below 1.2e-38 (denormal), which that instruction takes for 0 and these keep.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::bf16;

use super::vocabulary::{NoTiles, Simd};
use super::x86::{Avx2, Avx512};

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

/// The upper halves of the lanes.
const UPPER: i32 = 0xFFFF_0000_u32 as i32;
/// The lanes' exponents.
const EXPONENT: i32 = 0x7F80_0000;
const SIGN: i32 = i32::MIN;

impl Avx2 {
    /// Rounded to bf16 as `vcvtneps2bf16` does, in the upper half of each lane: to the nearest, ties to even, denormals to 0,
    /// a NaN stays one.
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let small = _mm256_cmpeq_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(EXPONENT)), _mm256_setzero_si256());
            let sign = _mm256_and_si256(bits, _mm256_set1_epi32(SIGN));
            _mm256_blendv_epi8(_mm256_blendv_epi8(near, quiet, nan), sign, small)
        }
    }

    /// The even and the odd halves of the lanes.
    #[inline(always)]
    unsafe fn apart(pairs: __m256i) -> [__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let even = _mm256_slli_epi32::<16>(pairs);
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(UPPER));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }
}

impl Halves for Avx2 {
    /// Eight sums, four registers of columns and two of a row leave two to spare.
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn widened(p: *const bf16) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn rounded(p: *mut bf16, v: __m256) {
        // SAFETY: the trait's contract.
        unsafe {
            let words = _mm256_srli_epi32::<16>(Self::round(v));
            let both = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), both);
        }
    }
    #[inline(always)]
    unsafe fn split(p: *const bf16) -> [__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { Self::apart(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_split(p: *const bf16) -> [__m256; 2] {
        // SAFETY: the trait's contract: two elements.
        unsafe { Self::apart(_mm256_set1_epi32(p.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn interleaved(p: *mut bf16, [even, odd]: [__m256; 2]) {
        // SAFETY: the trait's contract.
        unsafe {
            let even = _mm256_srli_epi32::<16>(Self::round(even));
            let odd = _mm256_and_si256(Self::round(odd), _mm256_set1_epi32(UPPER));
            _mm256_storeu_si256(p.cast(), _mm256_or_si256(even, odd));
        }
    }
}

impl Avx512 {
    /// As [`Avx2::round`].
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x40_0000));
            let small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(EXPONENT));
            _mm512_mask_and_epi32(quiet, small, bits, _mm512_set1_epi32(SIGN))
        }
    }

    /// The even and the odd halves of the lanes.
    #[inline(always)]
    unsafe fn apart(pairs: __m512i) -> [__m512; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let even = _mm512_slli_epi32::<16>(pairs);
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(UPPER));
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
        }
    }
}

impl Halves for Avx512 {
    /// Of 32 registers, 24 sums, four of columns and two of a row.
    const ROWS: usize = 12;
    #[inline(always)]
    unsafe fn widened(p: *const bf16) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn rounded(p: *mut bf16, v: __m512) {
        // SAFETY: the trait's contract.
        unsafe {
            let words = _mm512_srli_epi32::<16>(Self::round(v));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    unsafe fn split(p: *const bf16) -> [__m512; 2] {
        // SAFETY: the trait's contract.
        unsafe { Self::apart(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_split(p: *const bf16) -> [__m512; 2] {
        // SAFETY: the trait's contract: two elements.
        unsafe { Self::apart(_mm512_set1_epi32(p.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn interleaved(p: *mut bf16, [even, odd]: [__m512; 2]) {
        // SAFETY: the trait's contract.
        unsafe {
            let even = _mm512_srli_epi32::<16>(Self::round(even));
            let odd = _mm512_and_si512(Self::round(odd), _mm512_set1_epi32(UPPER));
            _mm512_storeu_si512(p.cast(), _mm512_or_si512(even, odd));
        }
    }
}
