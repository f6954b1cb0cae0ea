//! The one matrix product under every convolution: `C (m, n) = [C +] A (m, k) B (k, n)`.
//!
//! A step of the sum takes `DEPTH` elements of k at once: one in f32 and f64, two in bf16, which lie side by
//! side in both operands. All distances are counted in stored elements; `C` is always wide.
//!
//! On a processor with matrix registers ([`Tiles`]) it goes by blocks of 32 by 32, otherwise by as many vectors as the registers
//! hold. Single-threaded: the callers split their work over images, which needs no synchronisation and
//! leaves the order of every sum fixed. Each element of `C` is summed over `k` in order, so a row's
//! bits do not depend on how many rows it is computed with.

use std::mem::MaybeUninit;

use crate::simd::{Block, Element, Simd, TILE, Tiles, Wide};

/// Columns a strip: channels are padded to a multiple of this in all scratch matrices, so that no
/// product has a ragged edge.
pub const STRIP: usize = 16;

/// `channels` rounded up to a whole number of strips.
pub const fn padded(channels: usize) -> usize {
    channels.div_ceil(STRIP) * STRIP
}

/// Row length of a scratch matrix of `channels` columns. An odd number of cache lines where rows are
/// long: a power of two would map a column's rows to a handful of cache sets.
pub const fn leading(channels: usize) -> usize {
    let p = padded(channels);
    if p >= 64 && p.is_multiple_of(32) { p + STRIP } else { p }
}

/// Steps of a sum over `k` elements.
pub const fn steps<E: Element>(k: usize) -> usize {
    k.div_ceil(E::DEPTH)
}

/// The left matrix, in segments of k steps: step p of row i in segment s lies at `data[segments[s] + i * row + p * col]`. So
/// a patch of an image is a row without being copied.
#[derive(Clone, Copy)]
pub struct Lhs<'a, E> {
    /// First element.
    pub data: *const E,
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two steps.
    pub col: usize,
    /// Where the segments start.
    pub segments: &'a [usize],
}

/// The one segment of a matrix in one piece.
pub const WHOLE: &[usize] = &[0];

/// The right matrix, in strips of [`STRIP`] columns: step p of column j lies at
/// `data[j / STRIP * strip + p * row + j % STRIP * DEPTH]`.
#[derive(Clone, Copy)]
pub struct Rhs<E> {
    /// First element.
    pub data: *const E,
    /// Distance of two steps.
    pub row: usize,
    /// Distance of two strips.
    pub strip: usize,
}

impl<E: Element> Rhs<E> {
    /// A row-major matrix with steps of `row` columns.
    pub fn rows(data: *const E, row: usize) -> Self {
        Rhs { data, row: row * E::DEPTH, strip: STRIP * E::DEPTH }
    }
    /// A packed matrix: one strip of all `steps` after the other.
    pub fn packed(data: *const E, steps: usize) -> Self {
        Rhs { data, row: STRIP * E::DEPTH, strip: STRIP * E::DEPTH * steps }
    }
}

/// The product's target, row-major.
#[derive(Clone, Copy)]
pub struct Out<E> {
    /// First element.
    pub data: *mut E,
    /// Distance of two rows.
    pub row: usize,
    /// Add to what is there, or overwrite it.
    pub accumulate: bool,
}

/// What takes the sums of a product, a vector at a time.
pub trait Target<S: Simd>: Copy {
    /// The matrix that the sums may be written to, or added to, without asking.
    #[inline(always)]
    fn memory(self) -> Option<Out<Wide<S>>> {
        None
    }
    /// Which of the target's rows is row `i` of the product; none where it is nothing.
    #[inline(always)]
    fn row(self, i: usize) -> Option<usize> {
        Some(i)
    }
    /// Takes the sums of columns `j..` of one of its rows.
    ///
    /// # Safety
    /// The processor has `S`; row and columns are the product's.
    unsafe fn store(self, row: usize, j: usize, v: S::V);
}

impl<S: Simd> Target<S> for Out<Wide<S>> {
    #[inline(always)]
    fn memory(self) -> Option<Out<Wide<S>>> {
        Some(self)
    }
    #[inline(always)]
    unsafe fn store(self, row: usize, j: usize, v: S::V) {
        // SAFETY: the caller's contract.
        unsafe { S::W::store(self.data.add(row * self.row + j), v) }
    }
}

/// `c(i, j) = [c(i, j) +] sum_p a(i, p) b(p, j)`, i < m, j < n, over `k` steps p of each segment.
///
/// # Safety
/// `n` is a multiple of [`STRIP`]; the matrices are valid for these sizes and `c` does not overlap the others.
#[inline(always)]
pub unsafe fn gemm<S: Simd>(m: usize, n: usize, k: usize, a: Lhs<'_, S::E>, b: Rhs<S::E>, c: impl Target<S>) {
    debug_assert!(n.is_multiple_of(STRIP));
    if S::T::PRESENT && a.col == S::E::DEPTH {
        // SAFETY: the caller's contract.
        return unsafe { on_tiles::<S>(m, n, k, a, b, c) };
    }
    let mut j = 0;
    while j < n {
        let wide = n - j >= 2 * S::LANES;
        let mut i = 0;
        while i < m {
            // SAFETY: rows i.. of a and c and columns j.. of b and c, as many as the tile has.
            i += unsafe {
                let a = Lhs { data: a.data.add(i * a.row), ..a };
                if wide { rows::<S, 2>(m - i, [i, j], k, a, b, c) } else { rows::<S, 1>(m - i, [i, j], k, a, b, c) }
            };
        }
        j += if wide { 2 * S::LANES } else { S::LANES };
    }
}

/// Sums of a block that its target can't take from the tiles themselves.
#[repr(C, align(64))]
struct Sums<W>([[W; 2 * TILE]; 2 * TILE]);

/// The same by blocks of tiles. Steps that fill no tile are a second pass, so that nothing beyond the operands is read.
#[inline(always)]
unsafe fn on_tiles<S: Simd>(m: usize, n: usize, k: usize, a: Lhs<'_, S::E>, b: Rhs<S::E>, c: impl Target<S>) {
    let mut sums = MaybeUninit::<Sums<Wide<S>>>::uninit();
    let sums: *mut Wide<S> = sums.as_mut_ptr().cast();
    for j in (0..n).step_by(2 * STRIP) {
        let strips = ((n - j) / STRIP).min(2);
        let columns = [0, strips - 1].map(|strip| b.data.wrapping_add((j / STRIP + strip) * b.strip));
        for i in (0..m).step_by(2 * TILE) {
            let rows = (m - i).min(2 * TILE);
            let memory = c.memory();
            let (to, c_row) = memory.map_or((sums, 2 * TILE), |c| (c.data.wrapping_add(i * c.row + j), c.row));
            // SAFETY: rows i.. of a and c and columns j.. of b and c, as many as the block has.
            unsafe {
                let mut add = memory.is_some_and(|c| c.accumulate);
                for (first, chunks, steps) in [(0, k / TILE, TILE), (k - k % TILE, 1, k % TILE)] {
                    if chunks * steps > 0 {
                        S::T::multiply(Block {
                            rows,
                            steps,
                            a: a.data.add(i * a.row + first * a.col),
                            a_row: a.row,
                            segments: a.segments,
                            chunks,
                            b: columns.map(|column| column.wrapping_add(first * b.row)),
                            strips,
                            b_row: b.row,
                            b_segment: k * b.row,
                            c: to,
                            c_row,
                            add,
                        });
                        add = true;
                    }
                }
                for r in 0..if memory.is_some() { 0 } else { rows } {
                    let Some(row) = c.row(i + r) else { continue };
                    for column in (0..strips * STRIP).step_by(S::LANES) {
                        c.store(row, j + column, S::W::load(sums.add(r * 2 * TILE + column)));
                    }
                }
            }
        }
    }
}

/// The largest register tile that fits into `m` rows; returns its number of rows.
#[inline(always)]
unsafe fn rows<S: Simd, const NV: usize>(
    m: usize,
    at: [usize; 2],
    k: usize,
    a: Lhs<'_, S::E>,
    b: Rhs<S::E>,
    c: impl Target<S>,
) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        match m.min(S::ROWS) {
            12.. => tile::<S, 12, NV>(at, k, a, b, c),
            8..=11 => tile::<S, 8, NV>(at, k, a, b, c),
            6 | 7 => tile::<S, 6, NV>(at, k, a, b, c),
            4 | 5 => tile::<S, 4, NV>(at, k, a, b, c),
            2 | 3 => tile::<S, 2, NV>(at, k, a, b, c),
            _ => tile::<S, 1, NV>(at, k, a, b, c),
        }
    }
}

/// `MR` rows by `NV` vectors, held in registers over the whole of `k`. Returns `MR`.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    [row, column]: [usize; 2],
    k: usize,
    a: Lhs<'_, S::E>,
    b: Rhs<S::E>,
    c: impl Target<S>,
) -> usize {
    // SAFETY: the caller's contract; every index stays within (MR, k), (k, NV vectors), (MR, NV vectors).
    unsafe {
        let mut acc = [[S::splat(Wide::<S>::default()); NV]; MR];
        if let Some(out) = c.memory().filter(|out| out.accumulate) {
            for (i, sums) in acc.iter_mut().enumerate() {
                for (v, x) in sums.iter_mut().enumerate() {
                    *x = S::W::load(out.data.add((row + i) * out.row + column + v * S::LANES));
                }
            }
        }
        let columns: [*const S::E; NV] = std::array::from_fn(|v| {
            let j = column + v * S::LANES;
            b.data.add(j / STRIP * b.strip + j % STRIP * S::E::DEPTH)
        });
        for (segment, start) in a.segments.iter().enumerate() {
            let mut ap = a.data.add(*start);
            let columns = columns.map(|c| c.add(segment * k * b.row));
            for p in 0..k {
                let bv: [S::B; NV] = std::array::from_fn(|v| S::load_operand(columns[v].add(p * b.row)));
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = S::splat_operand(ap.add(i * a.row));
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = S::product(x, bv[v], *sum);
                    }
                }
                ap = ap.wrapping_add(a.col);
            }
        }
        for (i, sums) in acc.iter().enumerate() {
            for (v, x) in sums.iter().enumerate() {
                c.store(row + i, column + v * S::LANES, *x);
            }
        }
        MR
    }
}
