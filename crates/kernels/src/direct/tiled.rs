//! Both gradients on a processor with matrix registers.
//!
//! The weight's gradient is a sum over pixels, and a tile wants what it sums over side by side: so the padded input is transposed,
//! into tiles that each lie in one piece of memory, over all pixels of a few images. The output's gradient stands at the padded
//! pixel that its patch begins with and is zero everywhere else; a tap of the kernel is a shift between the two. Rows of tiles
//! that straddle cache lines take several times as long, so it is the gradient that is shifted, whose pixels lie in pairs, and
//! there is a second copy for odd shifts.

use super::backward::input_gradient;
use super::image::{Padded, copy_padded};
use crate::gemm::{Lhs, Out, Rhs, STRIP, gemm, padded};
use crate::operand::{GradientReader, InputReader, store_channels};
use crate::simd::{Element, Simd, TILE, Tiles};
use crate::task::{Backward, ConvShape, Scratch, ScratchLen};

/// Pixels that [`Tiles::transpose`] takes at a time, a chunk of the sum.
const PIXELS: usize = 2 * TILE;
/// Chunks of one product: what it reads of both operands stays in the first cache for all taps.
const CHUNKS: usize = 8;
/// Pixels of the images that go through together.
const ENOUGH: usize = 1024;

/// Small images go together, so that their sums are long.
pub fn images_per_chunk(s: &ConvShape) -> usize {
    let pad = Padded::input::<f32>(s);
    (ENOUGH / pad.pixels()).max(1)
}

/// Lengths of the buffers for a chunk of images.
struct Sizes {
    /// Pixels of a padded image, whole chunks.
    image: usize,
    /// The padded input of one image.
    input: usize,
    /// The input of all images in tiles: for each chunk of pixels, for each strip of channels, 16 rows of 32 pixels.
    transposed: usize,
    /// Pixels of the sum.
    pixels: usize,
    /// Blank pixels in front of the gradient, as many as a tap shifts at most.
    before: usize,
    /// The gradient at these pixels, pixel by pixel or in pairs.
    spread: usize,
    /// The bordered gradient of one image.
    bordered: usize,
}

impl Sizes {
    fn new<E: Element>(s: &ConvShape, images: usize) -> Sizes {
        let pad = Padded::input::<E>(s);
        let image = pad.pixels().next_multiple_of(PIXELS);
        let pixels = images * image;
        let before = ((s.k - 1) * (pad.w + 1)).next_multiple_of(2);
        Sizes {
            image,
            input: image * pad.ld + 2 * STRIP,
            transposed: padded(s.c_in) * pixels,
            pixels,
            before,
            // A pixel more, with which the last odd pair ends.
            spread: (before + pixels + 2) * padded(s.c_out),
            bordered: Padded::gradient::<E>(s).len(),
        }
    }
}

/// Scratch that [`backward`] needs.
pub fn backward_scratch<E: Element>(s: &ConvShape) -> ScratchLen {
    let z = Sizes::new::<E>(s, images_per_chunk(s));
    let row = (s.w.div_ceil(s.stride) + 1) * padded(s.c_in);
    ScratchLen { stored: z.input + z.transposed + 3 * z.spread + z.bordered, wide: row, segments: s.k.max(CHUNKS) }
}

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` as (k, k, c_in, padded c_out).
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E>) {
    let Backward { shape: s, images, input, gradient, packed, mut dx, dw, scratch } = task;
    let Scratch { stored, wide: products, segments } = scratch;
    let pad = Padded::input::<S::E>(s);
    let z = Sizes::new::<S::E>(s, images.len());
    let (image_in, stored) = stored.split_at_mut(z.input);
    let (transposed, stored) = stored.split_at_mut(z.transposed);
    let (spread, stored) = stored.split_at_mut(z.spread);
    let (even, stored) = stored.split_at_mut(z.spread);
    let (odd, stored) = stored.split_at_mut(z.spread);
    let bordered = &mut stored[..z.bordered];
    let x = InputReader::new(input, s.c_in);
    let g = GradientReader::new(gradient, s.c_out);
    let (ldo, tile) = (padded(s.c_out), STRIP * PIXELS);
    let of_chunk = padded(s.c_in) / STRIP * tile;
    spread.fill(S::E::default());
    for (local, image) in images.enumerate() {
        // SAFETY: images within the activation; every product's operands lie in the scratch.
        unsafe {
            copy_padded::<S, S>(s, &x, image, image_in, pad, 0..pad.h);
            for p in (0..z.image).step_by(PIXELS) {
                let tiles = &mut transposed[(local * z.image + p) / PIXELS * of_chunk..][..of_chunk];
                for (strip, tile) in tiles.chunks_exact_mut(tile).enumerate() {
                    let from = image_in[p * pad.ld + strip * STRIP..].as_ptr();
                    S::T::transpose(from, pad.ld, tile.as_mut_ptr(), PIXELS);
                }
            }
            let to = &mut spread[(z.before + local * z.image) * ldo..];
            copy_gradient::<S>(s, &g, image, to, dx.is_some().then_some(&mut *bordered));
            if let Some((dx, accumulate)) = &mut dx {
                let dx = &mut dx[local * s.input_len()..][..s.input_len()];
                let weights = packed.backward.as_slice();
                input_gradient::<S>(s, bordered, weights, segments, products, dx, *accumulate);
            }
        }
    }
    // SAFETY: all hold the same pixels of the same channels.
    unsafe { pair::<S>(spread, even, odd, ldo) };
    let strip = z.spread / ldo * STRIP;
    segments.iter_mut().enumerate().for_each(|(chunk, at)| *at = chunk * of_chunk);
    for first in (0..z.pixels).step_by(CHUNKS * PIXELS) {
        let chunks = CHUNKS.min((z.pixels - first) / PIXELS);
        for c in (0..s.c_in).step_by(2 * TILE) {
            for (tap, dw) in dw.chunks_exact_mut(s.c_in * ldo).enumerate() {
                let at = z.before + first - (tap / s.k * pad.w + tap % s.k);
                let pairs = if at.is_multiple_of(2) { &*even } else { &*odd };
                // SAFETY: before and behind the gradient's pixels there are as many as a tap shifts.
                unsafe {
                    gemm::<S>(
                        (s.c_in - c).min(2 * TILE),
                        ldo,
                        TILE,
                        Lhs {
                            data: transposed[first / PIXELS * of_chunk + c / STRIP * tile..].as_ptr(),
                            row: PIXELS,
                            col: S::E::DEPTH,
                            segments: &segments[..chunks],
                        },
                        Rhs { data: pairs[at / 2 * 2 * STRIP..].as_ptr(), row: STRIP * S::E::DEPTH, strip },
                        Out { data: dw[c * ldo..].as_mut_ptr(), row: ldo, accumulate: true },
                    );
                }
            }
        }
    }
}

/// The gradient of one image, each pixel at the first pixel of its patch and, if asked for, bordered.
#[inline(always)]
unsafe fn copy_gradient<S: Simd>(
    s: &ConvShape,
    g: &GradientReader<'_, S::E>,
    image: usize,
    spread: &mut [S::E],
    mut bordered: Option<&mut [S::E]>,
) {
    let (ldo, pitch, pad) = (padded(s.c_out), Padded::input::<S::E>(s).w, Padded::gradient::<S::E>(s));
    if let Some(to) = &mut bordered {
        to.fill(S::E::default());
    }
    for y in 0..s.out_h() {
        for x in 0..s.out_w() {
            let from = ((image * s.out_h() + y) * s.out_w() + x) * s.c_out;
            let to = spread[(y * pitch + x) * s.stride * ldo..][..ldo].as_mut_ptr();
            for c in (0..s.c_out).step_by(S::LANES) {
                // SAFETY: c < c_out; both targets hold the pixel.
                unsafe {
                    let v = g.load::<S>(from, c);
                    S::store(to.add(c), v);
                    if let Some(to) = &mut bordered {
                        let to = &mut to[pad.at(y + pad.border, x + pad.border)..][..pad.ld];
                        store_channels::<S>(to.as_mut_ptr(), c, pad.ld, v);
                    }
                }
            }
        }
    }
}

/// Pixels of `ld` channels become strips of channels, in which two pixels lie side by side: the first and the second, and so on;
/// the second and the third, and so on.
#[inline(always)]
unsafe fn pair<S: Simd>(from: &[S::E], even: &mut [S::E], odd: &mut [S::E], ld: usize) {
    let pixels = from.len() / ld;
    let strips = even.chunks_exact_mut(pixels * STRIP).zip(odd.chunks_exact_mut(pixels * STRIP));
    for (strip, (even, odd)) in strips.enumerate() {
        for c in (0..STRIP).step_by(S::LANES) {
            let pixel = |i: usize| from[i * ld + strip * STRIP + c..].as_ptr();
            // SAFETY: pixels' vectors are read, and pairs of them written.
            unsafe {
                let mut next = S::load(pixel(0));
                for i in 0..pixels / 2 {
                    let first = next;
                    let second = S::load(pixel(2 * i + 1));
                    // What would follow the last pixel is never read.
                    next = S::load(pixel((2 * i + 2).min(pixels - 1)));
                    S::store_operand(even[i * 2 * STRIP + 2 * c..].as_mut_ptr(), [first, second]);
                    S::store_operand(odd[i * 2 * STRIP + 2 * c..].as_mut_ptr(), [second, next]);
                }
            }
        }
    }
}
