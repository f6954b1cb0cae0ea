//! Every command by its contract: exit code, streams, JSON keys, files.

mod bench;
mod convert;
mod evaluate;
mod explain;
mod report;
mod settings;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use testkit::program::{call, command, finish};
use trainer::checkpoint::File;

const QUICK: &str = "
    [data]
    name = 'cifar10-mini'
    limit = 64
    [student]
    arch = 'resnet8'
    [train]
    epochs = 2
    batch = 32
    log_every = 1
";

fn lab() -> Result<(TempDir, String)> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("quick.toml");
    std::fs::write(&config, QUICK)?;
    Ok((dir, config.display().to_string()))
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some_and(|v| !v.is_null()), "no \"{key}\" in {value}");
    }
}

#[test]
fn train_and_eval() -> Result<()> {
    let (dir, config) = lab()?;
    let run = path(&dir, "run");
    let trained = call(&["train", &config, "--run", &run, "--seed", "3", "--json"]);
    let report = trained.json();
    let keys = [
        "run",
        "test_error",
        "train_loss",
        "epochs",
        "steps",
        "seconds",
        "images_per_second",
        "parameters",
        "profile",
        "seed",
    ];
    assert_keys(&report, &keys);
    assert_eq!((&report["epochs"], &report["steps"], &report["seed"]), (&2.into(), &4.into(), &3.into()));
    assert_eq!((&report["parameters"], &report["profile"]), (&75290.into(), &"fast".into()));
    // Results on stdout, progress on stderr, in plain lines where there is no terminal.
    assert!(trained.stdout.starts_with("test error "), "{}", trained.stdout);
    assert!(trained.stderr.contains("epoch   2/2  loss "), "{}", trained.stderr);
    assert!(!trained.stderr.contains('\x1b') && !trained.stderr.contains('\r'), "{:?}", trained.stderr);

    for file in ["config.toml", "metrics.jsonl", "last.safetensors", "state.safetensors", "report.json"] {
        assert!(Path::new(&run).join(file).exists(), "{file}");
    }
    let names: Vec<String> =
        std::fs::read_dir(&run)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    assert!(names.iter().any(|n| n.starts_with("events.out.tfevents.")), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("best") || n.contains("ema") || n.contains("partial")), "{names:?}");
    let saved: Value = serde_json::from_slice(&std::fs::read(Path::new(&run).join("report.json"))?)?;
    assert_eq!(saved["test_error"], report["test_error"]);
    assert_keys(&saved, &["commit", "machine", "threads", "flops_per_image", "device"]);

    let metrics = std::fs::read_to_string(Path::new(&run).join("metrics.jsonl"))?;
    let lines: Vec<Value> = metrics.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 4 + 2);
    for line in &lines {
        assert_keys(line, &["kind", "step", "epoch", "lr", "ce", "total", "images_per_second"]);
        if line["kind"] == "step" {
            assert_keys(line, &["gradient_norm_ce", "gradient_norm_total"]);
        } else {
            assert_keys(line, &["train_error", "test_error"]);
        }
    }

    let checkpoint = Path::new(&run).join("last.safetensors");
    let file = File::read(&checkpoint)?;
    for key in [
        "arch",
        "dataset",
        "num_classes",
        "mean",
        "std",
        "input_size",
        "config",
        "seed",
        "epoch",
        "commit",
        "test_error",
    ] {
        file.get(key)?;
    }
    let text = String::from_utf8_lossy(&std::fs::read(&checkpoint)?).into_owned();
    assert!(!text.contains(&dir.path().display().to_string()), "the checkpoint holds a path");

    let checkpoint = checkpoint.display().to_string();
    let eval = call(&["eval", "--checkpoint", &checkpoint, "--data", "cifar10-mini", "--json"]).json();
    assert_keys(&eval, &["error", "error_per_class", "loss", "n"]);
    assert_eq!(eval["error"], report["test_error"]);
    assert_eq!((eval["n"].as_u64(), eval["error_per_class"].as_array().map(Vec::len)), (Some(1000), Some(10)));
    let train =
        call(&["eval", "--checkpoint", &checkpoint, "--data", "cifar10-mini", "--split", "train", "--json"]).json();
    assert_eq!(train["n"], 5000);
    let named =
        call(&["eval", "--arch", "resnet8", "--weights", &checkpoint, "--data", "cifar10-mini", "--json"]).json();
    assert_eq!(named["error"], eval["error"]);
    Ok(())
}

#[test]
fn default_run_folder() -> Result<()> {
    let (dir, config) = lab()?;
    let mut train = command(&["train", &config, "--seed", "7", "--quiet", "--set", "train.epochs=1"]);
    train.current_dir(dir.path());
    let call = finish(train);
    assert_eq!(call.code, 0, "{}", call.stderr);
    assert!(call.stderr.is_empty(), "{}", call.stderr);
    assert!(dir.path().join("runs/quick-s7/last.safetensors").exists());
    Ok(())
}

#[test]
fn list() -> Result<()> {
    let all = call(&["list", "--json"]).json();
    let items = all["items"].as_array().context("items")?;
    let names = |kind: &str| -> Vec<&str> {
        items.iter().filter(|i| i["kind"] == kind).filter_map(|i| i["name"].as_str()).collect()
    };
    assert_eq!(names("methods"), cams::methods::Methods::NAMES);
    assert_eq!(names("datasets"), ["cifar10", "cifar100", "cifar10-mini", "planted", "folder", "imagenet", "voc2007"]);
    assert_eq!(names("losses"), ["ce", "kd", "explanation", "attention", "bce", "sp", "dkd", "dist", "rkd"]);
    assert_eq!(names("optimizers"), ["sgd", "adamw"]);
    assert!(names("models").contains(&"wrn-D-K"));
    let methods = call(&["list", "methods"]);
    assert!(methods.stdout.contains("fill = \"zero\""), "{}", methods.stdout);
    assert!(methods.stdout.lines().all(|l| l.chars().count() <= 100), "{}", methods.stdout);
    Ok(())
}

/// Every command explains itself, with an example.
#[test]
fn help() {
    for arguments in [
        &[][..],
        &["train"],
        &["ablate"],
        &["eval"],
        &["evaluate"],
        &["bench"],
        &["data"],
        &["explain"],
        &["bench", "step"],
        &["bench", "forward"],
        &["data", "fetch"],
        &["data", "verify"],
        &["data", "convert"],
        &["convert"],
        &["export"],
        &["list"],
        &["table"],
        &["report"],
    ] {
        let help = call(&[arguments, &["--help"]].concat());
        assert_eq!(help.code, 0);
        assert!(help.stdout.contains("Example:\n  trainer "), "{arguments:?}: {}", help.stdout);
    }
}

/// Procedural images as files, then as a data set of one's own, on which a model trains.
#[test]
fn planted_images_as_a_folder() -> Result<()> {
    let (dir, _) = lab()?;
    let folder = path(&dir, "set");
    let made = call(&["data", "convert", "planted", "--dir", &path(&dir, "set/train"), "--json"]).json();
    assert_keys(&made, &["dir", "files", "sha256"]);
    assert_eq!(made["files"].as_array().map(Vec::len), Some(1000));
    std::os::unix::fs::symlink(path(&dir, "set/train"), path(&dir, "set/test"))?;
    let config = path(&dir, "own.toml");
    let text = format!(
        "[data]\nname = 'folder'\ndir = {folder:?}\nsize = 24\nlimit = 100\n[student]\narch = 'resnet8'\n[train]\nepochs = 1\nbatch = 50\n"
    );
    std::fs::write(&config, text)?;
    let report = call(&["train", &config, "--run", &path(&dir, "run"), "--json"]).json();
    assert!(report["test_error"].as_f64().is_some_and(|e| (0.0..=100.0).contains(&e)));
    let model = File::read(Path::new(&path(&dir, "run/last.safetensors")))?;
    assert_eq!((model.get("num_classes")?, model.get("input_size")?), ("6", "24"));
    Ok(())
}
