//! Maps at inner layers in a loss: their gradient in full, against central differences in f64, through both engines.

use anyhow::Result;
use cams::{Interpreter, Score, methods};
use candle_core::{DType, Device, Tensor};
use kernels::graph::Shape;
use kernels::stage::Precision;
use testkit::{flat, tensor};
use trainer::models::{Architecture, Options};
use trainer::nn::{Backend, Engine, Mode, Model, Network, Normalization, StateDict, gradient};

fn network(name: &str, layer: &str, engine: Engine) -> Result<Network> {
    let architecture = Architecture::named(name, Shape { channels: 3, h: 12, w: 12 }, 4, &Options::new())?;
    let weights = StateDict::init(&architecture, 5, true);
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let backend = Backend { engine, dtype: DType::F64, precision: Precision::F32, device: Device::Cpu };
    Network::new(architecture, weights, normalization, &[layer.to_string()], true, backend)
}

/// A loss of the map alone.
fn loss(network: &Network, layer: &str, method: &dyn Interpreter, images: &Tensor, second: bool) -> Result<Tensor> {
    let pass = network.forward(images, Mode::Eval)?;
    let cut = network.cut(layer)?;
    let ids: Vec<_> = (0..2).map(|sample| cams::SampleId { sample, view: 0 }).collect();
    let mut forward = pass.seen(&*cut, layer, &ids)?;
    forward.second_order = second;
    let map = method.signed(&forward, &Tensor::new(&[1u32, 3], &Device::Cpu)?)?.map;
    // Scaled up: Grad-CAM's weights are means over many positions.
    let map = (map * 100.0)?;
    Ok((&map * (tensor(map.dims(), 3, DType::F64, &Device::Cpu)? + &map)?)?.sum_all()?)
}

fn methods(score: Score) -> Vec<(&'static str, Box<dyn Interpreter>)> {
    vec![
        ("grad_cam", Box::new(methods::GradCam { score })),
        ("grad_cam_pp", Box::new(methods::GradCamPp { score, ..Default::default() })),
        ("hires_cam", Box::new(methods::HiresCam { score })),
        ("xgrad_cam", Box::new(methods::XgradCam { score })),
        ("layer_cam", Box::new(methods::LayerCam { score })),
    ]
}

/// Largest difference between the gradient and central differences, over the largest element; of some parameters.
fn worst(network: &Network, f: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let gradient = flat(&gradient(&f()?, network.variables())?)?;
    let variables = network.variables();
    let tensors: Vec<_> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let base = flat(&tensors)?;
    let set = |values: &[f64]| -> Result<()> {
        let (trunk, classifier) = values.split_at(variables[0].elem_count());
        variables[0].set(&Tensor::new(trunk, &Device::Cpu)?)?;
        Ok(variables[1].set(&Tensor::new(classifier, &Device::Cpu)?)?)
    };
    let largest = gradient.iter().fold(1e-300f64, |m, g| m.max(g.abs()));
    let (probes, step) = (24, 1e-6);
    let mut worst = 0.0f64;
    for p in 0..probes {
        let i = p * base.len() / probes;
        let at = |d: f64| -> Result<f64> {
            let mut moved = base.clone();
            moved[i] += d;
            set(&moved)?;
            Ok(f()?.to_scalar()?)
        };
        let numeric = (at(step)? - at(-step)?) / (2.0 * step);
        worst = worst.max((numeric - gradient[i]).abs() / largest);
    }
    set(&base)?;
    Ok(worst)
}

#[test]
fn maps_at_inner_layers_are_differentiated_in_full() -> Result<()> {
    let images = tensor(&[2, 3, 12, 12], 1, DType::F64, &Device::Cpu)?;
    for (name, layer) in [("wrn-10-1", "layer1"), ("wrn-10-1", "layer2"), ("resnet8", "layer2")] {
        for engine in [Engine::Kernels, Engine::Device, Engine::Ops] {
            let network = network(name, layer, engine)?;
            for score in [Score::Logit, Score::Prob] {
                for (method, interpreter) in methods(score) {
                    // On a WRN's inner layers, which have negative values, XGrad-CAM's and Grad-CAM++'s quotients may
                    // explode.
                    if name.starts_with("wrn") && ["grad_cam_pp", "xgrad_cam"].contains(&method) {
                        continue;
                    }
                    let worst = worst(&network, || loss(&network, layer, interpreter.as_ref(), &images, true))?;
                    assert!(worst < 1e-5, "{name} {layer} {engine:?} {score:?} {method}: {worst:.1e}");
                }
            }
        }
    }
    Ok(())
}

/// With constant weights the gradient is another one: the test above would see the difference.
#[test]
fn constant_weights_miss_a_part() -> Result<()> {
    let images = tensor(&[2, 3, 12, 12], 1, DType::F64, &Device::Cpu)?;
    let network = network("wrn-10-1", "layer2", Engine::Kernels)?;
    let method = methods::GradCam::default();
    let worst = worst(&network, || loss(&network, "layer2", &method, &images, false))?;
    assert!(worst > 1e-2, "{worst:.1e}");
    Ok(())
}
