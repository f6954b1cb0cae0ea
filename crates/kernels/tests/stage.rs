//! Whole graphs: gradients against central differences, and against candle's own ops.

mod graphs;

use candle_core::{DType, Device, Result, Tensor, Var};
use graphs::{biased, images, network, networks, parameters, running};
use kernels::graph::{Graph, Init, Node, Shape};
use kernels::stage::{Memory, Mode, Stage};
use kernels::{Isa, Precision, Value};
use testkit::{assert_close, gradcheck, tensor, values};

fn weighted(y: &Tensor) -> Result<Tensor> {
    (y * tensor(y.dims(), 13, y.dtype(), y.device())?)?.sum_all()
}

#[test]
fn gradients_equal_central_differences_in_train_and_eval_mode() -> Result<()> {
    for g in networks() {
        let (stage, device) = (Stage::new(g.clone(), &Memory::new(Isa::Portable)), Device::Cpu);
        let p = Tensor::new(parameters(&g), &device)?;
        let x = images(&g, 4, DType::F64)?;
        let running = running(&g);
        for mode in [Mode::Train, Mode::Eval] {
            let worst =
                gradcheck(&p, 400, 1e-6, |p| weighted(&stage.forward(&x, p, &running, mode, Precision::F32)?.0))?;
            assert!(worst < 1e-6, "{mode:?}: parameters {worst:.1e}");
            let worst =
                gradcheck(&x, 150, 1e-6, |x| weighted(&stage.forward(x, &p, &running, mode, Precision::F32)?.0))?;
            assert!(worst < 1e-6, "{mode:?}: images {worst:.1e}");
        }
    }
    Ok(())
}

/// A graph cut into three stages has the gradients of the whole.
#[test]
fn stages_compose() -> Result<()> {
    for g in networks() {
        let memory = Memory::new(Isa::best());
        let whole = Stage::new(g.clone(), &memory);
        let p = Var::new(parameters(&g), &Device::Cpu)?;
        let x = images(&g, 3, DType::F64)?;
        let running = running(&g);
        let (y, statistics) = whole.forward(&x, &p, &running, Mode::Train, Precision::F32)?;
        let expected = values(weighted(&y)?.backward()?.get(&p).unwrap())?;
        let (mut from, mut y2, mut statistics2) = (Value(0), x, vec![]);
        for (_, to) in &g.cuts {
            let stage = Stage::new(g.between(from, *to).unwrap(), &memory);
            let (out, s) = stage.forward(&y2, &p, &running, Mode::Train, Precision::F32)?;
            statistics2.extend(s);
            (from, y2) = (*to, out);
        }
        assert_eq!(values(&y)?, values(&y2)?);
        assert_eq!(statistics, statistics2);
        let composed = values(weighted(&y2)?.backward()?.get(&p).unwrap())?;
        assert_close("composed", &composed, &expected, 1e-12);
    }
    Ok(())
}

/// The same bits on 1, 2 and 3 threads, through a whole network and back, on every instruction set.
#[test]
fn same_bits_on_any_number_of_threads() -> Result<()> {
    for g in networks() {
        for isa in Isa::available() {
            let run = |threads: usize| -> Result<(Vec<f64>, Vec<f64>)> {
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                    let stage = Stage::new(g.clone(), &Memory::new(isa));
                    let p = Var::from_tensor(&Tensor::new(parameters(&g), &Device::Cpu)?.to_dtype(DType::F32)?)?;
                    let x = images(&g, 37, DType::F32)?;
                    let (y, _) = stage.forward(&x, &p, &running(&g), Mode::Train, Precision::F32)?;
                    Ok((values(&y)?, values(weighted(&y)?.backward()?.get(&p).unwrap())?))
                })
            };
            let one = run(1)?;
            assert_eq!(one, run(2)?, "{isa:?}");
            assert_eq!(one, run(3)?, "{isa:?}");
        }
    }
    Ok(())
}

/// A pass of which nothing is kept takes a group of images at a time: the numbers are those of a recorded one, whatever
/// the number of groups and threads, and in bf16 too.
#[test]
fn groups_of_images_change_no_bit() -> Result<()> {
    for g in networks() {
        for (isa, precision) in Isa::available()
            .into_iter()
            .flat_map(|isa| [Precision::Full, Precision::F32, Precision::Bf16].map(|p| (isa, p)))
        {
            let stage = Stage::new(g.clone(), &Memory::new(isa));
            let p = Var::from_tensor(&Tensor::new(parameters(&g), &Device::Cpu)?.to_dtype(DType::F32)?)?;
            let eval = |x: &Tensor, p: &Tensor| values(&stage.forward(x, p, &running(&g), Mode::Eval, precision)?.0);
            for n in [1, 16, 97] {
                let x = images(&g, n, DType::F32)?;
                let recorded = eval(&x, p.as_tensor())?;
                for threads in [1, 2, 4] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let grouped = pool.install(|| eval(&x, &p.as_tensor().detach()))?;
                    assert!(grouped == recorded, "{isa:?} {precision:?}, {n} images, {threads} threads");
                }
                let last = eval(&x.narrow(0, n - 1, 1)?, &p.as_tensor().detach())?;
                assert!(recorded.ends_with(&last), "{isa:?} {precision:?}: the last of {n} images, alone");
            }
        }
    }
    Ok(())
}

/// BatchNorm with batch statistics against candle's own, value, statistics and gradient.
#[test]
fn batch_norm_equals_candles() -> Result<()> {
    use candle_nn::{BatchNormConfig, ModuleT, VarBuilder, VarMap, batch_norm};
    let device = Device::Cpu;
    let mut g = Graph::new(Shape { channels: 5, h: 4, w: 3 });
    g.batch_norm("bn", Value(0), false);
    let stage = Stage::new(g.clone(), &Memory::new(Isa::Portable));
    let x = Var::from_tensor(&tensor(&[6, 5, 4, 3], 1, DType::F64, &device)?)?;
    let p = Var::from_tensor(&tensor(&[10], 2, DType::F64, &device)?)?;
    let (y, statistics) = stage.forward(&x, &p, &[0.0; 10], Mode::Train, Precision::F32)?;
    let map = VarMap::new();
    let bn = batch_norm(
        5,
        BatchNormConfig { eps: 1e-5, momentum: 1.0, ..Default::default() },
        VarBuilder::from_varmap(&map, DType::F64, &device),
    )?;
    let data = map.data().lock().unwrap().clone();
    data["weight"].set(&p.narrow(0, 0, 5)?)?;
    data["bias"].set(&p.narrow(0, 5, 5)?)?;
    let theirs = bn.forward_t(&x, true)?;
    assert_close("output", &values(&y)?, &values(&theirs)?, 1e-12);
    let ours = values(weighted(&y)?.backward()?.get(&x).unwrap())?;
    let grads = weighted(&theirs)?.backward()?;
    assert_close("input gradient", &ours, &values(grads.get(&x).unwrap())?, 1e-10);
    assert_close("mean", &statistics[0].mean, &values(&data["running_mean"])?, 1e-12);
    let unbiased: Vec<f64> = statistics[0].var.iter().map(|v| v * 72.0 / 71.0).collect();
    assert_close("variance", &unbiased, &values(&data["running_var"])?, 1e-12);
    Ok(())
}

#[test]
fn no_images_and_wrong_sizes() -> Result<()> {
    let g = network();
    let stage = Stage::new(g.clone(), &Memory::new(Isa::best()));
    let p = Tensor::new(parameters(&g), &Device::Cpu)?.to_dtype(DType::F32)?;
    let none = Tensor::zeros((0, 3, 9, 7), DType::F32, &Device::Cpu)?;
    let (y, _) = stage.forward(&none, &p, &running(&g), Mode::Eval, Precision::F32)?;
    assert_eq!(y.dims4()?.0, 0);
    let wrong = Tensor::zeros((1, 3, 8, 7), DType::F32, &Device::Cpu)?;
    let error = stage.forward(&wrong, &p, &running(&g), Mode::Eval, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("(3, 8, 7)") && error.contains("(3, 9, 7)"), "{error}");
    let needed = g.parameters_end();
    let with = |len: usize| stage.forward(&none, &p.narrow(0, 0, len)?, &running(&g), Mode::Eval, Precision::F32);
    assert!(with(needed).is_ok());
    let error = with(needed - 1).unwrap_err().to_string();
    assert!(error.contains(&format!("{} parameters", needed - 1)), "{error}");
    Ok(())
}

/// In bf16 a whole network's gradient points where the f32 one does, and the processor's product gives the same bits on any
/// number of threads. Where there is no such product, bf16 is f32.
#[test]
fn bf16_trains_in_the_same_direction() -> Result<()> {
    for g in networks() {
        let run = |isa: Isa, precision: Precision, threads: usize| -> Result<Vec<f64>> {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let stage = Stage::new(g.clone(), &Memory::new(isa));
                let p = Var::from_tensor(&Tensor::new(parameters(&g), &Device::Cpu)?.to_dtype(DType::F32)?)?;
                let x = images(&g, 37, DType::F32)?;
                let (y, _) = stage.forward(&x, &p, &running(&g), Mode::Train, precision)?;
                values(weighted(&y)?.backward()?.get(&p).unwrap())
            })
        };
        assert_eq!(run(Isa::Portable, Precision::Bf16, 1)?, run(Isa::Portable, Precision::F32, 1)?);
        let (full, half) = (run(Isa::best(), Precision::Full, 2)?, run(Isa::best(), Precision::Bf16, 1)?);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&full, &half) / (dot(&full, &full) * dot(&half, &half)).sqrt();
        println!("cosine of the gradients in {:?} and in f32: {cosine:.5}", Isa::best());
        // Where a maximum or a ReLU is decided by less than bf16 can tell, the gradient takes another way.
        assert!(cosine > 0.95, "{cosine}");
        assert_eq!(half, run(Isa::best(), Precision::Bf16, 3)?);
    }
    Ok(())
}

/// Packed weights are kept while they do not change, and no longer: not even if they change in place.
#[test]
fn changed_weights_are_packed_anew() -> Result<()> {
    let g = biased();
    let stage = Stage::new(g.clone(), &Memory::new(Isa::best()));
    let x = images(&g, 2, DType::F32)?;
    let eval = |stage: &Stage, p: &Var, precision| {
        values(&stage.forward(&x, &p.as_tensor().detach(), &running(&g), Mode::Eval, precision)?.0)
    };
    let p = Var::from_tensor(&Tensor::new(parameters(&g), &Device::Cpu)?.to_dtype(DType::F32)?)?;
    let mut seen = vec![];
    for scale in [1.0, -0.0, 0.7, 0.7] {
        p.set(&(Tensor::new(parameters(&g), &Device::Cpu)? * scale)?.to_dtype(DType::F32)?)?;
        for precision in [Precision::F32, Precision::Full, Precision::Bf16] {
            let fresh = eval(&Stage::new(g.clone(), &Memory::new(Isa::best())), &p, precision)?;
            assert_eq!(eval(&stage, &p, precision)?, fresh, "{precision:?}");
            assert_eq!(eval(&stage, &p, precision)?, fresh, "{precision:?}, once more");
            seen.push(fresh);
        }
    }
    assert_ne!(seen[0], seen[6]);
    assert_eq!(seen[6], seen[9]);
    Ok(())
}

/// PyTorch's names and order, biases that start at zero, and a ReLU that becomes part of its convolution unless the
/// network can be cut in between.
#[test]
fn biased_convolutions_are_named_as_in_pytorch() {
    let g = biased();
    let first: Vec<_> = g.parameters.iter().take(4).map(|e| (e.name.as_str(), e.shape.clone(), e.offset)).collect();
    let expected = [
        ("features.0.weight", vec![8, 3, 5, 5], 0),
        ("features.0.bias", vec![8], 600),
        ("fire.squeeze.weight", vec![5, 8, 1, 1], 608),
        ("fire.squeeze.bias", vec![5], 648),
    ];
    assert_eq!(first, expected);
    assert_eq!(g.parameters[1].init, Init::Zeros);
    assert_eq!(g.parameters_end(), g.parameter_len());
    let relus = g.nodes.iter().filter(|n| matches!(n, Node::Relu { .. })).count();
    assert_eq!(relus, 1, "only the one behind a sum is a node of its own");
    let mut cut = Graph::new(Shape { channels: 3, h: 4, w: 4 });
    let y = cut.conv_biased("conv", Value(0), 4, 3, 1, 1);
    cut.cut("conv");
    cut.relu(y);
    assert!(matches!(cut.nodes[1], Node::Relu { .. }));
}
