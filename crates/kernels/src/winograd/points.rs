//! The four one-dimensional maps of F(4, 3), and where their constants come from.
//!
//! The algorithm multiplies polynomials at six points: 0, ±a, ±b and infinity. Everybody takes a = 1 and b = 2, whose constants
//! are small integers, and finds F(4x4) too coarse. With a = 5/8 and b = 3/2 the powers of the points spread less, and the
//! error of a 3x3 convolution of 128 channels falls from 7.7e-6 of the largest value to 1.9e-6 in f32 (a plain sum in order:
//! 1.0e-6), and from 2.1 % (root mean square) to 0.95 % with bf16 operands. The constants of all maps but G are exact in f32.

use crate::simd::{Element, Simd, Wide};

/// Side of an output tile.
pub const TILE: usize = 4;
/// Side of an input tile.
pub const SIDE: usize = 6;

const A: f64 = 0.625;
const B: f64 = 1.5;
const A2: f64 = A * A;
const B2: f64 = B * B;
const SUM: f64 = A2 + B2;
const PRODUCT: f64 = A2 * B2;
/// What the points' rows of G are divided by: the derivative of x (x^2 - a^2) (x^2 - b^2) there.
const AT_0: f64 = PRODUCT;
const AT_A: f64 = 2.0 * A2 * (A2 - B2);
const AT_B: f64 = 2.0 * B2 * (B2 - A2);

#[inline(always)]
unsafe fn k<S: Simd>(x: f64) -> S::V {
    // SAFETY: the caller's contract.
    unsafe { S::splat(Wide::<S>::of(x)) }
}

/// `B^T d`.
#[inline(always)]
pub unsafe fn input<S: Simd>(d: [S::V; SIDE]) -> [S::V; SIDE] {
    // SAFETY: the caller's contract.
    unsafe {
        let (ea, oa) = (S::fma(k::<S>(-B2), d[2], d[4]), S::fma(k::<S>(-B2), d[1], d[3]));
        let (eb, ob) = (S::fma(k::<S>(-A2), d[2], d[4]), S::fma(k::<S>(-A2), d[1], d[3]));
        [
            S::fma(k::<S>(PRODUCT), d[0], S::fma(k::<S>(-SUM), d[2], d[4])),
            S::fma(k::<S>(A), oa, ea),
            S::fma(k::<S>(-A), oa, ea),
            S::fma(k::<S>(B), ob, eb),
            S::fma(k::<S>(-B), ob, eb),
            S::fma(k::<S>(PRODUCT), d[1], S::fma(k::<S>(-SUM), d[3], d[5])),
        ]
    }
}

/// Its adjoint, `B v`.
#[inline(always)]
pub unsafe fn input_gradient<S: Simd>(v: [S::V; SIDE]) -> [S::V; SIDE] {
    // SAFETY: the caller's contract.
    unsafe {
        let (sa, sb) = (S::add(v[1], v[2]), S::add(v[3], v[4]));
        let da = S::mul(k::<S>(A), S::sub(v[1], v[2]));
        let db = S::mul(k::<S>(B), S::sub(v[3], v[4]));
        [
            S::mul(k::<S>(PRODUCT), v[0]),
            S::fma(k::<S>(PRODUCT), v[5], S::fma(k::<S>(-B2), da, S::mul(k::<S>(-A2), db))),
            S::fma(k::<S>(-SUM), v[0], S::fma(k::<S>(-B2), sa, S::mul(k::<S>(-A2), sb))),
            S::fma(k::<S>(-SUM), v[5], S::add(da, db)),
            S::add(v[0], S::add(sa, sb)),
            v[5],
        ]
    }
}

/// `A^T m`.
#[inline(always)]
pub unsafe fn output<S: Simd>(m: [S::V; SIDE]) -> [S::V; TILE] {
    // SAFETY: the caller's contract.
    unsafe {
        let (sa, da) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (sb, db) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(m[0], S::add(sa, sb)),
            S::fma(k::<S>(A), da, S::mul(k::<S>(B), db)),
            S::fma(k::<S>(A2), sa, S::mul(k::<S>(B2), sb)),
            S::fma(k::<S>(A * A2), da, S::fma(k::<S>(B * B2), db, m[5])),
        ]
    }
}

/// Its adjoint, `A y`.
#[inline(always)]
pub unsafe fn gradient<S: Simd>(y: [S::V; TILE]) -> [S::V; SIDE] {
    // SAFETY: the caller's contract.
    unsafe {
        let (ea, oa) = (S::fma(k::<S>(A2), y[2], y[0]), S::fma(k::<S>(A * A2), y[3], S::mul(k::<S>(A), y[1])));
        let (eb, ob) = (S::fma(k::<S>(B2), y[2], y[0]), S::fma(k::<S>(B * B2), y[3], S::mul(k::<S>(B), y[1])));
        [y[0], S::add(ea, oa), S::sub(ea, oa), S::add(eb, ob), S::sub(eb, ob), y[3]]
    }
}

/// `G g`.
#[inline(always)]
pub unsafe fn weight<S: Simd>(g: [S::V; 3]) -> [S::V; SIDE] {
    // SAFETY: the caller's contract.
    unsafe {
        let ea = S::fma(k::<S>(A2 / AT_A), g[2], S::mul(k::<S>(1.0 / AT_A), g[0]));
        let eb = S::fma(k::<S>(B2 / AT_B), g[2], S::mul(k::<S>(1.0 / AT_B), g[0]));
        let (oa, ob) = (S::mul(k::<S>(A / AT_A), g[1]), S::mul(k::<S>(B / AT_B), g[1]));
        [S::mul(k::<S>(1.0 / AT_0), g[0]), S::add(ea, oa), S::sub(ea, oa), S::add(eb, ob), S::sub(eb, ob), g[2]]
    }
}

/// Its adjoint, `G^T u`.
#[inline(always)]
pub unsafe fn weight_gradient<S: Simd>(u: [S::V; SIDE]) -> [S::V; 3] {
    // SAFETY: the caller's contract.
    unsafe {
        let (sa, da) = (S::add(u[1], u[2]), S::sub(u[1], u[2]));
        let (sb, db) = (S::add(u[3], u[4]), S::sub(u[3], u[4]));
        let constant = S::fma(k::<S>(1.0 / AT_A), sa, S::mul(k::<S>(1.0 / AT_B), sb));
        [
            S::fma(k::<S>(1.0 / AT_0), u[0], constant),
            S::fma(k::<S>(A / AT_A), da, S::mul(k::<S>(B / AT_B), db)),
            S::fma(k::<S>(A2 / AT_A), sa, S::fma(k::<S>(B2 / AT_B), sb, u[5])),
        ]
    }
}
