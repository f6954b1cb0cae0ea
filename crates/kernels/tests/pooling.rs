//! Pooling against a naive loop, with PyTorch's padding and ceil_mode, on every instruction set and number of threads.

use half::bf16;
use kernels::pool::{self, PoolShape, Window};
use kernels::runtime::Runtime;
use kernels::simd::{Element, Isa};
use testkit::{assert_close, numbers};

/// The definition over a padded image, in f64: output and input gradient. A pixel of the padding is None.
fn naive(s: &PoolShape, n: usize, x: &[f64], g: &[f64]) -> [Vec<f64>; 2] {
    let Window { k, stride, padding, .. } = s.window;
    let (oh, ow) = (s.out_h(), s.out_w());
    let mut y = vec![0.0; n * oh * ow * s.channels];
    let mut dx = vec![0.0; x.len()];
    for (i, y) in y.iter_mut().enumerate() {
        let (c, ox, oy, image) =
            (i % s.channels, i / s.channels % ow, i / s.channels / ow % oh, i / s.channels / ow / oh);
        let (mut best, mut sum, mut count, mut inside) = (None, 0.0, 0, vec![]);
        for ky in 0..k {
            for kx in 0..k {
                let (py, px) = (oy * stride + ky, ox * stride + kx);
                if py >= s.h + 2 * padding || px >= s.w + 2 * padding {
                    continue;
                }
                count += 1;
                if (padding..padding + s.h).contains(&py) && (padding..padding + s.w).contains(&px) {
                    let at = ((image * s.h + py - padding) * s.w + px - padding) * s.channels + c;
                    inside.push(at);
                    sum += x[at];
                    if best.is_none_or(|best: usize| x[at] > x[best]) {
                        best = Some(at);
                    }
                }
            }
        }
        let best = best.expect("every window holds a pixel");
        if s.max {
            *y = x[best];
            dx[best] += g[i];
        } else {
            *y = sum / f64::from(count);
            inside.iter().for_each(|at| dx[*at] += g[i] / f64::from(count));
        }
    }
    [y, dx]
}

/// Windows with what PyTorch 2.15 makes of a side of 7 and one of 8 (`torch.nn.MaxPool2d(k, stride, padding,
/// ceil_mode=...)` of a (1, 1, 7, 8) tensor).
const WINDOWS: [(Window, [usize; 2]); 10] = {
    const fn w(k: usize, stride: usize, padding: usize, ceil_mode: bool) -> Window {
        Window { k, stride, padding, ceil_mode }
    }
    [
        (w(1, 1, 0, false), [7, 8]),
        (w(2, 2, 0, false), [3, 4]),
        (w(2, 2, 0, true), [4, 4]),
        (w(2, 2, 1, true), [4, 5]),
        (w(3, 2, 1, false), [4, 4]),
        (w(3, 2, 1, true), [4, 5]),
        (w(3, 2, 0, true), [3, 4]),
        (w(3, 3, 1, true), [3, 3]),
        (w(2, 3, 1, true), [3, 3]),
        (w(5, 1, 2, false), [7, 8]),
    ]
};

fn shapes() -> impl Iterator<Item = PoolShape> {
    [(7, 8, 5), (8, 7, 33), (6, 6, 64), (5, 5, 1), (3, 9, 16)].into_iter().flat_map(|(h, w, channels)| {
        WINDOWS.into_iter().flat_map(move |(window, _)| {
            [true, false].map(|max| PoolShape { h, w, channels, window, max }).into_iter().filter(PoolShape::fits)
        })
    })
}

#[test]
fn sizes_are_pytorchs() {
    for (window, [seven, eight]) in WINDOWS {
        let shape = PoolShape { h: 7, w: 8, channels: 1, window, max: true };
        assert_eq!([shape.out_h(), shape.out_w()], [seven, eight], "{window:?}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let fits = |k, stride, padding| {
        let window = Window { k, stride, padding, ceil_mode: true };
        PoolShape { h: 4, w: 6, channels: 1, window, max: true }.fits()
    };
    assert!(fits(4, 2, 0) && fits(5, 2, 1) && fits(3, 5, 1));
    assert!(!fits(5, 2, 0) && !fits(3, 2, 2) && !fits(0, 1, 0) && !fits(3, 0, 1) && !fits(16, 1, 8));
}

/// Multiples of 1/8 in [-1, 1]: exact in bf16, and with ties in almost every window.
fn eighths(len: usize, seed: u64) -> Vec<f64> {
    numbers(len, seed).into_iter().map(|x| (8.0 * x).round() / 8.0).collect()
}

fn run<E: Element>(isa: Isa, tolerance: f64) {
    let runtime = Runtime::new(isa);
    for s in shapes() {
        for n in [0, 1, 3] {
            let (from, to) = (s.h * s.w * s.channels, s.out_h() * s.out_w() * s.channels);
            let (x, g) = (eighths(n * from, 1), eighths(n * to, 2));
            let [y, dx] = naive(&s, n, &x, &g);
            let cast = |v: &[f64]| v.iter().map(|x| E::of(*x)).collect::<Vec<_>>();
            let back = |v: &[E]| v.iter().map(|x| x.f64()).collect::<Vec<_>>();
            let (x, g) = (cast(&x), cast(&g));
            let (mut out, mut winner) = (cast(&vec![f64::NAN; n * to]), vec![0; n * to]);
            pool::pool(&runtime, s, &x, &mut out, s.max.then_some(&mut winner));
            assert_close(&format!("{isa:?} {s:?} output"), &back(&out), &y, tolerance);
            let mut alone = out.clone();
            pool::pool(&runtime, s, &x, &mut alone, None);
            assert_eq!(alone, out, "{isa:?} {s:?} without winners");
            let mut d = cast(&vec![f64::NAN; n * from]);
            pool::pool_gradient(s, &g, s.max.then_some(&winner), &mut d);
            assert_close(&format!("{isa:?} {s:?} gradient"), &back(&d), &dx, tolerance);
        }
    }
}

#[test]
fn equals_the_naive_loop() {
    for isa in Isa::available() {
        run::<f64>(isa, 1e-15);
        run::<f32>(isa, 2e-7);
        run::<bf16>(isa, 4e-3);
    }
}

/// A NaN wins, as in PyTorch.
#[test]
fn a_nan_is_not_lost() {
    for isa in Isa::available() {
        let s = PoolShape { h: 2, w: 2, channels: 1, window: Window::new(2, 2), max: true };
        for at in 0..4 {
            let mut x = [1f32, 2.0, 3.0, 4.0];
            x[at] = f32::NAN;
            let (mut y, mut winner) = ([0f32], [0]);
            pool::pool(&Runtime::new(isa), s, &x, &mut y, Some(&mut winner));
            assert!(y[0].is_nan() && winner[0] as usize == at);
            y[0] = 0.0;
            pool::pool(&Runtime::new(isa), s, &x, &mut y, None);
            assert!(y[0].is_nan());
        }
    }
}

#[test]
fn same_bits_in_any_batch_and_on_any_number_of_threads() {
    for isa in Isa::available() {
        for s in shapes() {
            let (from, to, n) = (s.h * s.w * s.channels, s.out_h() * s.out_w() * s.channels, 5);
            let cast = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
            let (x, g) = (cast(numbers(n * from, 1)), cast(numbers(n * to, 2)));
            let run = |x: &[f32], g: &[f32]| {
                let (mut y, mut winner, mut dx) = (vec![0f32; g.len()], vec![0; g.len()], vec![0f32; x.len()]);
                pool::pool(&Runtime::new(isa), s, x, &mut y, s.max.then_some(&mut winner));
                pool::pool_gradient(s, g, s.max.then_some(&winner), &mut dx);
                (y, dx)
            };
            let threads = |t| rayon::ThreadPoolBuilder::new().num_threads(t).build().unwrap().install(|| run(&x, &g));
            let one = threads(1);
            assert_eq!(one, threads(3), "{isa:?} {s:?}");
            for image in 0..n {
                let alone = run(&x[image * from..][..from], &g[image * to..][..to]);
                assert_eq!(alone.0, one.0[image * to..][..to], "{isa:?} {s:?} image {image}");
                assert_eq!(alone.1, one.1[image * from..][..from], "{isa:?} {s:?} image {image}");
            }
        }
    }
}
