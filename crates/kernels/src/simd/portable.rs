//! Arrays that the compiler vectorises for the baseline processor.

use half::bf16;

use super::vocabulary::{Block, Element, NoTiles, Simd, TILE, Tiles};

/// Vectors of eight scalars that are computed in as they are stored.
#[derive(Clone, Copy)]
pub struct Portable<E>(std::marker::PhantomData<E>);

/// Vectors of eight f32, stored as bf16.
#[derive(Clone, Copy)]
pub struct PortableBf16;

/// The arithmetic of eight lanes of `$w`.
macro_rules! arithmetic {
    ($w:ty) => {
        type V = [$w; 8];
        const LANES: usize = 8;
        const ROWS: usize = 4;
        #[inline(always)]
        unsafe fn splat(x: $w) -> Self::V {
            [x; 8]
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            std::array::from_fn(|i| a[i] + b[i])
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            std::array::from_fn(|i| a[i] - b[i])
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            std::array::from_fn(|i| a[i] * b[i])
        }
        #[inline(always)]
        unsafe fn relu(a: Self::V) -> Self::V {
            // A NaN stays one.
            a.map(|x| if x < <$w>::default() { <$w>::default() } else { x })
        }
        #[inline(always)]
        unsafe fn gate(v: Self::V, gate: Self::V) -> Self::V {
            std::array::from_fn(|i| if gate[i] > <$w>::default() { v[i] } else { <$w>::default() })
        }
    };
}

impl<E: Element<Wide = E>> Simd for Portable<E> {
    type E = E;
    type W = Self;
    type B = [E; 8];
    type T = NoTiles;
    arithmetic!(E);
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
    unsafe fn load_operand(p: *const E) -> [E; 8] {
        // SAFETY: the trait's contract.
        unsafe { Self::load(p) }
    }
    #[inline(always)]
    unsafe fn splat_operand(p: *const E) -> [E; 8] {
        // SAFETY: the trait's contract.
        unsafe { [*p; 8] }
    }
    #[inline(always)]
    unsafe fn product(a: [E; 8], b: [E; 8], c: [E; 8]) -> [E; 8] {
        // SAFETY: needs no instruction set.
        unsafe { Self::fma(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store_operand(p: *mut E, rows: [[E; 8]; 2]) {
        // SAFETY: the trait's contract.
        unsafe { Self::store(p, rows[0]) }
    }
}

impl Simd for PortableBf16 {
    type E = bf16;
    type W = Portable<f32>;
    type B = [[f32; 2]; 8];
    type T = PlainTiles;
    arithmetic!(f32);
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> [f32; 8] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[bf16; 8]>().read() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store(p: *mut bf16, v: [f32; 8]) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[bf16; 8]>().write(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_operand(p: *const bf16) -> [[f32; 2]; 8] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[[bf16; 2]; 8]>().read() }.map(|pair| pair.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn splat_operand(p: *const bf16) -> [[f32; 2]; 8] {
        // SAFETY: the trait's contract.
        [unsafe { p.cast::<[bf16; 2]>().read() }.map(bf16::to_f32); 8]
    }
    #[inline(always)]
    unsafe fn product(a: [[f32; 2]; 8], b: [[f32; 2]; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i][0] * b[i][0] + a[i][1] * b[i][1] + c[i])
    }
    #[inline(always)]
    unsafe fn store_operand(p: *mut bf16, rows: [[f32; 8]; 2]) {
        let pairs: [[bf16; 2]; 8] = std::array::from_fn(|i| rows.map(|row| bf16::from_f32(row[i])));
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[[bf16; 2]; 8]>().write(pairs) }
    }
}

/// [`Tiles`] in plain code: what is written for tiles is tested on every processor.
pub struct PlainTiles;

impl Tiles<bf16> for PlainTiles {
    const PRESENT: bool = true;
    unsafe fn multiply(block: Block<'_, bf16>) {
        let Block { rows, steps, a, a_row, segments, chunks, b, strips, b_row, b_segment, c, c_row, add } = block;
        for i in 0..rows {
            for j in 0..strips * TILE {
                // SAFETY: the block's own elements.
                unsafe {
                    let sum = c.add(i * c_row + j);
                    let mut total = if add { *sum } else { 0.0 };
                    for (segment, start) in segments.iter().enumerate() {
                        for p in 0..chunks * steps {
                            let x = a.add(start + i * a_row + 2 * p);
                            let y = b[j / TILE].add(segment * b_segment + p * b_row + j % TILE * 2);
                            total += (*x).to_f32() * (*y).to_f32() + (*x.add(1)).to_f32() * (*y.add(1)).to_f32();
                        }
                    }
                    *sum = total;
                }
            }
        }
    }
    unsafe fn release() {}
    unsafe fn transpose(from: *const bf16, from_row: usize, to: *mut bf16, to_row: usize) {
        for i in 0..2 * TILE {
            for j in 0..TILE {
                // SAFETY: the trait's contract.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) }
            }
        }
    }
}
