//! Zero-bordered images and the pixels of a class in them.

use std::ops::Range;

use crate::gemm::STRIP;
use crate::operand::{InputReader, store_channels};
use crate::simd::{Element, Simd, Wide};
use crate::task::ConvShape;

/// Channels of a pixel of a padded image: whole steps of a product, nothing more.
pub fn channels<E: Element>(c: usize) -> usize {
    c.next_multiple_of(E::DEPTH)
}

/// A zero-bordered image. The zeros on the right of a row are those on the left of the next.
#[derive(Clone, Copy)]
pub struct Padded {
    pub h: usize,
    pub w: usize,
    /// Distance of two pixels.
    pub ld: usize,
    /// Zero rows above and columns on the left.
    pub border: usize,
}

impl Padded {
    /// The input, stored as `T`.
    pub fn input<T: Element>(s: &ConvShape) -> Padded {
        let p = s.padding;
        Padded { h: s.h + 2 * p, w: s.w + p, ld: channels::<T>(s.c_in), border: p }
    }
    /// The output's gradient, with room for the taps of every class.
    pub fn gradient<E: Element>(s: &ConvShape) -> Padded {
        if s.stride == 1 {
            let border = (s.k - 1).saturating_sub(s.padding);
            return Padded { h: s.out_h() + 2 * border, w: s.out_w() + border, ld: channels::<E>(s.c_out), border };
        }
        let border = s.k.div_ceil(s.stride) - 1;
        // The last pixel of a class may lie behind what the strides reach.
        let (h, w) = ((s.h + s.padding - 1) / s.stride + 1, (s.w + s.padding - 1) / s.stride + 1);
        let (h, w) = (h.max(s.out_h()) + border, w.max(s.out_w()) + border);
        Padded { h, w, ld: channels::<E>(s.c_out), border }
    }
    /// Pixels, to the end of the last row's border.
    pub fn pixels(&self) -> usize {
        self.h * self.w + self.border
    }
    /// Elements, and a vector more: the last pixel may be read beyond its end.
    pub fn len(&self) -> usize {
        self.pixels() * self.ld + 2 * STRIP
    }
    pub fn at(&self, y: usize, x: usize) -> usize {
        (y * self.w + x) * self.ld
    }
}

/// Which pixel of an image is row `i` of a product whose rows are taken from a wider one, pixel after pixel.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Pixels of a row of the image.
    pub width: usize,
    /// Pixels of a row of what the product's rows are taken from.
    pub pitch: usize,
}

impl Rows {
    /// None for what lies between two rows of the image.
    #[inline(always)]
    pub fn pixel(self, i: usize) -> Option<usize> {
        if self.pitch == self.width {
            return Some(i);
        }
        let (y, x) = (i / self.pitch, i % self.pitch);
        (x < self.width).then_some(y * self.width + x)
    }
}

/// The pixels of one class in one direction: those at `rest + stride * q` of the padded input.
#[derive(Clone, Copy)]
pub struct Class {
    pub rest: usize,
    /// Taps that reach them: `rest`, `rest + stride`, ...
    pub taps: usize,
}

impl Class {
    pub fn all(s: &ConvShape) -> impl Iterator<Item = Class> + Clone + use<> {
        let (k, stride) = (s.k, s.stride);
        (0..stride).map(move |rest| Class { rest, taps: k.saturating_sub(rest).div_ceil(stride) })
    }
    /// The values of q that lie inside an image side of `len` pixels.
    pub fn range(&self, s: &ConvShape, len: usize) -> std::ops::Range<usize> {
        let first = s.padding.saturating_sub(self.rest).div_ceil(s.stride);
        let end = (s.padding + len).saturating_sub(self.rest).div_ceil(s.stride);
        first..end.max(first)
    }
}

/// Copies `rows` of a zero-bordered image, stored as `T` stores.
#[inline(always)]
pub unsafe fn copy_padded<S: Simd, T: Simd<V = S::V>>(
    s: &ConvShape,
    reader: &InputReader<'_, S::E>,
    image: usize,
    to: &mut [T::E],
    pad: Padded,
    rows: Range<usize>,
) where
    T::E: Element<Wide = Wide<S>>,
{
    let zero = T::E::default();
    // The last row's border, and behind the image all there is.
    let behind = &mut to[pad.at(rows.end, 0)..];
    let count = if rows.end == pad.h { behind.len() } else { pad.border * pad.ld };
    behind[..count].fill(zero);
    for y in rows {
        let row = &mut to[pad.at(y, 0)..][..pad.w * pad.ld];
        if !(pad.border..pad.border + s.h).contains(&y) {
            row.fill(zero);
            continue;
        }
        let y = y - pad.border;
        row[..pad.border * pad.ld].fill(zero);
        let row = &mut row[pad.border * pad.ld..][..s.w * pad.ld];
        // SAFETY: a row of the image.
        unsafe { copy_pixels::<S, T>(reader, (image * s.h + y) * s.w, s.c_in, row, pad.ld) };
    }
}

/// Copies the pixels from `first` on, `ld` elements apart; what lies behind a pixel's last channel is zero.
#[inline(always)]
pub unsafe fn copy_pixels<S: Simd, T: Simd<V = S::V>>(
    reader: &InputReader<'_, S::E>,
    first: usize,
    channels: usize,
    to: &mut [T::E],
    ld: usize,
) where
    T::E: Element<Wide = Wide<S>>,
{
    if let (Some(u), true) = (reader.plain(), ld == channels) {
        let from = &u[first * channels..][..to.len()];
        if size_of::<T::E>() == size_of::<S::E>() {
            // SAFETY: of the types that are computed in as `Wide<S>` no two have the same size; both slices are as long.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().cast(), to.as_mut_ptr(), from.len()) };
        } else {
            to.iter_mut().zip(from).for_each(|(to, x)| *to = T::E::narrow(x.widen()));
        }
        return;
    }
    for (x, pixel) in to.chunks_exact_mut(ld).enumerate() {
        let mut c = 0;
        while c < ld {
            // SAFETY: the pixel holds `ld` elements; the caller's pixels are within the activation.
            unsafe {
                let v = reader.load::<S>((first + x) * channels, c);
                store_channels::<T>(pixel.as_mut_ptr(), c, ld, v);
            }
            c += S::LANES;
        }
    }
}
