//! ONNX files of every kind of node and of classifier. What they compute is for ONNX Runtime to say: `scripts/check-onnx.sh`
//! has it read the files that this test leaves in the folder `ONNX_DIR`, beside what they should give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kernels::Value;
use kernels::graph::{Graph, Init, Shape};
use kernels::pool::Window;
use testkit::numbers;
use testkit::program::call;
use trainer::checkpoint::onnx::{CLASS_MAPS, IMAGES, LOGITS, encode};
use trainer::checkpoint::{self, Entry, File, Metadata};
use trainer::models::{Architecture, Classifier, Layer, Options, Step};
use trainer::nn::{Backend, Model, Network, Normalization, StateDict};

const CLASSES: usize = 7;
const BATCH: usize = 3;

/// Weights of which none is zero or one by chance.
fn weights(architecture: &Architecture) -> StateDict {
    let mut weights = StateDict::init(architecture, 1, true);
    for (i, (entry, parameter)) in architecture.entries().enumerate() {
        let values = if parameter { &mut weights.parameters } else { &mut weights.running };
        let offset = if entry.init == Init::Ones { 1.0 } else { 0.0 };
        if entry.init == Init::Zeros || entry.init == Init::Ones {
            let drawn = numbers(entry.range().len(), i as u64 + 1);
            values[entry.range()].iter_mut().zip(drawn).for_each(|(v, x)| *v = (offset + 0.3 * x) as f32);
        }
    }
    weights
}

/// Writes NAME.onnx, and NAME.safetensors with images and what the network makes of them.
fn write(folder: &Path, name: &str, architecture: Architecture, maps: bool) -> Result<()> {
    let weights = weights(&architecture);
    let normalization = Normalization { mean: vec![0.4, 0.5, 0.6], std: vec![0.2, 0.25, 0.3] };
    let bytes = encode(&architecture, &weights, &normalization, &Metadata::new(), maps)?;
    std::fs::write(folder.join(format!("{name}.onnx")), bytes)?;
    let network = Network::new(architecture, weights, normalization, &[], false, Backend::f32(&Device::Cpu))?;
    expect(folder, name, &network, maps)
}

/// Writes NAME.safetensors: images, and what the network makes of them.
fn expect(folder: &Path, name: &str, network: &Network, maps: bool) -> Result<()> {
    let Shape { channels, h, w } = network.architecture.graph.shapes[0];
    let pixels: Vec<u8> = numbers(BATCH * channels * h * w, 5).iter().map(|x| ((x + 1.0) * 127.5) as u8).collect();
    let shape = [BATCH, channels, h, w];
    let images: Vec<f32> = pixels.iter().map(|p| f32::from(*p) / 255.0).collect();
    let pass = network.observe(&network.images(&Tensor::from_vec(pixels, &shape, &Device::Cpu)?)?)?;
    let mut entries = BTreeMap::from([
        (IMAGES.to_string(), Entry::f32(&shape, &images)),
        (LOGITS.to_string(), Entry::f32(pass.logits.dims(), &pass.logits.flatten_all()?.to_vec1()?)),
    ]);
    if maps {
        let head = network.cut("last")?.linear_head().context("no linear head")?;
        let all = cams::ops::class_maps(&head.weight, pass.at("last")?)?.to_dtype(DType::F32)?;
        entries.insert(CLASS_MAPS.to_string(), Entry::f32(all.dims(), &all.flatten_all()?.to_vec1()?));
    }
    checkpoint::write_tensors(&folder.join(format!("{name}.safetensors")), &entries, &Metadata::new())
}

/// Windows that are cut off, or dropped, and zeros that a mean counts, on sides that differ, and all that a classifier can
/// do.
fn by_hand() -> Architecture {
    let mut graph = Graph::new(Shape { channels: 3, h: 27, w: 20 });
    let window = |k, stride, padding| Window { k, stride, padding, ceil_mode: true };
    let x = graph.conv_biased("first", Value(0), 8, 3, 1, 1);
    let x = graph.relu(x);
    // A mean: the last window of the height is cut off, that of the width would start in the padding and is dropped.
    let x = graph.pool_window(x, window(3, 3, 1), false);
    assert_eq!(graph.shape(x), Shape { channels: 8, h: 10, w: 7 });
    let x = graph.conv("second", x, 12, 5, 1, 2);
    let x = graph.pool_window(x, window(2, 3, 0), true);
    assert_eq!(graph.shape(x), Shape { channels: 12, h: 4, w: 3 }, "both last windows are cut off");
    graph.batch_norm("norm", x, true);
    graph.cut("last");
    let trunk = graph.parameter_len();
    let steps = vec![
        Step::AdaptivePool(2),
        Step::AdaptivePool(2), // Nothing to do, as in a VGG of 224 pixels.
        Step::Flatten,
        Classifier::linear(&mut graph, "hidden", 12 * 4, 16),
        Step::Relu,
        Step::Dropout(0.5),
        Classifier::linear(&mut graph, "fc", 16, CLASSES),
    ];
    let classifier = Classifier { steps };
    Architecture { name: "by-hand".into(), graph, classes: CLASSES, options: Options::new(), classifier, trunk }
}

#[test]
fn every_node_and_classifier() -> Result<()> {
    let own = tempfile::tempdir()?;
    let folder = std::env::var_os("ONNX_DIR").map_or(own.path().into(), PathBuf::from);
    let square = |side| Shape { channels: 3, h: side, w: side };
    let padded = Options::from([("classifier_padding".to_string(), "1".to_string())]);
    let open = Options::from([("classifier_relu".to_string(), "no".to_string())]);
    let raw = Options::from([("shortcut".to_string(), "raw".to_string())]);
    for (name, side, options, maps) in [
        ("wrn-10-1", 32, raw, true),
        ("wrn-16-2", 32, Options::new(), true),
        ("resnet8", 32, Options::new(), true),
        ("resnet18", 64, Options::new(), true),
        ("squeezenet1_0", 64, Options::new(), false),
        ("squeezenet1_1", 64, padded, false),
        ("squeezenet1_1", 64, open, true),
    ] {
        let file = if maps { format!("{name}-maps") } else { name.to_string() };
        write(&folder, &file, Architecture::named(name, square(side), CLASSES, &options)?, maps)?;
    }
    let layers: Vec<Layer> = serde_json::from_str(
        r#"[{ "conv": { "channels": 8 } }, { "bn": {} }, { "relu": {} }, { "cut": { "name": "layer1" } },
            { "residual": { "layers": [{ "relu": {} }, { "conv": { "channels": 16, "stride": 2 } }, { "bn": {} }] } },
            { "pool": { "kernel": 3, "stride": 2, "mean": true } }, { "relu": {} }, { "linear": {} }]"#,
    )?;
    write(&folder, "layers", Architecture::from_layers(&layers, square(30), CLASSES)?, true)?;
    write(&folder, "by-hand", by_hand(), false)
}

#[test]
fn the_command() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (student, squeezenet) = (path("deep/student.onnx"), path("squeezenet.safetensors"));
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/wrn-16-2-cifar10.safetensors");
    let checkpoint = checkpoint.display().to_string();
    let export = ["export", "--checkpoint", &checkpoint];
    let result = call(&[&export[..], &[&student, "--maps", "--json"]].concat()).json();
    assert_eq!(result["parameters"], 691_674);
    assert_eq!(result["inputs"][IMAGES], serde_json::json!([3, 32, 32]));
    assert_eq!(result["outputs"][CLASS_MAPS], serde_json::json!([10, 8, 8]));
    let bytes = std::fs::read(&student)?;
    assert_eq!(result["bytes"], bytes.len());
    for name in ["images", "normalized", "layer1.0.bn1.weight", "layer3", "class_maps", "test_error"] {
        assert!(bytes.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
    }
    // What the command wrote is run too.
    if let Some(folder) = std::env::var_os("ONNX_DIR").map(PathBuf::from) {
        std::fs::copy(&student, folder.join("command.onnx"))?;
        let network = File::read(Path::new(&checkpoint))?.network(None, |_| vec![], Backend::f32(&Device::Cpu))?;
        expect(&folder, "command", &network, true)?;
    }
    call(&[&export[..], &[&path("student.pt")]].concat()).assert_fails(1, &["student.pt", "student.onnx"]);

    let architecture =
        Architecture::named("squeezenet1_1", Shape { channels: 3, h: 64, w: 64 }, CLASSES, &Options::new())?;
    let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let weights = weights(&architecture);
    checkpoint::save(Path::new(&squeezenet), &architecture, &weights, &normalization, &Metadata::new())?;
    let export = ["export", "--checkpoint", &squeezenet, &path("squeezenet.onnx")];
    call(&[&export[..], &["--maps"]].concat()).assert_fails(1, &["squeezenet1_1", "leave --maps out"]);
    assert_eq!(call(&export).code, 0);
    Ok(())
}
