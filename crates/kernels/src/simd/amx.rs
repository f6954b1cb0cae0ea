//! AMX: eight registers of 16 rows of 64 bytes, and one instruction that multiplies two of them.
//!
//! A block of the product is two tiles by two: four hold sums, two rows of A, two columns of B. Rust has no stable intrinsics for
//! AMX, and tiles are nothing that the compiler keeps: so a block's whole sum is one piece of assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::sync::OnceLock;

use half::bf16;

use super::vocabulary::{Block, TILE, Tiles};

/// Whether the processor has AMX for bf16, and the system lets this process use it. Asks for it, once.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_amx() && permitted())
}

fn has_amx() -> bool {
    // Leaf 7: bit 22 is AMX-BF16, bit 24 AMX-TILE.
    let wanted = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted
}

/// Linux gives a process room for the tiles only if it asks (Documentation/arch/x86/xstate.rst in its sources).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of ours; it changes rcx and r11 and returns in rax.
    unsafe {
        asm!(
            "syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// What a block's assembly reads through one register; distances in bytes.
#[repr(C)]
struct Arguments {
    a: [*const bf16; 2],
    b: [*const bf16; 2],
    chunks: usize,
    b_chunk: usize,
    b_segment: usize,
    count: usize,
    c: [*mut f32; 2],
    c_row: usize,
    add: usize,
}

thread_local! {
    /// Rows and steps of the blocks that the thread's tiles have the shape for: giving them another costs as much as four chunks.
    static SHAPE: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

/// A block of `$first` and, in brackets, what the further tiles add to each part.
macro_rules! block {
    ($arguments:expr, $a_row:expr, $b_row:expr, $segments:expr, [$($load:literal)*], [$($zero:literal)*],
     [$($step:literal)*], [$($store:literal)*]) => {
        asm!(
            "cmp qword ptr [{g} + 88], 0",
            "je 3f",
            "mov {p}, [{g} + 64]",
            "mov {q}, [{g} + 72]",
            "mov {n}, [{g} + 80]",
            $($load,)*
            "jmp 4f",
            "3:",
            $($zero,)*
            "4:",
            // A segment.
            "mov {p}, [{segments}]",
            "lea {q}, [{p} * 2]",
            "mov {p}, {q}",
            "add {p}, [{g}]",
            "add {q}, [{g} + 8]",
            "mov {r}, [{g} + 16]",
            "mov {s}, [{g} + 24]",
            "mov {n}, [{g} + 32]",
            // A chunk.
            "5:",
            $($step,)*
            "add {p}, 64",
            "add {q}, 64",
            "add {r}, [{g} + 40]",
            "add {s}, [{g} + 40]",
            "dec {n}",
            "jnz 5b",
            "mov {n}, [{g} + 48]",
            "add [{g} + 16], {n}",
            "add [{g} + 24], {n}",
            "add {segments}, 8",
            "dec qword ptr [{g} + 56]",
            "jnz 4b",
            "mov {p}, [{g} + 64]",
            "mov {q}, [{g} + 72]",
            "mov {n}, [{g} + 80]",
            $($store,)*
            g = in(reg) $arguments, a = in(reg) $a_row, b = in(reg) $b_row, segments = inout(reg) $segments => _,
            p = out(reg) _, q = out(reg) _, r = out(reg) _, s = out(reg) _, n = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _, options(nostack),
        )
    };
}

/// Gives the thread's tiles the shape for blocks of these rows and steps.
#[cold]
#[inline(never)]
fn shape(rows: usize, steps: usize) {
    let mut to = Configuration { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let (first, second) = (rows.min(TILE), rows.saturating_sub(TILE));
    let tiles = [(first, 64), (first, 64), (second, 64), (second, 64), (first, 4 * steps), (second, 4 * steps)];
    for (i, (rows, bytes)) in tiles.into_iter().chain([(steps, 64); 2]).enumerate().filter(|(_, t)| t.0 > 0) {
        (to.rows[i], to.bytes[i]) = (rows as u8, bytes as u16);
    }
    // SAFETY: reads the 64 bytes of `to`, which describe tiles that the processor has; the tiles' content is lost.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &to, options(nostack, readonly)) }
    SHAPE.set([rows, steps]);
}

/// The unit.
pub struct Amx;

impl Tiles<bf16> for Amx {
    const PRESENT: bool = true;

    #[inline(always)]
    unsafe fn multiply(block: Block<'_, bf16>) {
        let Block { rows, steps, a, a_row, segments, chunks, b, strips, b_row, b_segment, c, c_row, add } = block;
        if SHAPE.get() != [rows, steps] {
            shape(rows, steps);
        }
        let mut arguments = Arguments {
            a: [a, a.wrapping_add(TILE * a_row)],
            b,
            chunks,
            b_chunk: 2 * TILE * b_row,
            b_segment: 2 * b_segment,
            count: segments.len(),
            c: [c, c.wrapping_add(TILE * c_row)],
            c_row: 4 * c_row,
            add: usize::from(add),
        };
        let (g, a, b, s) = (&raw mut arguments, 2 * a_row, 2 * b_row, segments.as_ptr());
        // SAFETY: the tiles have the block's shape; it reads the rows and strips that the block has, and no others.
        unsafe {
            match (rows > TILE, strips > 1) {
                (true, true) => block!(
                    g, a, b, s,
                    ["tileloadd tmm0, [{p} + {n}]" "tileloadd tmm1, [{p} + {n} + 64]"
                     "tileloadd tmm2, [{q} + {n}]" "tileloadd tmm3, [{q} + {n} + 64]"],
                    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
                    ["tileloadd tmm4, [{p} + {a}]" "tileloadd tmm6, [{r} + {b}]" "tdpbf16ps tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{s} + {b}]" "tdpbf16ps tmm1, tmm4, tmm7"
                     "tileloadd tmm5, [{q} + {a}]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"],
                    ["tilestored [{p} + {n}], tmm0" "tilestored [{p} + {n} + 64], tmm1"
                     "tilestored [{q} + {n}], tmm2" "tilestored [{q} + {n} + 64], tmm3"]
                ),
                (true, false) => block!(
                    g, a, b, s,
                    ["tileloadd tmm0, [{p} + {n}]" "tileloadd tmm2, [{q} + {n}]"],
                    ["tilezero tmm0" "tilezero tmm2"],
                    ["tileloadd tmm4, [{p} + {a}]" "tileloadd tmm6, [{r} + {b}]" "tdpbf16ps tmm0, tmm4, tmm6"
                     "tileloadd tmm5, [{q} + {a}]" "tdpbf16ps tmm2, tmm5, tmm6"],
                    ["tilestored [{p} + {n}], tmm0" "tilestored [{q} + {n}], tmm2"]
                ),
                (false, true) => block!(
                    g, a, b, s,
                    ["tileloadd tmm0, [{p} + {n}]" "tileloadd tmm1, [{p} + {n} + 64]"],
                    ["tilezero tmm0" "tilezero tmm1"],
                    ["tileloadd tmm4, [{p} + {a}]" "tileloadd tmm6, [{r} + {b}]" "tdpbf16ps tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{s} + {b}]" "tdpbf16ps tmm1, tmm4, tmm7"],
                    ["tilestored [{p} + {n}], tmm0" "tilestored [{p} + {n} + 64], tmm1"]
                ),
                (false, false) => block!(
                    g, a, b, s,
                    ["tileloadd tmm0, [{p} + {n}]"],
                    ["tilezero tmm0"],
                    ["tileloadd tmm4, [{p} + {a}]" "tileloadd tmm6, [{r} + {b}]" "tdpbf16ps tmm0, tmm4, tmm6"],
                    ["tilestored [{p} + {n}], tmm0"]
                ),
            }
        }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: nothing is left in the tiles that anyone reads.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
        SHAPE.set([0; 2]);
    }

    /// Pairs of rows become 32-bit columns, of which 16 by 16 are transposed.
    #[inline(always)]
    unsafe fn transpose(from: *const bf16, from_row: usize, to: *mut bf16, to_row: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                let half = |i: usize| _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(i * from_row).cast()));
                *row = _mm512_or_si512(half(2 * i), _mm512_slli_epi32::<16>(half(2 * i + 1)));
            }
            // Four rounds: neighbours, pairs, halves of 256 bits, halves of 512.
            let mut next = rows;
            for i in 0..8 {
                next[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
                next[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
            }
            for i in 0..4 {
                let [a, b, c, d] = [next[4 * i], next[4 * i + 1], next[4 * i + 2], next[4 * i + 3]];
                rows[4 * i] = _mm512_unpacklo_epi64(a, c);
                rows[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
                rows[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
                rows[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
            }
            // Row 4 i + j holds, in each 128 bits l, column 4 l + j of the pairs 4 i to 4 i + 3.
            for j in 0..4 {
                let [a, b, c, d] = [rows[j], rows[4 + j], rows[8 + j], rows[12 + j]];
                let low = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
                let high = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
                let columns = [
                    _mm512_shuffle_i32x4::<0x88>(low[0], low[1]),
                    _mm512_shuffle_i32x4::<0x88>(high[0], high[1]),
                    _mm512_shuffle_i32x4::<0xdd>(low[0], low[1]),
                    _mm512_shuffle_i32x4::<0xdd>(high[0], high[1]),
                ];
                for (l, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_si512(to.add((4 * l + j) * to_row).cast(), column);
                }
            }
        }
    }
}
