//! AVX2, AVX-512 and AVX-512 with bf16.
//!
//! The entry points are never inlined: rustc shares the instances of such functions between crates, so that a test does not compile
//! all kernels once more.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::amx::Amx;
use super::split::{Halves as _, Split};
use super::vocabulary::{Kernel, NoTiles, Simd, Tiles};

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2<K: Kernel<f32>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx2>() }
}

#[inline(never)]
#[target_feature(enable = "avx512f")]
pub unsafe fn avx512<K: Kernel<f32>>(kernel: K) -> K::Output {
    // SAFETY: the feature is enabled for this function.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2_split<K: Kernel<bf16>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Split<Avx2>>() }
}

#[inline(never)]
#[target_feature(enable = "avx512f")]
pub unsafe fn avx512_split<K: Kernel<bf16>>(kernel: K) -> K::Output {
    // SAFETY: the feature is enabled for this function.
    unsafe { kernel.run::<Split<Avx512>>() }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn avx512_bf16<K: Kernel<bf16>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx512Bf16<NoTiles>>() }
}

/// The same with AMX, whose instructions the compiler doesn't choose itself.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn amx<K: Kernel<bf16>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function; the caller saw AMX.
    unsafe { kernel.run::<Avx512Bf16<Amx>>() }
}

#[derive(Clone, Copy)]
pub struct Avx2;
#[derive(Clone, Copy)]
pub struct Avx512;
/// With or without [`Tiles`].
pub struct Avx512Bf16<T>(std::marker::PhantomData<T>);

impl<T> Clone for Avx512Bf16<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Avx512Bf16<T> {}

/// The wrappers differ in nothing but the intrinsics' names.
macro_rules! simd {
    ($name:ident, $v:ty, $lanes:literal, $rows:literal, $load:ident, $store:ident, $splat:ident,
     $fma:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, |$value:ident, $gate:ident| $gated:expr) => {
        impl Simd for $name {
            type E = f32;
            type W = Self;
            type V = $v;
            type B = $v;
            type T = NoTiles;
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            pass!(load(p: *const f32) -> $v = $load);
            pass!(store(p: *mut f32, v: $v) -> () = $store);
            pass!(splat(x: f32) -> $v = $splat);
            pass!(fma(a: $v, b: $v, c: $v) -> $v = $fma);
            pass!(add(a: $v, b: $v) -> $v = $add);
            pass!(sub(a: $v, b: $v) -> $v = $sub);
            pass!(mul(a: $v, b: $v) -> $v = $mul);
            pass!(load_operand(p: *const f32) -> $v = $load);
            pass!(product(a: $v, b: $v, c: $v) -> $v = $fma);
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
            #[inline(always)]
            unsafe fn splat_operand(p: *const f32) -> $v {
                // SAFETY: the trait's contract.
                unsafe { $splat(*p) }
            }
            #[inline(always)]
            unsafe fn store_operand(p: *mut f32, rows: [$v; 2]) {
                // SAFETY: the trait's contract.
                unsafe { $store(p, rows[0]) }
            }
        }
    };
}

// Of 16 registers 8 sums, two of columns and one or two of a row. Six rows would fill all of them, and in the longer functions the
// compiler keeps some sums in memory then: two thirds as fast (`docs/decisions/0027-four-rows-on-avx2.md`).
simd!(
    Avx2,
    __m256,
    8,
    4,
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

/// Word i of the interleaved register: rows 0 and 1 lie one behind the other in the source.
const INTERLEAVE: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

impl<T: Tiles<bf16> + Send + Sync + 'static> Simd for Avx512Bf16<T> {
    type E = bf16;
    type W = Avx512;
    type V = __m512;
    type B = __m512bh;
    type T = T;
    const LANES: usize = 16;
    const ROWS: usize = 12;
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { Avx512::widened(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut bf16, v: __m512) {
        // SAFETY: the trait's contract; both types are 256 bits.
        unsafe { _mm256_storeu_si256(p.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }
    pass!(splat(x: f32) -> __m512 = Avx512::splat);
    pass!(fma(a: __m512, b: __m512, c: __m512) -> __m512 = Avx512::fma);
    pass!(add(a: __m512, b: __m512) -> __m512 = Avx512::add);
    pass!(sub(a: __m512, b: __m512) -> __m512 = Avx512::sub);
    pass!(mul(a: __m512, b: __m512) -> __m512 = Avx512::mul);
    pass!(relu(a: __m512) -> __m512 = Avx512::relu);
    pass!(gate(v: __m512, gate: __m512) -> __m512 = Avx512::gate);
    #[inline(always)]
    unsafe fn load_operand(p: *const bf16) -> __m512bh {
        // SAFETY: the trait's contract; both types are 512 bits.
        unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_operand(p: *const bf16) -> __m512bh {
        // SAFETY: the trait's contract: two elements; both types are 512 bits.
        unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(p.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn product(a: __m512bh, b: __m512bh, c: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_dpbf16_ps(c, a, b) }
    }
    #[inline(always)]
    unsafe fn store_operand(p: *mut bf16, rows: [__m512; 2]) {
        // SAFETY: the trait's contract; the types are 512 bits.
        unsafe {
            let pair = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(rows[1], rows[0]));
            let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(order, pair));
        }
    }
}
