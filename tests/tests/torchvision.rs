//! torchvision's architectures against torchvision itself, with weights that are functions of their names
//! (`scripts/make_torchvision.py`): logits, features at every cut, and Grad-CAM through everything behind it.

use std::path::Path;

use anyhow::{Context, Result};
use cams::methods::{Computation, Fill, GradCam, ShapCam};
use cams::{Interpreter, SampleId, Score};
use candle_core::{DType, Device, Tensor};
use kernels::graph::Shape;
use kernels::stage::Precision;
use testkit::{assert_close, values};
use trainer::checkpoint::File;
use trainer::models::{Architecture, Options};
use trainer::nn::{Backend, Engine, Mode, Model, Network, Normalization, StateDict};

const SIDE: usize = 64;
const CLASSES: usize = 10;
/// Every so many activations are kept.
const EVERY: usize = 485;

/// What is allowed of activations and of gradients, as a part of the largest. In f32 a ReLU or a maximum that rounding
/// decides otherwise changes a gradient in front of it.
fn tolerances(dtype: DType) -> (f64, f64) {
    if dtype == DType::F32 { (1e-4, 5e-3) } else { (1e-6, 1e-6) }
}

/// Engine, type and sizes of batches that are compared. One image at a time shows nothing of candle's ops that three do
/// not.
const WAYS: [(Engine, DType, &[usize]); 4] = [
    (Engine::Kernels, DType::F32, &[1, 3]),
    (Engine::Kernels, DType::F64, &[1, 3]),
    (Engine::Device, DType::F64, &[3]),
    (Engine::Ops, DType::F64, &[3]),
];

/// Uniform in [-1/2, 1/2): a hash of the name and the position.
fn u(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let value = |i: u32| {
        let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^= x >> 16;
        f64::from(x) / 4_294_967_296.0 - 0.5
    };
    (0..count as u32).map(value).collect()
}

fn fill(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape[1..].iter().product();
    let scale = |value: f64| match name {
        _ if name.ends_with("running_var") => 1.0 + 0.4 * value,
        _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.2 * value,
        _ if shape.len() == 1 => 1.0 + 0.4 * value,
        _ => value * 12f64.sqrt() * (2.0 / fan_in as f64).sqrt(),
    };
    u(name, shape.iter().product()).into_iter().map(|value| scale(value) as f32).collect()
}

fn architecture(name: &str) -> Result<Architecture> {
    Architecture::named(name, Shape { channels: 3, h: SIDE, w: SIDE }, CLASSES, &Options::new())
}

fn weights(architecture: &Architecture) -> StateDict {
    let mut weights = StateDict {
        parameters: vec![0.0; architecture.graph.parameter_len()],
        running: vec![0.0; architecture.graph.statistics_len()],
    };
    for (entry, parameter) in architecture.entries() {
        let target = if parameter { &mut weights.parameters } else { &mut weights.running };
        target[entry.range()].copy_from_slice(&fill(&entry.name, &entry.shape));
    }
    weights
}

fn network(architecture: Architecture, weights: StateDict, engine: Engine, dtype: DType) -> Result<Network> {
    let layers: Vec<String> = architecture.layer_names().into_iter().map(String::from).collect();
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let backend = Backend { engine, dtype, precision: Precision::F32, device: Device::Cpu };
    Network::new(architecture, weights, normalization, &layers, false, backend)
}

fn agrees(name: &str) -> Result<()> {
    let file = File::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/torchvision.safetensors"))?;
    let pixels = u("images", 3 * 3 * SIDE * SIDE).into_iter().map(|value| (4.0 * value) as f32).collect::<Vec<_>>();
    let images = Tensor::from_vec(pixels, (3, 3, SIDE, SIDE), &Device::Cpu)?;
    let weights = weights(&architecture(name)?);
    let mut compared = 0;
    for (engine, dtype, batches) in WAYS {
        let (tolerance, of_gradients) = tolerances(dtype);
        let network = network(architecture(name)?, weights.clone(), engine, dtype)?;
        for &n in batches {
            let pass = network.forward(&images.narrow(0, 0, n)?.to_dtype(dtype)?, Mode::Eval)?;
            let what = |part: &str| format!("{name} {part} {engine:?} {dtype:?} batch {n}");
            let expected = file.f64(&format!("{name}.logits"))?;
            assert_close(&what("logits"), &values(&pass.logits)?, &expected[..n * CLASSES], tolerance);
            let classes = Tensor::arange(0u32, n as u32, &Device::Cpu)?;
            let ids: Vec<_> = (0..n as u64).map(|sample| cams::SampleId { sample, view: 0 }).collect();
            for layer in network.architecture.layer_names() {
                let Ok(expected) = file.f64(&format!("{name}.{layer}")) else { continue };
                let features = values(pass.at(layer)?)?;
                let kept: Vec<f64> = features.iter().step_by(EVERY).copied().collect();
                assert_close(&what(layer), &kept, &expected[..kept.len()], tolerance);
                let cut = network.cut(layer)?;
                let map = GradCam::default().signed(&pass.seen(&*cut, layer, &ids)?, &classes)?.map;
                let expected = file.f64(&format!("{name}.{layer}.grad_cam"))?;
                let map = values(&map)?;
                assert_close(&what(&format!("{layer} grad_cam")), &map, &expected[..map.len()], of_gradients);
                compared += 1;
            }
        }
    }
    let kept =
        file.shapes()?.into_keys().filter(|key| key.starts_with(&format!("{name}.")) && key.ends_with("grad_cam"));
    let batches: usize = WAYS.iter().map(|(_, _, batches)| batches.len()).sum();
    assert_eq!(compared, batches * kept.count(), "every layer of the file was compared");
    Ok(())
}

#[test]
fn vgg() -> Result<()> {
    ["vgg16", "vgg11_bn"].into_iter().try_for_each(|name| agrees(name).context(name))
}

#[test]
fn residual_networks() -> Result<()> {
    ["resnet18", "resnet34", "resnet50"].into_iter().try_for_each(|name| agrees(name).context(name))
}

#[test]
fn squeezenet() -> Result<()> {
    ["squeezenet1_0", "squeezenet1_1"].into_iter().try_for_each(|name| agrees(name).context(name))
}

/// Behind a head that sees every position alone Shapley values are exact: those of all 16 coalitions of the 4 positions
/// that SqueezeNet leaves of a small image, for the logit; and its other scores need no pass of the head.
#[test]
fn squeezenet_s_shapley_values_are_exact() -> Result<()> {
    // The last is a linear head in another order.
    for (padding, relu) in [("0", "yes"), ("1", "yes"), ("0", "no")] {
        let options = [("classifier_padding", padding), ("classifier_relu", relu)];
        let options = Options::from(options.map(|(key, word)| (key.to_string(), word.to_string())));
        let input = Shape { channels: 3, h: 48, w: 48 };
        let architecture = Architecture::named("squeezenet1_0", input, CLASSES, &options)?;
        let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
        let backend =
            Backend { engine: Engine::Kernels, dtype: DType::F64, precision: Precision::F32, device: Device::Cpu };
        let network = Network::new(architecture.clone(), weights(&architecture), normalization, &[], false, backend)?;
        let images = Tensor::new(u("images", 2 * 3 * 48 * 48), &Device::Cpu)?.reshape((2, 3, 48, 48))?;
        let pass = network.observe(&images)?;
        let cut = network.cut("last")?;
        let classes = Tensor::new(&[3u32, 7], &Device::Cpu)?;
        let forward = pass.seen(&*cut, "last", &[SampleId { sample: 0, view: 0 }, SampleId { sample: 1, view: 0 }])?;
        let features = pass.at("last")?;
        let (_, k, h, w) = features.dims4()?;
        let players = h * w;
        assert_eq!(players, 4);
        for (fill, score) in [
            (Fill::Zero, Score::Logit),
            (Fill::ChannelMean, Score::Logit),
            (Fill::ScalarMean, Score::Logit),
            (Fill::ChannelMean, Score::Prob),
        ] {
            let absent = match fill {
                Fill::Zero => features.zeros_like()?,
                Fill::ChannelMean => features.mean_keepdim((2, 3))?.broadcast_as(features.shape())?,
                _ => features.mean_keepdim((1, 2, 3))?.broadcast_as(features.shape())?,
            };
            // v(S) of every coalition, by passes of the head.
            let mut worth = Vec::new();
            for coalition in 0..1u32 << players {
                let mask: Vec<f64> = (0..players).map(|p| f64::from(coalition >> p & 1)).collect();
                let mask = Tensor::new(mask, &Device::Cpu)?.reshape((1, 1, h, w))?.broadcast_as((2, k, h, w))?;
                let mixed = ((features * &mask)? + (&absent * mask.affine(-1.0, 1.0)?)?)?;
                worth.push(score.of(&cut.head(&mixed)?, &classes)?.to_vec1::<f64>()?);
            }
            let factorial = |n: u32| (1..=n).map(f64::from).product::<f64>();
            let share = |size: u32| factorial(size) * factorial(3 - size) / factorial(4);
            let mut expected = Vec::new();
            for i in [0usize, 1] {
                for p in 0..players {
                    let without = (0..1u32 << players).filter(|s| s >> p & 1 == 0);
                    let gain = |s: u32| worth[(s | 1 << p) as usize][i] - worth[s as usize][i];
                    expected.push(without.map(|s| share(s.count_ones()) * gain(s)).sum::<f64>());
                }
            }
            let sampled = Computation::Mc;
            let estimator = if score == Score::Logit { Computation::Auto } else { sampled };
            let method = ShapCam { fill, score, estimator, tolerance: 0.0, permutations: 20_000, ..ShapCam::default() };
            let found = method.signed(&forward, &classes)?;
            assert_eq!(found.evaluations, 0);
            let tolerance = if score == Score::Logit { 1e-9 } else { 0.02 };
            assert_close(&format!("{fill:?} {score:?} {padding} {relu}"), &values(&found.map)?, &expected, tolerance);
        }
    }
    Ok(())
}
