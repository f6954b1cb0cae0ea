//! The CPU kernels and candle's own ops are two implementations of the same networks: they must agree in
//! outputs, statistics and gradients. A device test takes its device as a parameter.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kernels::device::serves;
use kernels::graph::Shape;
use kernels::stage::Precision;
use testkit::{assert_close, devices, flat, tensor, values};
use trainer::config::Optim;
use trainer::distill::optimizers;
use trainer::models::{Architecture, Options};
use trainer::nn::{Backend, Engine, Mode, Model, Network, Normalization, StateDict, gradient};

const MODELS: [(&str, &str); 4] =
    [("wrn-10-1", "preact"), ("wrn-16-2", "raw"), ("wrn-10-3", "preact"), ("resnet8", "")];

fn network(name: &str, shortcut: &str, engine: Engine, dtype: DType, device: &Device) -> Result<Network> {
    with_layers(name, shortcut, engine, dtype, device, (32, &["layer1", "layer2"]))
}

fn with_layers(
    name: &str,
    shortcut: &str,
    engine: Engine,
    dtype: DType,
    device: &Device,
    (side, layers): (usize, &[&str]),
) -> Result<Network> {
    let choice = (!shortcut.is_empty()).then(|| ("shortcut".to_string(), shortcut.to_string()));
    let options: Options = choice.into_iter().collect();
    let architecture = Architecture::named(name, Shape { channels: 3, h: side, w: side }, 10, &options)?;
    let mut weights = StateDict::init(&architecture, 3, true);
    let shift = testkit::numbers(weights.running.len(), 5);
    weights.running.iter_mut().zip(shift).for_each(|(r, s)| *r += 0.2 * s as f32);
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let backend = Backend { engine, dtype, precision: Precision::F32, device: device.clone() };
    let layers: Vec<String> = layers.iter().map(|layer| layer.to_string()).collect();
    Network::new(architecture, weights, normalization, &layers, true, backend)
}

fn agree(engine: Engine, dtype: DType, tolerance: f64, device: &Device) -> Result<()> {
    for (name, shortcut) in MODELS {
        let ours = network(name, shortcut, engine, dtype, device)?;
        let stock = network(name, shortcut, Engine::Ops, dtype, &Device::Cpu)?;
        let images = tensor(&[3, 3, 32, 32], 1, dtype, &Device::Cpu)?;
        for mode in [Mode::Eval, Mode::Train] {
            let (a, b) = (ours.forward(&images.to_device(device)?, mode)?, stock.forward(&images, mode)?);
            let what = |part: &str| format!("{name} {mode:?} {part}");
            assert_close(&what("logits"), &values(&a.logits)?, &values(&b.logits)?, tolerance);
            for ((_, x), (_, y)) in a.features.iter().zip(&b.features) {
                assert_close(&what("layer"), &values(x)?, &values(y)?, tolerance);
            }
            for (x, y) in a.statistics.iter().zip(&b.statistics) {
                assert_eq!(x.count, y.count);
                assert_close(&what("mean"), &values(&x.mean)?, &values(&y.mean)?, tolerance);
                assert_close(&what("variance"), &values(&x.var)?, &values(&y.var)?, tolerance);
            }
            if mode == Mode::Train {
                assert!(!a.statistics.is_empty() && a.statistics.len() == b.statistics.len());
                let of = |network: &Network, logits: &candle_core::Tensor| -> Result<Vec<f64>> {
                    Ok(flat(&gradient(&logits.sqr()?.sum_all()?, network.variables())?)?)
                };
                let (x, y) = (of(&ours, &a.logits)?, of(&stock, &b.logits)?);
                assert_close(&what("gradient"), &x, &y, tolerance * 10.0);
            }
        }
    }
    Ok(())
}

/// A loss of activations alone reaches the trunk and leaves the classifier as it is.
#[test]
fn gradients_that_miss_the_classifier_are_zeros() -> Result<()> {
    let on = |engine, device| (engine, device);
    let everywhere =
        devices().into_iter().filter(serves).flat_map(|d| [on(Engine::Device, d.clone()), on(Engine::Ops, d)]);
    for (engine, device) in everywhere.chain([on(Engine::Kernels, Device::Cpu)]) {
        let network = network("wrn-10-1", "preact", engine, DType::F32, &device)?;
        let pass = network.forward(&tensor(&[2, 3, 32, 32], 1, DType::F32, &device)?, Mode::Train)?;
        let gradients = gradient(&pass.at("layer2")?.sqr()?.sum_all()?, network.variables())?;
        let [trunk, classifier] = network.variables() else { panic!("a trunk and a classifier") };
        let before = [values(trunk)?, values(classifier)?];
        assert_eq!(values(&gradients[1])?, vec![0.0; classifier.elem_count()], "{engine:?}");
        let mut sgd = optimizers::build(&Optim { weight_decay: 0.0, ..Optim::default() }, network.variables())?;
        assert!(sgd.step(&gradients[..1], 0.1).is_err(), "a gradient is missing");
        sgd.step(&gradients, 0.1)?;
        assert!(values(trunk)? != before[0] && values(classifier)? == before[1], "{engine:?}");
        let error = gradient(&pass.images.sum_all()?, network.variables()).unwrap_err().to_string();
        assert!(error.contains("no gradient reached"), "{error}");
    }
    Ok(())
}

#[test]
fn engines_agree_in_f64() -> Result<()> {
    agree(Engine::Kernels, DType::F64, 1e-11, &Device::Cpu)?;
    devices().into_iter().filter(serves).try_for_each(|device| agree(Engine::Device, DType::F64, 1e-11, &device))
}

#[test]
fn engines_agree_in_f32() -> Result<()> {
    agree(Engine::Device, DType::F32, 2e-4, &Device::Cpu)?;
    devices().iter().try_for_each(|device| agree(Backend::f32(device).engine, DType::F32, 2e-4, device))
}

/// A broken model is seen to be broken: no ReLU, in the trunk or in the classifier, makes a number of what is none.
#[test]
fn a_nan_reaches_the_logits() -> Result<()> {
    let on_host = serves(&Device::Cpu).then_some((Engine::Device, Device::Cpu));
    let others = devices().into_iter().map(|device| (Backend::f32(&device).engine, device));
    let places = [(Engine::Kernels, Device::Cpu), (Engine::Ops, Device::Cpu)].into_iter().chain(on_host).chain(others);
    for (engine, device) in places {
        for (name, side) in [("wrn-10-1", 32), ("resnet8", 32), ("squeezenet1_1", 64)] {
            let network = with_layers(name, "", engine, DType::F32, &device, (side, &[]))?;
            let images = Tensor::full(f32::NAN, (2, 3, side, side), &device)?;
            for mode in [Mode::Eval, Mode::Train] {
                let logits = values(&network.forward(&images, mode)?.logits)?;
                assert!(logits.iter().all(|z| z.is_nan()), "{name} on {device:?}: {logits:?}");
            }
        }
    }
    Ok(())
}
