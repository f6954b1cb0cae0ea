//! One vector vocabulary for every instruction set.
//!
//! A kernel is written once, generic over [`Simd`]; [`Isa::run`] compiles it for each instruction
//! set and picks one when it is called. Lanes always run over channels, so no sum is ever taken
//! across lanes and AVX2 and AVX-512 give the same bits.
//!
//! What is stored and what is computed in may differ: activations in bf16 are widened to f32 vectors
//! when they are loaded. Only the matrix product knows bf16 operands of its own ([`Simd::B`]): two
//! bf16 numbers a lane, whose products are added to an f32 (AVX512_BF16's `vdpbf16ps`, or split into f32 with the same
//! bits), or whole matrices at a time ([`Tiles`], AMX's `tdpbf16ps`).

/// Functions that pass their arguments on.
#[cfg(target_arch = "x86_64")]
macro_rules! pass {
    ($($name:ident($($arg:ident: $t:ty),*) -> $r:ty = $to:expr);* $(;)?) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $t),*) -> $r {
            // SAFETY: the trait's contract.
            unsafe { $to($($arg),*) }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod amx;
mod portable;
#[cfg(target_arch = "x86_64")]
mod split;
mod vocabulary;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;
pub use portable::{Portable, PortableBf16};
pub use vocabulary::{Block, Element, Isa, Kernel, Simd, TILE, Tiles, Wide};

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
    #[inline(never)]
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
    #[inline(never)]
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
    #[inline(never)]
    fn run<K: Kernel<bf16>>(isa: Isa, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            let bw = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if isa >= Isa::Avx512Bf16 && bw && is_x86_feature_detected!("avx512bf16") {
                if isa >= Isa::Amx && amx::available() {
                    // SAFETY: the features were just detected.
                    return unsafe { x86::amx(kernel) };
                }
                // SAFETY: the features were just detected.
                return unsafe { x86::avx512_bf16(kernel) };
            }
            if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512f") {
                // SAFETY: the feature was just detected.
                return unsafe { x86::avx512_split(kernel) };
            }
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if isa >= Isa::Avx2 && avx2 {
                // SAFETY: the features were just detected.
                return unsafe { x86::avx2_split(kernel) };
            }
        }
        let _ = isa;
        // SAFETY: portable code needs no instruction set.
        unsafe { kernel.run::<PortableBf16>() }
    }
}
