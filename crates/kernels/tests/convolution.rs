//! Both convolution algorithms against a naive loop, on every instruction set and number of threads.

use half::bf16;
use std::sync::Arc;

use kernels::bias;
use kernels::conv::{self, Algorithm, ConvShape, Packed};
use kernels::operand::{Affine, After, Gradient, Input, NormGradient, Within};
use kernels::runtime::Runtime;
use kernels::simd::{Element, Isa};
use testkit::{assert_close, numbers};

/// The definition, in f64: output, input gradient, weight gradient.
fn naive(s: &ConvShape, n: usize, x: &[f64], w: &[f64], g: &[f64]) -> [Vec<f64>; 3] {
    let (oh, ow) = (s.out_h(), s.out_w());
    let mut y = vec![0.0; n * oh * ow * s.c_out];
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for (i, y) in y.iter_mut().enumerate() {
        let (o, ox, oy, image) = (i % s.c_out, i / s.c_out % ow, i / s.c_out / ow % oh, i / s.c_out / ow / oh);
        for ky in 0..s.k {
            for kx in 0..s.k {
                let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
                if iy < s.padding || ix < s.padding || iy - s.padding >= s.h || ix - s.padding >= s.w {
                    continue;
                }
                let pixel = ((image * s.h + iy - s.padding) * s.w + ix - s.padding) * s.c_in;
                for c in 0..s.c_in {
                    let wi = ((o * s.c_in + c) * s.k + ky) * s.k + kx;
                    *y += x[pixel + c] * w[wi];
                    dx[pixel + c] += g[i] * w[wi];
                    dw[wi] += g[i] * x[pixel + c];
                }
            }
        }
    }
    [y, dx, dw]
}

fn cast<E: Element>(v: &[f64]) -> Vec<E> {
    v.iter().map(|x| E::of(*x)).collect()
}
fn back<E: Element>(v: &[E]) -> Vec<f64> {
    v.iter().map(|x| x.f64()).collect()
}

fn threads() -> usize {
    rayon::current_num_threads()
}

fn shapes() -> Vec<(ConvShape, usize)> {
    let s = |h, w, c_in, c_out, k, stride, padding| ConvShape { h, w, c_in, c_out, k, stride, padding };
    vec![
        (s(8, 8, 3, 16, 3, 1, 1), 2),
        (s(7, 7, 16, 10, 3, 1, 1), 3),
        (s(1, 1, 8, 8, 3, 1, 1), 1),
        (s(5, 9, 20, 36, 3, 1, 1), 2),
        (s(4, 4, 33, 17, 3, 1, 1), 9),
        (s(32, 32, 16, 32, 3, 1, 1), 1),
        (s(9, 7, 12, 24, 3, 2, 1), 2),
        (s(8, 8, 32, 64, 1, 2, 0), 2),
        (s(6, 6, 17, 5, 1, 1, 0), 2),
        (s(9, 11, 32, 96, 1, 1, 0), 4),
        (s(13, 12, 3, 64, 7, 2, 3), 2),
        (s(7, 11, 3, 10, 5, 3, 2), 2),
        (s(8, 8, 8, 8, 3, 1, 0), 1),
        (s(5, 6, 9, 7, 1, 1, 1), 2),
        (s(5, 4, 8, 20, 3, 1, 2), 3),
        (s(8, 8, 64, 128, 3, 1, 1), 0),
    ]
}

/// What `E` can hold of these numbers.
fn rounded<E: Element>(v: Vec<f64>) -> Vec<f64> {
    v.into_iter().map(|x| E::of(x).f64()).collect()
}

fn run<E: Element>(isa: Isa, tolerance: impl Fn(Algorithm) -> f64) {
    for (s, n) in shapes() {
        for algorithm in [Algorithm::Direct, Algorithm::Winograd] {
            if algorithm == Algorithm::Winograd && (s.k, s.stride, s.padding) != (3, 1, 1) {
                continue;
            }
            let tolerance = tolerance(algorithm);
            let [x, w, g, r] =
                [(n * s.input_len(), 1), (s.weight_len(), 2), (n * s.output_len(), 3), (n * s.output_len(), 4)]
                    .map(|(len, seed)| rounded::<E>(numbers(len, seed)));
            let [mut y, dx, dw] = naive(&s, n, &x, &w, &g);
            y.iter_mut().zip(&r).for_each(|(y, r)| *y += r);
            let (xe, ge, re) = (cast::<E>(&x), cast::<E>(&g), cast::<E>(&r));
            let packed = Packed::new(&Arc::new(Runtime::new(isa)), &s, algorithm, &cast::<E::Wide>(&w), true);
            let runtime = Runtime::new(isa);
            let mut out = vec![E::of(f64::NAN); y.len()];
            let input = Input { u: &xe, affine: None };
            let residual = After { residual: Some(&re), ..After::default() };
            conv::forward(&runtime, &s, input, &packed, residual, &mut out, None, threads());
            let what = format!("{isa:?} {algorithm:?} {s:?} n {n}");
            assert_close(&format!("{what} output"), &back(&out), &y, tolerance);
            let b = rounded::<E::Wide>(numbers(s.c_out, 5));
            let be = cast::<E::Wide>(&b);
            let (scale, shift) = (rounded::<E::Wide>(numbers(s.c_out, 6)), rounded::<E::Wide>(numbers(s.c_out, 7)));
            let (scale_e, shift_e) = (cast::<E::Wide>(&scale), cast::<E::Wide>(&shift));
            let affine = Affine { scale: &scale_e, shift: &shift_e, relu: true };
            let all = After { bias: Some(&be), affine: Some(affine), residual: Some(&re), relu: true, within: None };
            conv::forward(&runtime, &s, input, &packed, all, &mut out, None, threads());
            let finished = y.iter().zip(&r).enumerate().map(|(i, (y, r))| {
                let c = i % s.c_out;
                (((y - r + b[c]) * scale[c] + shift[c]).max(0.0) + r).max(0.0)
            });
            assert_close(&format!("{what} finished"), &back(&out), &finished.collect::<Vec<_>>(), tolerance);
            // The same as a part of wider pixels, whose other channels are left alone.
            let within = Within { channels: s.c_out + 5, first: 3 };
            let mut wider = vec![E::of(7.0); n * s.output_len() / s.c_out * within.channels];
            let part = After { within: Some(within), ..all };
            conv::forward(&runtime, &s, input, &packed, part, &mut wider, None, threads());
            for (pixel, out) in wider.chunks(within.channels).zip(out.chunks(s.c_out)) {
                assert_eq!(pixel[3..][..s.c_out], *out, "{what} within wider pixels");
                assert!(pixel[..3].iter().chain(&pixel[3 + s.c_out..]).all(|x| *x == E::of(7.0)), "{what}");
            }
            let (mut dxe, mut dwe) = (vec![E::of(1.0); dx.len()], vec![E::Wide::of(f64::NAN); dw.len()]);
            let gradient = Gradient::stored(&ge);
            conv::backward(&runtime, &s, input, gradient, &packed, Some((&mut dxe, true)), &mut dwe, None);
            let dx1: Vec<f64> = dx.iter().map(|d| d + 1.0).collect();
            assert_close(&format!("{what} input gradient"), &back(&dxe), &dx1, tolerance);
            assert_close(&format!("{what} weight gradient"), &back(&dwe), &dw, tolerance);
            conv::backward(&runtime, &s, input, gradient, &packed, None, &mut dwe, None);
            assert_close(&format!("{what} weight gradient alone"), &back(&dwe), &dw, tolerance);
        }
    }
}

#[test]
fn equals_the_naive_loop_in_f64() {
    run::<f64>(Isa::Portable, |_| 1e-13);
}

#[test]
fn equals_the_naive_loop_in_f32_on_every_instruction_set() {
    println!("instruction sets here: {:?}", Isa::available());
    for isa in Isa::available() {
        run::<f32>(isa, |algorithm| if algorithm == Algorithm::Winograd { 4e-6 } else { 1e-6 });
    }
}

/// In bf16 an output is rounded to 8 bits (2e-3 of itself), and Winograd's transformed operands are too: 1 % of the outputs' root
/// mean square, up to 4 % of the largest at worst.
#[test]
fn equals_the_naive_loop_in_bf16_portably_and_with_each_of_the_processors_own_products() {
    let own = Isa::available().into_iter().filter(|isa| isa.has_bf16());
    for isa in [Isa::Portable].into_iter().chain(own) {
        println!("bf16 on {isa:?}");
        run::<bf16>(isa, |algorithm| if algorithm == Algorithm::Winograd { 4e-2 } else { 4e-3 });
    }
}

/// BatchNorm and ReLU applied on the way in, and the gradients of BatchNorm and of a ReLU behind formed on the way in,
/// equal the same operations done beforehand; the bias's gradient is the sum over the pixels.
#[test]
fn operands_on_the_fly_equal_stored_ones() {
    for (s, n) in shapes() {
        for isa in Isa::available() {
            let x: Vec<f32> = cast(&numbers(n * s.input_len(), 1));
            let u: Vec<f32> = cast(&numbers(n * s.output_len(), 5));
            let g: Vec<f32> = cast(&numbers(n * s.output_len(), 3));
            let w: Vec<f32> = cast(&numbers(s.weight_len(), 2));
            let v = |len, seed| cast::<f32>(&numbers(len, seed));
            let (scale, shift) = (v(s.c_in, 6), v(s.c_in, 7));
            let (oscale, oshift) = (v(s.c_out, 8), v(s.c_out, 9));
            let behind: Vec<f32> = v(n * s.output_len(), 13);
            let (slope, spread, offset) = (v(s.c_out, 10), v(s.c_out, 11), v(s.c_out, 12));
            let affine = Affine { scale: &scale, shift: &shift, relu: true };
            let lazy = Input { u: &x, affine: Some(affine) };
            let stored_x: Vec<f32> =
                x.iter().enumerate().map(|(i, x)| x.mul_add(scale[i % s.c_in], shift[i % s.c_in]).max(0.0)).collect();
            let norm = NormGradient {
                u: &u,
                affine: Affine { scale: &oscale, shift: &oshift, relu: true },
                slope: &slope,
                spread: &spread,
                offset: &offset,
            };
            let stored_g: Vec<f32> = (0..g.len())
                .map(|i| {
                    let c = i % s.c_out;
                    let open = u[i].mul_add(oscale[c], oshift[c]) > 0.0;
                    let g = if open { g[i] } else { 0.0 };
                    let g = g * slope[c] + (u[i] * spread[c] + offset[c]);
                    if behind[i] > 0.0 { g } else { 0.0 }
                })
                .collect();
            let algorithm = s.algorithm::<f32>(isa);
            let packed = Packed::new(&Arc::new(Runtime::new(isa)), &s, algorithm, &w, true);
            let runtime = Runtime::new(isa);
            let outcome = |input, gradient| {
                let mut y = vec![0f32; n * s.output_len()];
                conv::forward(&runtime, &s, input, &packed, After::default(), &mut y, None, threads());
                let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; w.len()]);
                conv::backward(&runtime, &s, input, gradient, &packed, Some((&mut dx, false)), &mut dw, None);
                [back(&y), back(&dx), back(&dw)]
            };
            let lazy_g = Gradient { g: &g, norm: Some(norm), relu: Some(&behind) };
            let fly = outcome(lazy, lazy_g);
            let stored = outcome(Input { u: &stored_x, affine: None }, Gradient::stored(&stored_g));
            for (fly, stored) in fly.iter().zip(&stored) {
                assert_close(&format!("{isa:?} {s:?}"), fly, stored, 2e-6);
            }
            let mut sums = vec![0f32; s.c_out];
            bias::gradient(isa, lazy_g, s.output_len(), &mut sums);
            let expected: Vec<f64> =
                (0..s.c_out).map(|c| stored_g.iter().skip(c).step_by(s.c_out).map(|g| f64::from(*g)).sum()).collect();
            assert_close(&format!("{isa:?} {s:?} bias gradient"), &back(&sums), &expected, 2e-6);
        }
    }
}

/// An image's output does not depend on its batch; no bit depends on the number of threads.
#[test]
fn same_bits_in_any_batch_and_on_any_number_of_threads() {
    for isa in Isa::available() {
        for (s, _) in shapes() {
            for algorithm in [Algorithm::Direct, s.algorithm::<f32>(isa)] {
                same_bits::<f32>(isa, &s, algorithm);
                same_bits::<bf16>(isa, &s, algorithm);
            }
        }
    }
}

fn same_bits<E: Element>(isa: Isa, s: &ConvShape, algorithm: Algorithm) {
    let n = 5;
    let (i, o) = (s.input_len(), s.output_len());
    let (x, g) = (cast::<E>(&numbers(n * i, 1)), cast::<E>(&numbers(n * o, 3)));
    let packed =
        Packed::new(&Arc::new(Runtime::new(isa)), s, algorithm, &cast::<E::Wide>(&numbers(s.weight_len(), 2)), true);
    let run = |x: &[E], g: &[E]| {
        let runtime = Runtime::new(isa);
        let input = Input { u: x, affine: None };
        let (mut y, mut dx) = (vec![E::default(); g.len()], vec![E::default(); x.len()]);
        let bias = cast::<E::Wide>(&numbers(s.c_out, 5));
        let after = After { bias: Some(&bias), relu: true, ..After::default() };
        conv::forward(&runtime, s, input, &packed, after, &mut y, None, threads());
        let mut dw = vec![E::Wide::default(); s.weight_len()];
        let gradient = Gradient::stored(g);
        conv::backward(&runtime, s, input, gradient, &packed, Some((&mut dx, false)), &mut dw, None);
        let mut db = vec![E::Wide::default(); s.c_out];
        bias::gradient(isa, gradient, o, &mut db);
        (y, dx, dw, db)
    };
    let threads = |t: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(t).build().unwrap();
        pool.install(|| run(&x, &g))
    };
    let one = threads(1);
    assert_eq!(one, threads(2), "{isa:?} {algorithm:?} {s:?}");
    assert_eq!(one, threads(3), "{isa:?} {algorithm:?} {s:?}");
    // More threads than images: images are cut into rows.
    assert_eq!(one, threads(11), "{isa:?} {algorithm:?} {s:?}");
    for image in 0..n {
        let alone = run(&x[image * i..][..i], &g[image * o..][..o]);
        assert_eq!(alone.0, one.0[image * o..][..o], "{isa:?} {algorithm:?} {s:?} image {image}");
        assert_eq!(alone.1, one.1[image * i..][..i], "{isa:?} {algorithm:?} {s:?} image {image}");
    }
}
