//! 3x3 convolution, stride 1, padding 1, by Winograd's F(2x2, 3x3): 2.25 times fewer multiplications.
//!
//! Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), eq. 8-11:
//! `Y = A^T [ (G g G^T) * (B^T d B) ] A` for every 4x4 input tile d and 2x2 output tile Y. The product
//! over channels is one matrix product for each of the 16 elements. The backward pass is the exact
//! adjoint of the same three maps, so one transform of the gradient serves both the input's and the
//! weights' gradient: `dM = A dY A^T`, `dU = V^T dM`, `dV = dM U^T`, `dd = B dV B^T`, `dg = G^T dU G`.
#![allow(clippy::needless_range_loop)] // Tiles are indexed by row and column, as in the equations.

use crate::conv::{Backward, ConvShape, Forward, Packed};
use crate::gemm::{Lhs, Out, Rhs, STRIP, gemm, leading, padded};
use crate::operand::{GradientReader, InputReader, copy_padded, crop_padded, load_channels, store_channels};
use crate::simd::{Element, Simd};

/// Elements of a 4x4 tile.
const ELEMENTS: usize = 16;
/// Tiles transformed together: enough rows for the matrix products, few enough for the cache.
const TILES: usize = 64;

/// How the tiles of a few images are cut into blocks.
#[derive(Clone, Copy)]
struct Tiling {
    th: usize,
    tw: usize,
    /// Tile rows a block.
    rows: usize,
    /// Padded scratch image.
    height: usize,
    width: usize,
}

impl Tiling {
    fn new(s: &ConvShape, images: usize) -> Self {
        let (th, tw) = (s.h.div_ceil(2), s.w.div_ceil(2));
        let rows = (TILES / tw).clamp(1, images * th);
        Tiling { th, tw, rows, height: 2 * th + 2, width: 2 * tw + 2 }
    }
    /// Distance of two of a block's 16 matrices with rows of `ld`. One cache line more than their size:
    /// a tile's 16 elements would otherwise all fall into one cache set.
    fn element(&self, ld: usize) -> usize {
        self.rows * self.tw * ld + STRIP
    }
    /// (index in block, image, tile row, tile column) of the tiles of rows `first..last`.
    fn each(&self, first: usize, last: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<> {
        let Tiling { th, tw, .. } = *self;
        (first..last).flat_map(move |r| (0..tw).map(move |tx| ((r - first) * tw + tx, r / th, r % th, tx)))
    }
}

/// Images processed together, so that small images still fill a block.
pub fn images_per_chunk(s: &ConvShape) -> usize {
    (TILES / (s.h.div_ceil(2) * s.w.div_ceil(2)).max(1)).max(1)
}

/// `U = G g G^T` for every pair of channels, packed for the forward product and, transposed, for the backward one.
pub fn pack<E: Element>(s: &ConvShape, weight: &[E], packed: &mut Packed<E>) {
    let (ci, co) = (s.c_in, s.c_out);
    let (forward, backward) = (padded(co) * ci, padded(ci) * co);
    packed.forward.resize(ELEMENTS * forward, E::default());
    packed.backward.resize(ELEMENTS * backward, E::default());
    let half = E::of(0.5);
    let rows = |g: [E; 3]| [g[0], half * (g[0] + g[2] + g[1]), half * (g[0] + g[2] - g[1]), g[2]];
    for o in 0..co {
        for i in 0..ci {
            let g = &weight[(o * ci + i) * 9..][..9];
            let columns: [[E; 4]; 3] = std::array::from_fn(|x| rows([g[x], g[3 + x], g[6 + x]]));
            for y in 0..4 {
                let u = rows([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, u) in u.into_iter().enumerate() {
                    let f = y * 4 + x;
                    packed.forward[f * forward + (o / STRIP * ci + i) * STRIP + o % STRIP] = u;
                    packed.backward[f * backward + (i / STRIP * co + o) * STRIP + i % STRIP] = u;
                }
            }
        }
    }
}

/// Scratch elements that [`forward`] needs for `images` images.
pub fn forward_scratch(s: &ConvShape, images: usize) -> usize {
    let t = Tiling::new(s, images);
    let (vi, vo) = (leading(s.c_in), leading(s.c_out));
    images * t.height * t.width * padded(s.c_in) + ELEMENTS * (t.element(vi) + t.element(vo))
}

/// Convolves the images of one chunk.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn forward<S: Simd>(task: Forward<'_, S::E>) {
    let Forward { shape: s, images, input, packed, residual, out, scratch } = task;
    let count = images.len();
    let t = Tiling::new(s, count);
    let (ld, vi, vo) = (padded(s.c_in), leading(s.c_in), leading(s.c_out));
    let padded_image = t.height * t.width * ld;
    let (pads, rest) = scratch.split_at_mut(count * padded_image);
    let (v, m) = rest.split_at_mut(ELEMENTS * t.element(vi));
    let reader = InputReader::new(input, s.c_in);
    let geometry = ((s.h, s.w, s.c_in), (t.height, t.width, ld));
    // SAFETY: images within the activation; blocks within the scratch sized by `forward_scratch`.
    unsafe {
        for (i, pad) in pads.chunks_exact_mut(padded_image).enumerate() {
            let at = (images.start + i) * s.h * s.w * s.c_in;
            copy_padded::<S>(&reader, at, geometry.0, pad, geometry.1, (1, 1));
        }
        let mut first = 0;
        while first < count * t.th {
            let last = (first + t.rows).min(count * t.th);
            let tiles = (last - first) * t.tw;
            input_transform::<S>(s, &t, (first, last), pads, v, vi);
            for f in 0..ELEMENTS {
                gemm::<S>(
                    tiles,
                    padded(s.c_out),
                    s.c_in,
                    Lhs { data: v[f * t.element(vi)..].as_ptr(), row: vi, col: 1 },
                    Rhs::packed(packed.forward[f * padded(s.c_out) * s.c_in..].as_ptr(), s.c_in),
                    Out { data: m[f * t.element(vo)..].as_mut_ptr(), row: vo, accumulate: false },
                );
            }
            output_transform::<S>(s, &t, (first, last), m, vo, residual.map(|r| (r, images.start)), out);
            first = last;
        }
    }
}

/// `V = B^T d B`.
#[inline(always)]
unsafe fn input_transform<S: Simd>(
    s: &ConvShape,
    t: &Tiling,
    (first, last): (usize, usize),
    pads: &[S::E],
    v: &mut [S::E],
    vi: usize,
) {
    let ld = padded(s.c_in);
    let (row, element) = (t.width * ld, t.element(vi));
    for (i, image, ty, tx) in t.each(first, last) {
        let d = pads[((image * t.height + 2 * ty) * t.width + 2 * tx) * ld..].as_ptr();
        let v = v[i * vi..].as_mut_ptr();
        let mut c = 0;
        while c < s.c_in {
            // SAFETY: a tile's 4 rows and columns lie in the padded image, its 16 elements in the block.
            unsafe {
                let columns: [[S::V; 4]; 4] = std::array::from_fn(|x| {
                    let d: [S::V; 4] = std::array::from_fn(|y| S::load(d.add(y * row + x * ld + c)));
                    [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])]
                });
                for y in 0..4 {
                    let d: [S::V; 4] = std::array::from_fn(|x| columns[x][y]);
                    let p = v.add(4 * y * element + c);
                    S::store(p, S::sub(d[0], d[2]));
                    S::store(p.add(element), S::add(d[1], d[2]));
                    S::store(p.add(2 * element), S::sub(d[2], d[1]));
                    S::store(p.add(3 * element), S::sub(d[1], d[3]));
                }
            }
            c += S::LANES;
        }
    }
}

/// `Y = A^T M A`, plus the residual, cut at the image's border.
#[inline(always)]
unsafe fn output_transform<S: Simd>(
    s: &ConvShape,
    t: &Tiling,
    (first, last): (usize, usize),
    m: &[S::E],
    vo: usize,
    residual: Option<(&[S::E], usize)>,
    out: &mut [S::E],
) {
    let element = t.element(vo);
    let image_len = s.h * s.w * s.c_out;
    for (i, image, ty, tx) in t.each(first, last) {
        let m = m[i * vo..].as_ptr();
        let (rows, columns) = ((s.h - 2 * ty).min(2), (s.w - 2 * tx).min(2));
        let at = ((image * s.h + 2 * ty) * s.w + 2 * tx) * s.c_out;
        let mut c = 0;
        while c < s.c_out {
            // SAFETY: a tile's 16 elements lie in the block, its pixels in the image.
            unsafe {
                let columns_in: [[S::V; 2]; 4] = std::array::from_fn(|x| {
                    let m: [S::V; 4] = std::array::from_fn(|y| S::load(m.add((4 * y + x) * element + c)));
                    [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3])]
                });
                for y in 0..rows {
                    let r: [S::V; 4] = std::array::from_fn(|x| columns_in[x][y]);
                    let pixels = [S::add(S::add(r[0], r[1]), r[2]), S::sub(S::sub(r[1], r[2]), r[3])];
                    for (x, &pixel) in pixels.iter().enumerate().take(columns) {
                        let at = at + (y * s.w + x) * s.c_out;
                        let pixel = match residual {
                            Some((r, start)) => {
                                let r = r.as_ptr().add(start * image_len + at);
                                S::add(pixel, load_channels::<S>(r, c, s.c_out))
                            }
                            None => pixel,
                        };
                        store_channels::<S>(out.as_mut_ptr().add(at), c, s.c_out, pixel);
                    }
                }
            }
            c += S::LANES;
        }
    }
}

/// Scratch elements that [`backward`] needs for `images` images.
pub fn backward_scratch(s: &ConvShape, images: usize) -> usize {
    let t = Tiling::new(s, images);
    let (vi, vo) = (leading(s.c_in), leading(s.c_out));
    2 * images * t.height * t.width * padded(s.c_in) + ELEMENTS * (t.element(vi) + t.element(vo))
}

/// Length of the gradient that a group of chunks accumulates: `dU`, (16, c_in, padded c_out).
pub fn gradient_len(s: &ConvShape) -> usize {
    ELEMENTS * s.c_in * padded(s.c_out)
}

/// Both gradients of the images of one chunk; the weights' is added to `task.dw` in transformed form.
///
/// # Safety
/// The processor has `S`; the buffers have the sizes that `task` promises.
#[inline(always)]
pub unsafe fn backward<S: Simd>(task: Backward<'_, S::E>) {
    let Backward { shape: s, images, input, gradient, packed, dx, dw, scratch } = task;
    let count = images.len();
    let t = Tiling::new(s, count);
    let (ld, vi, vo) = (padded(s.c_in), leading(s.c_in), leading(s.c_out));
    let padded_image = t.height * t.width * ld;
    let (pads, rest) = scratch.split_at_mut(count * padded_image);
    let (dpads, rest) = rest.split_at_mut(count * padded_image);
    let (v, m) = rest.split_at_mut(ELEMENTS * t.element(vi));
    let x = InputReader::new(input, s.c_in);
    let g = GradientReader::new(gradient, s.c_out);
    let geometry = ((s.h, s.w, s.c_in), (t.height, t.width, ld));
    // SAFETY: images within the activation; blocks within the scratch sized by `backward_scratch`.
    unsafe {
        for (i, pad) in pads.chunks_exact_mut(padded_image).enumerate() {
            let at = (images.start + i) * s.h * s.w * s.c_in;
            copy_padded::<S>(&x, at, geometry.0, pad, geometry.1, (1, 1));
        }
        if dx.is_some() {
            dpads.fill(S::E::default());
        }
        let mut first = 0;
        while first < count * t.th {
            let last = (first + t.rows).min(count * t.th);
            let tiles = (last - first) * t.tw;
            input_transform::<S>(s, &t, (first, last), pads, v, vi);
            gradient_transform::<S>(s, &t, (first, last), images.start, &g, m, vo);
            for f in 0..ELEMENTS {
                let (v, m) = (&mut v[f * t.element(vi)..], &m[f * t.element(vo)..]);
                let du = dw[f * s.c_in * padded(s.c_out)..].as_mut_ptr();
                gemm::<S>(
                    s.c_in,
                    padded(s.c_out),
                    tiles,
                    Lhs { data: v.as_ptr(), row: 1, col: vi },
                    Rhs::rows(m.as_ptr(), vo),
                    Out { data: du, row: padded(s.c_out), accumulate: true },
                );
                if dx.is_some() {
                    // V is not needed again: dV takes its place.
                    gemm::<S>(
                        tiles,
                        padded(s.c_in),
                        s.c_out,
                        Lhs { data: m.as_ptr(), row: vo, col: 1 },
                        Rhs::packed(packed.backward[f * padded(s.c_in) * s.c_out..].as_ptr(), s.c_out),
                        Out { data: v.as_mut_ptr(), row: vi, accumulate: false },
                    );
                }
            }
            if dx.is_some() {
                add_input_gradient::<S>(s, &t, (first, last), v, vi, dpads);
            }
            first = last;
        }
        if let Some((dx, accumulate)) = dx {
            for (i, pad) in dpads.chunks_exact(padded_image).enumerate() {
                let dx = &mut dx[i * s.h * s.w * s.c_in..][..s.h * s.w * s.c_in];
                crop_padded::<S>(pad, geometry.1, (1, 1), geometry.0, dx, accumulate);
            }
        }
    }
}

/// `dM = A dY A^T`.
#[inline(always)]
unsafe fn gradient_transform<S: Simd>(
    s: &ConvShape,
    t: &Tiling,
    (first, last): (usize, usize),
    start: usize,
    g: &GradientReader<'_, S::E>,
    m: &mut [S::E],
    vo: usize,
) {
    let element = t.element(vo);
    for (i, image, ty, tx) in t.each(first, last) {
        let m = m[i * vo..].as_mut_ptr();
        let (rows, columns) = ((s.h - 2 * ty).min(2), (s.w - 2 * tx).min(2));
        let at = (((start + image) * s.h + 2 * ty) * s.w + 2 * tx) * s.c_out;
        let mut c = 0;
        while c < s.c_out {
            // SAFETY: only pixels inside the image are read; 16 elements of the block are written.
            unsafe {
                let zero = S::splat(S::E::default());
                let mut d = [[zero; 2]; 2];
                for (y, row) in d.iter_mut().enumerate().take(rows) {
                    for (x, d) in row.iter_mut().enumerate().take(columns) {
                        *d = g.load::<S>(at + (y * s.w + x) * s.c_out, c);
                    }
                }
                let spread = |a: S::V, b: S::V| [a, S::add(a, b), S::sub(a, b), S::sub(zero, b)];
                let left = spread(d[0][0], d[1][0]);
                let right = spread(d[0][1], d[1][1]);
                for y in 0..4 {
                    for (x, value) in spread(left[y], right[y]).into_iter().enumerate() {
                        S::store(m.add((4 * y + x) * element + c), value);
                    }
                }
            }
            c += S::LANES;
        }
    }
}

/// `dd = B dV B^T`, added where neighbouring tiles overlap.
#[inline(always)]
unsafe fn add_input_gradient<S: Simd>(
    s: &ConvShape,
    t: &Tiling,
    (first, last): (usize, usize),
    v: &[S::E],
    vi: usize,
    dpads: &mut [S::E],
) {
    let ld = padded(s.c_in);
    let (row, element) = (t.width * ld, t.element(vi));
    for (i, image, ty, tx) in t.each(first, last) {
        let v = v[i * vi..].as_ptr();
        let d = dpads[((image * t.height + 2 * ty) * t.width + 2 * tx) * ld..].as_mut_ptr();
        let mut c = 0;
        while c < s.c_in {
            // SAFETY: as in `input_transform`.
            unsafe {
                let gather = |a: [S::V; 4]| {
                    let middle = S::sub(a[1], a[2]);
                    let sum = S::add(a[1], a[2]);
                    let zero = S::splat(S::E::default());
                    [a[0], S::add(middle, a[3]), S::sub(sum, a[0]), S::sub(zero, a[3])]
                };
                let columns: [[S::V; 4]; 4] =
                    std::array::from_fn(|x| gather(std::array::from_fn(|y| S::load(v.add((4 * y + x) * element + c)))));
                for y in 0..4 {
                    let r = gather(std::array::from_fn(|x| columns[x][y]));
                    for (x, value) in r.into_iter().enumerate() {
                        let p = d.add(y * row + x * ld + c);
                        S::store(p, S::add(S::load(p), value));
                    }
                }
            }
            c += S::LANES;
        }
    }
}

/// `dg = G^T dU G`, from the accumulated form into PyTorch's (out, in, 3, 3).
pub fn unpack<E: Element>(s: &ConvShape, du: &[E], dw: &mut [E]) {
    let (ci, co, ld) = (s.c_in, s.c_out, padded(s.c_out));
    let half = E::of(0.5);
    let fold = |u: [E; 4]| {
        let (sum, difference) = (half * (u[1] + u[2]), half * (u[1] - u[2]));
        [u[0] + sum, difference, sum + u[3]]
    };
    for i in 0..ci {
        for o in 0..co {
            let u = |f: usize| du[(f * ci + i) * ld + o];
            let columns: [[E; 3]; 4] = std::array::from_fn(|x| fold([u(x), u(4 + x), u(8 + x), u(12 + x)]));
            for y in 0..3 {
                let g = fold(std::array::from_fn(|x| columns[x][y]));
                dw[(o * ci + i) * 9 + y * 3..][..3].copy_from_slice(&g);
            }
        }
    }
}
