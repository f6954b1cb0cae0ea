//! `trainer convert`: weights of others become checkpoints.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use kernels::graph::{Entry, Shape};
use testkit::program::call;
use trainer::checkpoint::{self, File, Metadata};
use trainer::models::{Architecture, Options};
use trainer::nn::StateDict;

use crate::{assert_keys, lab, path};

/// A .pth file as torch.save writes it (made by scripts/make_pth.py) becomes a checkpoint with the same outputs.
#[test]
fn pytorch_s_file() -> Result<()> {
    let (dir, _) = lab()?;
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).display().to_string();
    let (out, maps) = (path(&dir, "out.safetensors"), path(&dir, "maps.safetensors"));
    let rules = path(&dir, "rules.toml");
    std::fs::write(&rules, "[rename]\n'head.' = 'fc.'\n'norm' = 'bn'\n'down.' = 'shortcut.'\n")?;
    let mean = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"];
    let convert = ["convert", &fixture("wrn-10-1.pth"), &out, "--arch", "wrn-10-1", "--json"];
    call(&[&convert[..], &mean].concat())
        .assert_fails(1, &["missing: layer1.0.bn1.weight", "unexpected: head.bias", "--rename"]);
    let result = call(&[&convert[..], &mean, &["--rename", &rules]].concat()).json();
    assert_keys(&result, &["parameters", "missing", "unexpected"]);
    assert_eq!(result["parameters"], 77850);
    let expected = File::read(Path::new(&fixture("wrn-10-1.outputs.safetensors")))?;
    let images = fixture("wrn-10-1.outputs.safetensors");
    call(&["explain", "--checkpoint", &out, "--images", &images, "--method", "grad_cam", "--out", &maps, "--json"])
        .json();
    testkit::assert_close("logits", &File::read(Path::new(&maps))?.f64("logits")?, &expected.f64("logits")?, 1e-5);
    // And from our own format again.
    let again = path(&dir, "again.safetensors");
    call(&[&["convert", &out, &again, "--arch", "wrn-10-1"][..], &mean].concat());
    assert!(std::fs::read(&out)? == std::fs::read(&again)?);
    Ok(())
}

/// torchvision's files say nothing of themselves: classes are counted, size and statistics are those of its weights.
#[test]
fn what_says_nothing() -> Result<()> {
    let (dir, _) = lab()?;
    let (plain, out) = (path(&dir, "plain.safetensors"), path(&dir, "out.safetensors"));
    let input = Shape { channels: 3, h: 64, w: 64 };
    let architecture = Architecture::named("squeezenet1_1", input, 7, &Options::new())?;
    let weights = StateDict::init(&architecture, 0, false);
    let tensor = |entry: &Entry| {
        let tensor = Tensor::new(&weights.parameters[entry.range()], &Device::Cpu)?;
        Ok((entry.name.clone(), tensor.reshape(entry.shape.as_slice())?))
    };
    let tensors = architecture.graph.parameters.iter().map(tensor).collect::<Result<HashMap<_, _>>>()?;
    candle_core::safetensors::save(&tensors, &plain)?;
    let convert = ["convert", &plain, &out, "--arch", "squeezenet1_1"];
    for (more, side) in [(&[][..], "224"), (&["--size", "64"], "64")] {
        let told = call(&[&convert[..], more].concat());
        assert_eq!(told.code, 0, "{}", told.stderr);
        assert!(told.stdout.contains("7 classes, as its classifier has (--classes)"), "{}", told.stdout);
        assert_eq!(told.stdout.contains("(--size)"), more.is_empty(), "{}", told.stdout);
        let metadata = File::read(Path::new(&out))?.metadata;
        let said = ["num_classes", "input_size", "mean", "std"].map(|key| metadata[key].as_str());
        assert_eq!(said, ["7", side, "[0.485,0.456,0.406]", "[0.229,0.224,0.225]"]);
    }
    call(&[&convert[..], &["--classes", "10"]].concat()).assert_fails(1, &["classifier.1.bias is [7] instead of [10]"]);
    Ok(())
}

/// Weights of somebody's own layers, from a file that says nothing: converted with a list, or a teacher's with one.
#[test]
fn one_s_own_layers() -> Result<()> {
    const LAYERS: &str =
        "[[layers]]\nconv = { channels = 5, stride = 4 }\n[[layers]]\nbn = {}\n[[layers]]\nrelu = {}\n";
    const RUN: &str = "train = { epochs = 1, batch = 50 }\ndata = { name = 'cifar10-mini', limit = 100 }\n";
    let (dir, _) = lab()?;
    let write = |name: &str, text: &str| std::fs::write(path(&dir, name), text);
    let of = |owner: &str| LAYERS.replace("[[", &format!("[[{owner}."));
    let train =
        |name: &str| call(&["train", &path(&dir, &format!("{name}.toml")), "--run", &path(&dir, name), "--quiet"]);
    write("own.toml", &format!("{RUN}{}", of("student")))?;
    assert_eq!(train("own").code, 0);
    let trained = path(&dir, "own/last.safetensors");
    let file = File::read(Path::new(&trained))?;
    let tensors = file.named()?;
    let save = |name: &str, metadata: &Metadata| {
        let entries =
            tensors.iter().map(|(name, (shape, values))| (name.clone(), checkpoint::Entry::f32(shape, values)));
        checkpoint::write_tensors(Path::new(&path(&dir, name)), &entries.collect(), metadata)
    };
    save("bare.safetensors", &Metadata::new())?;
    write("layers.toml", LAYERS)?;
    let (bare, out, list) = (path(&dir, "bare.safetensors"), path(&dir, "out.safetensors"), path(&dir, "layers.toml"));
    let convert = ["convert", &bare, &out, "--layers", &list];
    let told = call(&convert).stdout;
    assert!(told.contains("parameters as layers") && told.contains("CIFAR-10's mean (--mean)"), "{told}");
    let error =
        |file: &str| call(&["eval", "--checkpoint", file, "--data", "cifar10-mini", "--json"]).json()["error"].clone();
    assert_eq!(error(&out), error(&trained));
    // The same layers, with their defaults left out or spelt: the same model, whose error is kept.
    assert!(file.metadata.contains_key("test_error"));
    let again = call(&["convert", &trained, &path(&dir, "again.safetensors"), "--layers", &list]);
    assert!(again.code == 0 && !again.stdout.contains("another model's"), "{}", again.stdout);
    // As a teacher, from a file that says everything but its layers.
    let mut metadata = file.metadata.clone();
    metadata.retain(|key, _| key != "layers" && key != "arch");
    save("teacher.safetensors", &metadata)?;
    let teacher = format!("[teacher]\ncheckpoint = '{}'\n", path(&dir, "teacher.safetensors"));
    let student = format!("{RUN}student.arch = 'resnet8'\nloss.weights = {{ kd = 1.0 }}\n{teacher}");
    write("without.toml", &student)?;
    train("without").assert_fails(1, &["arch"]);
    write("both.toml", &format!("{student}arch = 'resnet8'\n{}", of("teacher")))?;
    train("both").assert_fails(1, &["[teacher] has arch and layers"]);
    write("with.toml", &format!("{student}{}", of("teacher")))?;
    let done = train("with");
    assert_eq!(done.code, 0, "{}", done.stderr);
    // What does not fit, and what is no list.
    write("layers.toml", &LAYERS.replace('5', "6"))?;
    call(&convert).assert_fails(1, &["layers.0.weight", "--rename"]);
    write("layers.toml", "layer = []")?;
    call(&convert).assert_fails(1, &["expected [[layers]]"]);
    call(&convert[..3]).assert_fails(2, &["--arch"]);
    Ok(())
}
