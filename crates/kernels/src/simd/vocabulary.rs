//! The traits that kernels are written over.
// Every function here is a one-line wrapper of an intrinsic or of a raw load or store: the contract
// (valid pointers for LANES elements, the instruction set is present) is stated once, on the trait.
#![allow(clippy::missing_safety_doc)]

use std::ops::{Add, AddAssign, Mul, Sub};

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
    /// What multiplies whole matrices.
    type T: Tiles<Self::E>;
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

/// Rows and steps of the sum that a tile holds, and steps of a chunk.
pub const TILE: usize = 16;

/// What a block of a product reads: `rows` (32 at most) of A and one or two strips of B's columns, in `segments` of `chunks` times
/// `steps` (16 at most) steps of the sum. All distances in elements.
#[derive(Clone, Copy)]
pub struct Block<'a, E: Element> {
    /// Rows of the block.
    pub rows: usize,
    /// Steps of a chunk.
    pub steps: usize,
    /// First row of A, whose steps lie side by side.
    pub a: *const E,
    /// Distance of two rows of A.
    pub a_row: usize,
    /// Where A's segments start.
    pub segments: &'a [usize],
    /// Chunks of a segment.
    pub chunks: usize,
    /// The strips of B.
    pub b: [*const E; 2],
    /// How many strips there are.
    pub strips: usize,
    /// Distance of two steps of B.
    pub b_row: usize,
    /// Distance of two segments of B.
    pub b_segment: usize,
    /// First of the sums.
    pub c: *mut E::Wide,
    /// Distance of two rows of sums.
    pub c_row: usize,
    /// Add to the sums that are there, or begin with 0.
    pub add: bool,
}

/// A unit that multiplies matrices held in two-dimensional registers.
///
/// # Safety
/// All functions require that the processor has it.
pub trait Tiles<E: Element> {
    /// Whether there is one.
    const PRESENT: bool;
    /// The sums of a block.
    unsafe fn multiply(block: Block<'_, E>);
    /// Gives the registers back, at the end of a task.
    unsafe fn release();
    /// 32 rows of 16 elements become 16 rows of 32.
    unsafe fn transpose(from: *const E, from_row: usize, to: *mut E, to_row: usize);
}

/// No such unit.
pub struct NoTiles;

impl<E: Element> Tiles<E> for NoTiles {
    const PRESENT: bool = false;
    unsafe fn multiply(_: Block<'_, E>) {}
    unsafe fn release() {}
    unsafe fn transpose(_: *const E, _: usize, _: *mut E, _: usize) {}
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
    /// The same with AMX: matrix registers for products of bf16.
    Amx,
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
                if super::amx::available() {
                    all.push(Isa::Amx);
                }
            }
        }
        all
    }

    /// The fastest that this processor has.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Portable)
    }

    /// Whether networks that ask for bf16 get it. From AVX512_BF16 on its products are faster than f32's; below they are
    /// split into f32, a little slower, for the same bits.
    pub fn has_bf16(self) -> bool {
        self >= Isa::Avx2
    }

    /// Whether what [`run`](Self::run) picks for these scalars multiplies matrices on [`Tiles`].
    pub fn on_tiles<E: Element>(self) -> bool {
        self.run::<E, _>(OnTiles)
    }

    /// Compiles `kernel` for this instruction set (or the best one below it that the processor has) and runs it.
    pub fn run<E: Element, K: Kernel<E>>(self, kernel: K) -> K::Output {
        E::run(self, kernel)
    }
}

struct OnTiles;

impl<E: Element> Kernel<E> for OnTiles {
    type Output = bool;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> bool {
        S::T::PRESENT
    }
}
