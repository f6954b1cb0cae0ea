//! No kernel reads or writes beyond the slices it is given: every slice ends at a page that may not be touched.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use half::bf16;
use kernels::batch_norm::{self, NormSums};
use kernels::bias;
use kernels::conv::{self, Algorithm, ConvShape, Packed};
use kernels::operand::{Affine, After, Gradient, Input, NormGradient, Within};
use kernels::pointwise;
use kernels::pool::{self, PoolShape, Window};
use kernels::runtime::Runtime;
use kernels::simd::{Element, Isa};
use testkit::numbers;

/// Elements that end where the readable memory ends.
struct Guarded<E> {
    map: *mut libc::c_void,
    bytes: usize,
    first: *mut E,
    len: usize,
}

impl<E: Element> Guarded<E> {
    fn new(values: &[f64]) -> Self {
        // SAFETY: asks for the page size; no memory is touched.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let size = std::mem::size_of_val(values) / 8 * size_of::<E>();
        let pages = size.div_ceil(page) * page;
        // SAFETY: a new private mapping, whose last page is made inaccessible; the elements end before it.
        unsafe {
            let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let map = libc::mmap(std::ptr::null_mut(), pages + page, access, how, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.add(pages), page, libc::PROT_NONE), 0);
            let first = map.add(pages - size).cast::<E>();
            let mut guarded = Guarded { map, bytes: pages + page, first, len: values.len() };
            guarded.slice().iter_mut().zip(values).for_each(|(to, v)| *to = E::of(*v));
            guarded
        }
    }
    fn slice(&mut self) -> &mut [E] {
        // SAFETY: `len` elements lie before the guarded page and live as long as the mapping.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<E> Drop for Guarded<E> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.map, self.bytes) };
    }
}

fn run<E: Element>(isa: Isa, s: &ConvShape, n: usize, algorithm: Algorithm) {
    let stored = |len, seed| Guarded::<E>::new(&numbers(len, seed));
    let wide = |len, seed| Guarded::<E::Wide>::new(&numbers(len, seed));
    let (i, o) = (n * s.input_len(), n * s.output_len());
    let (mut x, mut g, mut u, mut r) = (stored(i, 1), stored(o, 2), stored(o, 3), stored(o, 4));
    let (mut y, mut dx) = (stored(o, 5), stored(i, 6));
    let (mut w, mut dw) = (wide(s.weight_len(), 7), wide(s.weight_len(), 8));
    let mut of_input: Vec<_> = (10..13).map(|seed| wide(s.c_in, seed)).collect();
    let mut of_output: Vec<_> = (20..25).map(|seed| wide(s.c_out, seed)).collect();
    let (mut stats, mut sums) = (wide(n * 2 * s.c_out, 30), wide(n * 2 * s.c_in, 31));
    let [scale, shift, mean] = of_input.iter_mut().map(|v| &*v.slice()).collect::<Vec<_>>()[..] else { unreachable!() };
    let [oscale, oshift, slope, spread, offset] = of_output.iter_mut().map(|v| &*v.slice()).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    let runtime = Runtime::new(isa);
    let packed = Packed::new(&Arc::new(Runtime::new(isa)), s, algorithm, w.slice(), true);
    let affine = Affine { scale, shift, relu: true };
    let input = Input { u: &*x.slice(), affine: Some(affine) };
    let mut b = wide(s.c_out, 40);
    let finish = Affine { scale: oscale, shift: oshift, relu: true };
    let after =
        After { bias: Some(b.slice()), affine: Some(finish), residual: Some(r.slice()), relu: true, within: None };
    conv::forward(&runtime, s, input, &packed, after, y.slice(), Some(stats.slice()), 7);
    let mut wider = stored(o / s.c_out * (s.c_out + 3), 42);
    let within = Within { channels: s.c_out + 3, first: 3 };
    conv::forward(&runtime, s, input, &packed, After { within: Some(within), ..after }, wider.slice(), None, 7);
    let norm = NormGradient {
        u: u.slice(),
        affine: Affine { scale: oscale, shift: oshift, relu: true },
        slope,
        spread,
        offset,
    };
    let gradient = Gradient { g: g.slice(), norm: Some(norm), relu: Some(y.slice()) };
    bias::gradient(isa, gradient, s.output_len(), wide(s.c_out, 41).slice());
    let sums = NormSums { u: input.u, affine, mean, out: sums.slice() };
    conv::backward(&runtime, s, input, gradient, &packed, Some((dx.slice(), true)), dw.slice(), Some(sums));
    assert!(y.slice().iter().all(|v| v.f64().is_finite()) && dw.slice().iter().all(|v| v.f64().is_finite()));
}

fn pools<E: Element>(isa: Isa, shape: PoolShape, n: usize) {
    let (from, to) = (shape.h * shape.w * shape.channels, shape.out_h() * shape.out_w() * shape.channels);
    let stored = |len, seed| Guarded::<E>::new(&numbers(len, seed));
    let (mut x, mut y, mut g, mut dx) =
        (stored(n * from, 1), stored(n * to, 2), stored(n * to, 3), stored(n * from, 4));
    let mut winner = vec![0; n * to];
    pool::pool(&Runtime::new(isa), shape, x.slice(), y.slice(), shape.max.then_some(&mut winner));
    pool::pool_gradient(shape, g.slice(), shape.max.then_some(&winner), dx.slice());
    assert!(y.slice().iter().chain(dx.slice().iter()).all(|v| v.f64().is_finite()));
}

/// Whether a call is refused. What it is given is thrown away.
fn refused(call: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
}

/// What does not fit together is refused before a pointer is made of it.
#[test]
fn lengths_are_checked() {
    let isa = Isa::best();
    let runtime = Arc::new(Runtime::<f32>::new(isa));
    let s = ConvShape { h: 4, w: 4, c_in: 8, c_out: 8, k: 3, stride: 1, padding: 1 };
    let (eight, four, u) = (vec![1.0f32; 8], vec![1.0f32; 4], vec![1.0f32; s.input_len()]);
    let (mut out, mut sums) = (vec![0.0f32; s.input_len()], vec![0.0f32; 16]);
    let affine = |scale, shift| Affine { scale, shift, relu: true };
    let short = affine(&eight[..], &four[..]);
    assert!(refused(|| pointwise::apply(&runtime, Input { u: &u, affine: Some(short) }, 8, &mut out)));
    assert!(refused(|| batch_norm::image_sums(isa, &u, &u, short, &eight, &mut sums)));
    let whole = affine(&eight[..], &eight[..]);
    let norm = |u, slope| Some(NormGradient { u, affine: whole, slope, spread: &eight, offset: &eight });
    for (norm, relu) in [(norm(&u[1..], &eight[..]), None), (norm(&u, &four[..]), None), (None, Some(&u[1..]))] {
        let gradient = Gradient { g: &u, norm, relu };
        assert!(refused(|| pointwise::add_gradients(&runtime, &[gradient], 8, &mut out)));
        assert!(refused(|| bias::gradient(isa, gradient, s.output_len(), &mut eight.clone())));
    }
    const PLAIN: After<f32> = After { bias: None, affine: None, residual: None, relu: false, within: None };
    let weight = vec![1.0f32; s.weight_len()];
    let smaller = ConvShape { c_in: 4, ..s };
    for algorithm in [Algorithm::Direct, Algorithm::Winograd] {
        let packed = Packed::new(&runtime, &smaller, algorithm, &weight[..smaller.weight_len()], true);
        let input = Input { u: &u, affine: None };
        let mut forward =
            |s: &ConvShape, input| refused(|| conv::forward(&runtime, s, input, &packed, PLAIN, &mut out, None, 1));
        assert!(forward(&s, input));
        let half = Input { u: &u[..smaller.input_len()], affine: None };
        assert!(!forward(&smaller, half));
        let gradient = Gradient { g: &u, norm: None, relu: None };
        let mut dw = vec![0.0f32; s.weight_len()];
        assert!(refused(|| conv::backward(&runtime, &s, input, gradient, &packed, None, &mut dw, None)));
    }
    assert!(refused(|| kernels::winograd::fold(isa, &s, &eight, &mut four.clone())));
    // A kernel of another size, with memory enough for that.
    let one = ConvShape { k: 1, c_in: 1, c_out: 16, ..s };
    let (du, mut out) = (vec![1.0f32; 36 * 16], vec![0.0f32; 16]);
    assert!(refused(|| kernels::winograd::fold(isa, &one, &du, &mut out)));
    // A kernel larger than its image: sides below zero would multiply to a length that looks right.
    let large = ConvShape { h: 1, w: 1, c_in: 1, c_out: 16, k: 3, stride: 1, padding: 0 };
    let weight = vec![1.0f32; large.weight_len()];
    assert!(refused(|| drop(Packed::new(&runtime, &large, Algorithm::Direct, &weight, false))));
    let wide = ConvShape { h: 3, w: 3, ..large };
    let packed = Packed::new(&runtime, &wide, Algorithm::Direct, &weight, false);
    let input = Input { u: &[1.0], affine: None };
    assert!(refused(|| conv::forward(&runtime, &large, input, &packed, PLAIN, &mut out, None, 1)));
    let conv =
        || kernels::Graph::new(kernels::Shape { channels: 1, h: 1, w: 1 }).conv("c", kernels::Value(0), 1, 3, 1, 0);
    assert!(refused(|| _ = conv()));
    assert!(refused(|| drop(runtime.take((1 << 62) + 1))));
}

/// Sums of a gradient that is not computed, and a window whose winner has no number, are refused as well.
#[test]
fn what_would_be_wrong_in_silence_is_refused() {
    let runtime = Arc::new(Runtime::<f32>::new(Isa::best()));
    let window = PoolShape { h: 17, w: 17, channels: 1, window: Window::new(17, 1), max: true };
    let (x, mut y, mut winner) = (vec![1.0f32; 289], [0.0f32], [0]);
    assert!(refused(|| pool::pool(&runtime, window, &x, &mut y, Some(&mut winner))));
    assert!(refused(|| pool::pool_gradient(window, &y, Some(&winner), &mut x.clone())));
    let s = ConvShape { h: 4, w: 4, c_in: 8, c_out: 8, k: 3, stride: 1, padding: 1 };
    let (u, eight, weight) = (vec![1.0f32; s.input_len()], vec![1.0f32; 8], vec![1.0f32; s.weight_len()]);
    let packed = Packed::new(&runtime, &s, Algorithm::Direct, &weight, true);
    let affine = Affine { scale: &eight, shift: &eight, relu: false };
    let (mut dw, mut out) = (vec![0.0f32; s.weight_len()], vec![0.0f32; 16]);
    let sums = NormSums { u: &u, affine, mean: &eight, out: &mut out };
    let (input, gradient) = (Input { u: &u, affine: None }, Gradient { g: &u, norm: None, relu: None });
    assert!(refused(|| conv::backward(&runtime, &s, input, gradient, &packed, None, &mut dw, Some(sums))));
}

#[test]
fn nothing_beyond_the_slices_is_touched() {
    let s = |h, w, c_in, c_out, k, stride, padding| ConvShape { h, w, c_in, c_out, k, stride, padding };
    for isa in Isa::available() {
        for (shape, n) in [
            (s(8, 8, 3, 16, 3, 1, 1), 2),
            (s(7, 7, 17, 10, 3, 1, 1), 3),
            (s(1, 1, 8, 8, 3, 1, 1), 1),
            (s(5, 9, 20, 36, 3, 2, 1), 2),
            (s(6, 6, 17, 5, 1, 2, 0), 2),
            (s(5, 7, 19, 33, 1, 1, 0), 3),
            (s(5, 6, 9, 7, 1, 1, 1), 2),
            (s(7, 11, 3, 10, 5, 3, 2), 1),
        ] {
            for algorithm in [Algorithm::Direct, shape.algorithm::<f32>(isa)] {
                run::<f32>(isa, &shape, n, algorithm);
                run::<bf16>(isa, &shape, n, algorithm);
                run::<f64>(isa, &shape, n, algorithm);
            }
        }
        for (h, w, channels, k, stride, padding, ceil_mode) in
            [(7, 5, 17, 3, 2, 1, false), (8, 9, 5, 3, 2, 0, true), (4, 4, 32, 2, 2, 1, true), (1, 1, 3, 1, 1, 0, false)]
        {
            for max in [true, false] {
                let window = Window { k, stride, padding, ceil_mode };
                let shape = PoolShape { h, w, channels, window, max };
                pools::<f32>(isa, shape, 2);
                pools::<bf16>(isa, shape, 2);
                pools::<f64>(isa, shape, 2);
            }
        }
    }
}
