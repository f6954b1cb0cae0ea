//! The device's kernels, compiled for the host: each by its definition over a sweep of shapes, and whole graphs beside
//! the CPU's own stage and central differences. On a machine with a card the same graphs run there too
//! (`cargo test -p kernels --features cuda,cuda-on-host --test device`).

mod graphs;

use candle_core::{DType, Device, Result, Tensor, Var};
use graphs::{images, networks, parameters, running};
use half::bf16;
use kernels::device::{Trunk, ops};
use kernels::pool::{PoolShape, Window};
use kernels::sgd::{SgdStep, sgd};
use kernels::stage::{Memory, Mode, Precision, Stage};
use kernels::task::ConvShape;
use kernels::{Graph, Isa};
use testkit::{assert_close, deviation, gradcheck, numbers, tensor, values};

/// Where the kernels run in this build.
fn devices() -> Vec<Device> {
    testkit::devices().into_iter().filter(kernels::device::serves).collect()
}

fn weighted(y: &Tensor) -> Result<Tensor> {
    let y = y.to_dtype(DType::F64)?;
    (&y * tensor(y.dims(), 13, DType::F64, y.device())?)?.sum_all()
}

/// Output, statistics, and the gradients of images and parameters.
fn outcome(
    run: impl Fn(&Tensor, &Tensor) -> Result<(Tensor, Vec<Vec<f64>>)>,
    x: &Tensor,
    p: &Tensor,
) -> Result<[Vec<f64>; 4]> {
    let (x, p) = (Var::from_tensor(x)?, Var::from_tensor(p)?);
    let (y, statistics) = run(&x, &p)?;
    let grads = weighted(&y)?.backward()?;
    let of = |v: &Var| values(grads.get(v).expect("used"));
    Ok([values(&y)?, statistics.concat(), of(&x)?, of(&p)?])
}

fn of_trunk(trunk: &Trunk, g: &Graph, x: &Tensor, mode: Mode, precision: Precision) -> Result<[Vec<f64>; 4]> {
    let device = x.device();
    let p = Tensor::new(parameters(g), device)?.to_dtype(x.dtype())?;
    let running = Tensor::new(running(g), device)?;
    let run = |x: &Tensor, p: &Tensor| {
        let (y, batches) = trunk.forward(x, p, &running, mode, precision)?;
        let each = batches.iter().flat_map(|b| [values(&b.mean), values(&b.var)]);
        Ok((y, each.collect::<Result<Vec<_>>>()?))
    };
    outcome(run, x, &p)
}

fn of_stage(g: &Graph, x: &Tensor, mode: Mode) -> Result<[Vec<f64>; 4]> {
    let stage = Stage::new(g.clone(), &Memory::new(Isa::Portable));
    let (p, running) = (Tensor::new(parameters(g), &Device::Cpu)?, running(g));
    let run = |x: &Tensor, p: &Tensor| {
        let (y, statistics) = stage.forward(x, p, &running, mode, Precision::Full)?;
        Ok((y, statistics.into_iter().flat_map(|s| [s.mean, s.var]).collect()))
    };
    outcome(run, x, &p)
}

const PARTS: [&str; 4] = ["output", "statistics", "gradient of the images", "gradient of the parameters"];

#[test]
fn a_trunk_is_the_stage() -> Result<()> {
    for device in devices() {
        for (which, g) in networks().into_iter().enumerate() {
            for (mode, n) in [(Mode::Train, 4), (Mode::Eval, 4), (Mode::Train, 1), (Mode::Eval, 3)] {
                let x = images(&g, n, DType::F64)?;
                let expected = of_stage(&g, &x, mode)?;
                let trunk = Trunk::new(g.clone());
                let x = x.to_device(&device)?;
                for (trunk, how) in [(trunk.clone(), "at once"), (trunk.clone().with_windows(1), "image by image")] {
                    let found = of_trunk(&trunk, &g, &x, mode, Precision::F32)?;
                    for ((part, found), expected) in PARTS.iter().zip(&found).zip(&expected) {
                        assert_close(&format!("{which} {mode:?} {n} {how}: {part}"), found, expected, 1e-10);
                    }
                }
                // Batches of 1 and 3 images measure too little for a small type to follow.
                if n < 4 {
                    continue;
                }
                let x = x.to_dtype(DType::F32)?;
                let check = |precision, expected: &[Vec<f64>; 4], tolerance| -> Result<()> {
                    let found = of_trunk(&trunk, &g, &x, mode, precision)?;
                    for ((part, found), expected) in PARTS.iter().zip(&found).zip(expected) {
                        let off = deviation(found, expected);
                        assert!(off < tolerance, "{which} {mode:?} {precision:?}: {part} is off by {off:.1e}");
                    }
                    Ok(())
                };
                check(Precision::F32, &expected, 2e-4)?;
                // How far bf16 is from the truth is the network's affair; a card's is near the host's.
                check(Precision::Bf16, &expected, 0.5)?;
                if !device.is_cpu() {
                    let host = of_trunk(&trunk, &g, &x.to_device(&Device::Cpu)?, mode, Precision::Bf16)?;
                    check(Precision::Bf16, &host, 0.15)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_are_central_differences() -> Result<()> {
    for (g, device) in networks().into_iter().flat_map(|g| devices().into_iter().map(move |d| (g.clone(), d))) {
        let trunk = Trunk::new(g.clone());
        let (p, x) = (Tensor::new(parameters(&g), &device)?, images(&g, 4, DType::F64)?.to_device(&device)?);
        let running = Tensor::new(running(&g), &device)?;
        for mode in [Mode::Train, Mode::Eval] {
            let loss = |x: &Tensor, p: &Tensor| weighted(&trunk.forward(x, p, &running, mode, Precision::F32)?.0);
            let worst = gradcheck(&p, 300, 1e-6, |p| loss(&x, p))?;
            assert!(worst < 1e-6, "{mode:?}: parameters {worst:.1e}");
            let worst = gradcheck(&x, 100, 1e-6, |x| loss(x, &p))?;
            assert!(worst < 1e-6, "{mode:?}: images {worst:.1e}");
        }
    }
    Ok(())
}

/// Same numbers, same bits: nothing is added in an order of chance.
#[test]
fn two_runs_have_the_same_bits() -> Result<()> {
    for device in devices() {
        for g in networks() {
            let (trunk, x) = (Trunk::new(g.clone()), images(&g, 4, DType::F32)?.to_device(&device)?);
            let once = of_trunk(&trunk, &g, &x, Mode::Train, Precision::Bf16)?;
            assert!(once == of_trunk(&trunk, &g, &x, Mode::Train, Precision::Bf16)?);
        }
    }
    Ok(())
}

/// (h, w, c, k, stride, padding): every way a window lies over a border, with channels that go singly and together.
fn sweep() -> Vec<ConvShape> {
    let mut all = Vec::new();
    for (h, w) in [(1, 1), (5, 4), (8, 9)] {
        for c_in in [1, 3, 4, 8, 20] {
            for (k, stride, padding) in
                [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (3, 3, 0), (5, 2, 2), (7, 2, 3), (3, 1, 2)]
            {
                if h.min(w) + 2 * padding >= k {
                    all.push(ConvShape { h, w, c_in, c_out: 6, k, stride, padding });
                }
            }
        }
    }
    all
}

#[test]
fn windows_are_rows_and_rows_go_back_where_they_came_from() -> Result<()> {
    for device in devices() {
        for s in sweep() {
            let (n, oh, ow, c) = (2, s.out_h(), s.out_w(), s.c_in);
            let x = numbers(n * s.h * s.w * c, 1);
            let g = numbers(n * oh * ow * s.k * s.k * c, 2);
            let (mut rows, mut back) = (vec![0.0; g.len()], vec![0.0; x.len()]);
            for (i, row) in rows.iter_mut().enumerate() {
                let (channel, tap, at) = (i % c, i / c % (s.k * s.k), i / c / (s.k * s.k));
                let (image, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
                let (y, z) = (oy * s.stride + tap / s.k, ox * s.stride + tap % s.k);
                if (s.padding..s.h + s.padding).contains(&y) && (s.padding..s.w + s.padding).contains(&z) {
                    let from = ((image * s.h + y - s.padding) * s.w + z - s.padding) * c + channel;
                    *row = x[from];
                    back[from] += g[i];
                }
            }
            let t = |v: &[f64], shape: (usize, usize, usize, usize)| Tensor::from_slice(v, shape, &device);
            let (x, g) = (t(&x, (n, s.h, s.w, c))?, Tensor::from_slice(&g, (n * oh * ow, s.k * s.k * c), &device)?);
            for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 2e-2)] {
                let found = ops::im2col(&x.to_dtype(dtype)?, &s)?;
                let expected = Tensor::new(rows.as_slice(), &device)?.to_dtype(dtype)?;
                assert_eq!(values(&found)?, values(&expected)?, "{s:?} {dtype:?}");
                let found = ops::col2im(&g.to_dtype(dtype)?, &s, n)?;
                assert_eq!(found.dims4()?, (n, s.h, s.w, c));
                assert_close(&format!("{s:?} {dtype:?}"), &values(&found)?, &back, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn weights_are_packed_and_unpacked() -> Result<()> {
    for device in devices() {
        for s in sweep() {
            let weight = numbers(s.weight_len(), 3);
            let t = Tensor::new(weight.as_slice(), &device)?;
            let packed = ops::pack_weight(&t, &s, DType::F64)?;
            let expected = t.reshape((s.c_out, s.c_in, s.k * s.k))?.permute((2, 1, 0))?.contiguous()?;
            assert_eq!(values(&packed)?, values(&expected)?, "{s:?}");
            let all = Tensor::zeros(s.weight_len() + 7, DType::F64, &device)?;
            ops::unpack_weight(&packed, &s, &all.narrow(0, 5, s.weight_len())?)?;
            assert_eq!(values(&all)?, [vec![0.0; 5], weight, vec![0.0; 2]].concat(), "{s:?}");
        }
    }
    Ok(())
}

/// Every kind of f32, ties and what is no number among them, is rounded as `half` does.
#[test]
fn bf16_is_rounded_to_the_nearest() -> Result<()> {
    let mut bits: Vec<u32> = (0..1u32 << 16).map(|i| i.wrapping_mul(65_537)).collect();
    for high in [0u32, 1, 0x3f80, 0x7f7f, 0x7f80, 0x8000, 0xff7f] {
        bits.extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
    }
    let numbers: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
    let s = ConvShape { h: 1, w: 1, c_in: numbers.len(), c_out: 1, k: 1, stride: 1, padding: 0 };
    for device in devices() {
        let packed = ops::pack_weight(&Tensor::new(numbers.as_slice(), &device)?, &s, DType::BF16)?;
        let found = packed.flatten_all()?.to_vec1::<bf16>()?;
        for (x, found) in numbers.iter().zip(found) {
            let expected = bf16::from_f32(*x);
            assert!(found.to_bits() == expected.to_bits() || x.is_nan() && found.is_nan(), "{x:?}: {found:?}");
        }
    }
    Ok(())
}

/// BatchNorm of sizes at which spans of rows end early, and of an offset at which a naive variance has no digits left.
#[test]
fn batches_are_measured_by_the_definition() -> Result<()> {
    for device in devices() {
        for (n, h, w, c) in [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 19, 33), (64, 16, 16, 70)] {
            let x: Vec<f64> = numbers(n * h * w * c, 4).into_iter().map(|x| x + 1000.0).collect();
            let (rows, gamma_beta) = ((n * h * w) as f64, numbers(2 * c, 5));
            let mean: Vec<f64> = (0..c).map(|k| x.iter().skip(k).step_by(c).sum::<f64>() / rows).collect();
            let var: Vec<f64> = (0..c)
                .map(|k| x.iter().skip(k).step_by(c).map(|x| (x - mean[k]).powi(2)).sum::<f64>() / rows)
                .collect();
            let x = Tensor::from_vec(x, (n, h, w, c), &device)?;
            let gamma_beta = Tensor::new(gamma_beta, &device)?;
            for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-3)] {
                let table = ops::measure(&x.to_dtype(dtype)?, &gamma_beta.to_dtype(dtype)?, 1e-5)?;
                let what = format!("{n} {h} {w} {c} {dtype:?}");
                assert_close(&what, &values(&table.get(0)?)?, &mean, tolerance * 1e-2);
                assert_close(&what, &values(&table.get(1)?)?, &var, tolerance);
                let known = Tensor::new([mean.as_slice(), &var].concat(), &device)?.to_dtype(dtype)?;
                let known = ops::known(&known, &gamma_beta.to_dtype(dtype)?, 1e-5, dtype)?;
                assert_close(&what, &values(&table)?, &values(&known)?, tolerance);
            }
        }
    }
    Ok(())
}

/// A maximum's gradient goes to the first of equal ones, a mean's to all; windows are cut by both borders.
#[test]
fn pools_are_the_stages() -> Result<()> {
    for device in devices() {
        for max in [true, false] {
            for (k, stride, padding, ceil_mode) in
                [(2, 2, 0, false), (3, 2, 1, false), (3, 2, 0, true), (2, 3, 1, true), (3, 1, 1, false)]
            {
                let window = Window { k, stride, padding, ceil_mode };
                let (h, w, channels) = (7, 8, 5);
                let s = PoolShape { h, w, channels, window, max };
                let mut g = Graph::new(kernels::Shape { channels, h, w });
                g.pool_window(kernels::Value(0), window, max);
                // Few different numbers, so that many are equal.
                let x = (tensor(&[3, channels, h, w], 6, DType::F64, &Device::Cpu)? * 3.0)?.round()?;
                let [y, _, of_x, _] = of_stage(&Graph { ..g.clone() }, &x, Mode::Eval)?;
                let last = |t: &Tensor| t.permute((0, 2, 3, 1))?.contiguous();
                let first = |t: &Tensor| values(&t.permute((0, 3, 1, 2))?.contiguous()?);
                let nhwc = last(&x.to_device(&device)?)?;
                let found = ops::pool(&nhwc, &s)?;
                let what = format!("{window:?} {max}");
                assert_close(&what, &first(&found)?, &y, 1e-14);
                let gradient = tensor(&[3, channels, s.out_h(), s.out_w()], 13, DType::F64, &device)?;
                assert_close(&what, &first(&ops::pool_back(&nhwc, &last(&gradient)?, &s)?)?, &of_x, 1e-14);
            }
        }
    }
    Ok(())
}

#[test]
fn a_step_of_sgd_is_the_cpus() -> Result<()> {
    for device in devices() {
        for nesterov in [false, true] {
            let step = SgdStep { lr: 0.1, momentum: 0.9, nesterov, weight_decay: 5e-4 };
            let (mut p, mut buffer) = (numbers(1001, 7), numbers(1001, 8));
            let t = |v: &[f64]| Tensor::new(v, &device);
            let (on_p, on_buffer) = (t(&p)?, t(&buffer)?);
            for seed in 9..12 {
                let g = numbers(1001, seed);
                sgd(step, &g, &mut buffer, &mut p);
                ops::sgd(step, &t(&g)?, &on_buffer, &on_p)?;
            }
            assert_close("parameters", &values(&on_p)?, &p, 1e-14);
            assert_close("buffer", &values(&on_buffer)?, &buffer, 1e-14);
        }
    }
    Ok(())
}

#[test]
fn what_no_kernel_takes_is_named() -> Result<()> {
    let device = &devices()[0];
    let s = ConvShape { h: 4, w: 4, c_in: 2, c_out: 2, k: 3, stride: 1, padding: 1 };
    let error = ops::im2col(&Tensor::zeros((1, 4, 4, 2), DType::F16, device)?, &s).unwrap_err().to_string();
    assert!(error.contains("f32, f64 and bf16"), "{error}");
    let strided = Tensor::zeros((1, 2, 4, 4), DType::F32, device)?.permute((0, 2, 3, 1))?;
    let error = ops::im2col(&strided, &s).unwrap_err().to_string();
    assert!(error.contains("contiguous"), "{error}");
    let g = &networks()[0];
    let running = Tensor::new(running(g), device)?;
    let p = Tensor::new(parameters(g), device)?;
    let wrong = Tensor::zeros((1, 3, 8, 7), DType::F64, device)?;
    let error =
        Trunk::new(g.clone()).forward(&wrong, &p, &running, Mode::Eval, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("the network takes (3, 9, 7)"), "{error}");
    Ok(())
}
