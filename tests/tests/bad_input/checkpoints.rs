//! Checkpoints, and files to convert.

use std::path::Path;

use anyhow::{Context, Result};
use testkit::program::call;

use crate::{lab, limited, path, train};

/// A checkpoint with its header changed.
fn edit(path: &str, change: impl Fn(&mut serde_json::Value)) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let len = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len])?;
    change(&mut header);
    let header = serde_json::to_vec(&header)?;
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(&header);
    out.extend(&bytes[8 + len..]);
    Ok(out)
}

#[test]
fn wrong_checkpoints() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let good = path(&dir, "run/last.safetensors");
    let bad = path(&dir, "bad.safetensors");
    let eval = || call(&["eval", "--checkpoint", &bad, "--data", "cifar10-mini"]);
    eval().assert_fails(1, &["reading", "bad.safetensors"]);
    let bytes = std::fs::read(&good)?;
    for cut in [0, 7, 20, 1000, bytes.len() - 1] {
        std::fs::write(&bad, &bytes[..cut])?;
        eval().assert_fails(1, &["bad.safetensors is not a whole safetensors file", "truncated"]);
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&bad, &huge)?;
    eval().assert_fails(1, &["not a whole safetensors file"]);
    let metadata = |key: &'static str, value: &'static str| {
        edit(&good, move |h| h["__metadata__"][key] = serde_json::json!(value))
    };
    for (bytes, parts) in [
        (metadata("arch", "wrn-16-1")?, &["does not fit wrn-16-1", "missing: ", "layer1.1.bn1"][..]),
        (
            metadata("arch", "resnet8")?,
            &["does not fit resnet8", "unexpected: layer2.0.shortcut.weight", "of another shape: "],
        ),
        (metadata("arch", "wrn-10-2")?, &["does not fit wrn-10-2", "of another shape: ", "instead of"]),
        (metadata("arch", "vit")?, &["unknown architecture \"vit\""]),
        (metadata("num_classes", "7")?, &["of another shape: fc.weight is [10, 64] instead of [7, 64]"]),
        (metadata("num_classes", "99999999999")?, &["num_classes 99999999999"]),
        (metadata("std", "[0.2, 0.0, 0.2]")?, &["std positive"]),
        (metadata("mean", "grey")?, &["\"mean\" in the metadata"]),
        (metadata("feature_mean", "[1.0, 2.0]")?, &["feature_mean", "has 2 numbers", "64 channels"]),
        (metadata("shortcut", "sideways")?, &["accepted: preact, raw"]),
        (metadata("input_size", "100000000")?, &["input_size"]),
    ] {
        std::fs::write(&bad, bytes)?;
        eval().assert_fails(1, parts);
    }
    // Numbers that are none of a model, and such as no f32 can be computed with.
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..head])?;
    let filled = |name: &str, value: f32| -> Result<()> {
        let offset = |i: usize| Some(head + header[name]["data_offsets"][i].as_u64()? as usize);
        let range = offset(0).context("a tensor")?..offset(1).context("a tensor")?;
        let mut bytes = bytes.clone();
        bytes[range].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&value.to_le_bytes()));
        Ok(std::fs::write(&bad, &bytes)?)
    };
    filled("bn1.running_var", -1.0)?;
    eval().assert_fails(1, &["bn1.running_var holds -1", "damaged"]);
    filled("fc.weight", 3e38)?;
    eval().assert_fails(1, &["answers some images with", "its weights overflow"]);
    call(&["explain", "--checkpoint", &bad, "--images", "cifar10-mini:test[50..52]", "--method", "cam"])
        .assert_fails(1, &["logits of image 50 are not finite"]);
    let mute = [&format!("teacher.checkpoint={bad}"), "loss.weights.kd=1.0"];
    train(&dir, "other", &mute).assert_fails(1, &["the teacher", "answers some images with"]);
    let mut nan = bytes.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&bad, &nan)?;
    eval().assert_fails(1, &["holds the value NaN", "damaged"]);

    // A model for other data is refused, as teacher, as student and in eval.
    call(&["eval", "--checkpoint", &good, "--data", "planted"]).assert_fails(1, &["10 classes, the data 6"]);
    let teacher = format!("teacher.checkpoint={good}");
    let planted = ["data.name=planted", &teacher, "loss.weights.kd=1.0"];
    train(&dir, "other", &planted).assert_fails(1, &["the teacher", "has 10 classes, the data 6"]);
    let warm = format!("student.checkpoint={good}");
    train(&dir, "other", &[&warm, "student.arch=wrn-10-2"]).assert_fails(1, &["warm start", "of another shape"]);
    let raw = [&warm, "student.arch=wrn-10-1", "student.shortcut=raw"];
    train(&dir, "other", &raw).assert_fails(1, &["warm start", "has shortcut = \"preact\": say so in [student]"]);
    Ok(())
}

/// A teacher that is not what its metadata says is found out before training starts.
#[test]
fn a_teacher_that_does_not_keep_its_promise() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let liar = path(&dir, "liar.safetensors");
    let bytes =
        edit(&path(&dir, "run/last.safetensors"), |h| h["__metadata__"]["test_error"] = serde_json::json!("5.00"))?;
    std::fs::write(&liar, bytes)?;
    let teacher = format!("teacher.checkpoint={liar}");
    train(&dir, "student", &[&teacher, "loss.weights.kd=1.0"])
        .assert_fails(1, &["should have 5.00 % test error", "normalisation"]);
    Ok(())
}

#[test]
fn wrong_files_to_convert() -> Result<()> {
    let dir = lab()?;
    let out = path(&dir, "out.safetensors");
    call(&["convert", "nothing.pth", &out, "--arch", "wrn-16-2"]).assert_fails(1, &["nothing.pth: no such file"]);
    let garbage = path(&dir, "garbage.pth");
    std::fs::write(&garbage, b"garbage")?;
    call(&["convert", &garbage, &out, "--arch", "wrn-16-2"]).assert_fails(1, &["garbage.pth"]);
    call(&["convert", &garbage, &garbage, "--arch", "wrn-16-2"]).assert_fails(1, &["is read from: choose another"]);
    call(&["convert", &garbage, &out, "--arch", "wrn"]).assert_fails(1, &["unknown architecture"]);
    // The head of a file of before PyTorch 1.6.
    let mut legacy = vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    legacy.extend([0; 50]);
    std::fs::write(&garbage, legacy)?;
    call(&["convert", &garbage, &out, "--arch", "wrn-10-1"])
        .assert_fails(1, &["before version 1.6", "torch.save(torch.load("]);
    assert!(!Path::new(&out).exists());
    Ok(())
}

/// What a file says of itself is believed only where it makes sense, and not of another model.
#[test]
fn conversions_keep_what_still_holds() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let (good, bad, out) =
        (path(&dir, "run/last.safetensors"), path(&dir, "bad.safetensors"), path(&dir, "out.safetensors"));
    let convert = |more: &[&str]| call(&[&["convert", &bad, &out, "--arch", "wrn-10-1", "--json"], more].concat());
    let written = |key: &str| -> Result<Option<String>> {
        Ok(trainer::checkpoint::File::read(Path::new(&out))?.metadata.get(key).cloned())
    };
    let with = |key: &'static str, value: &'static str| {
        edit(&good, move |h| h["__metadata__"][key] = serde_json::json!(value))
    };
    std::fs::write(&bad, with("input_size", "[3, 48, 48]")?)?;
    assert_eq!(convert(&[]).code, 0);
    assert_eq!(written("input_size")?.as_deref(), Some("48"));
    assert!(written("test_error")?.is_some(), "the same model keeps its error");
    for more in [&["--mean", "0.5,0.5,0.5"][..], &["--std", "0.3,0.3,0.3"], &["--shortcut", "raw"], &["--size", "32"]] {
        let told = convert(more);
        assert_eq!(told.code, 0, "{}", told.stderr);
        assert_eq!(written("test_error")?, None, "{more:?} make another model");
        assert!(told.stdout.contains("test_error of the file was another model's"), "{}", told.stdout);
    }
    for (key, value, part) in [
        ("shortcut", "sideways", "shortcut \"sideways\""),
        ("num_classes", "many", "num_classes \"many\""),
        ("num_classes", "0", "num_classes \"0\""),
        ("mean", "[0.4, nan, 0.4]", "three finite numbers"),
        ("input_size", "big", "input_size"),
    ] {
        std::fs::write(&bad, with(key, value)?)?;
        std::fs::remove_file(&out).ok();
        convert(&[]).assert_fails(1, &[part]);
        assert!(!Path::new(&out).exists());
    }
    std::fs::write(&bad, std::fs::read(&good)?)?;
    convert(&["--mean", "nan,0.5,0.5"]).assert_fails(1, &["--mean nan,0.5,0.5", "finite"]);
    Ok(())
}

/// A few bytes that name a model of gigabytes are refused before there is room for it.
#[test]
#[cfg(target_os = "linux")]
fn a_small_file_makes_no_room_for_a_huge_model() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let bad = path(&dir, "bad.safetensors");
    let bytes = edit(&path(&dir, "run/last.safetensors"), |h| {
        h["__metadata__"]["arch"] = serde_json::json!("wrn-994-20");
    })?;
    std::fs::write(&bad, bytes)?;
    // wrn-994-20 has 6,000 million parameters, 24 GB.
    limited("ulimit -v 3000000", &["eval", "--checkpoint", &bad, "--data", "cifar10-mini", "--threads", "1"])
        .assert_fails(1, &["does not fit wrn-994-20", "missing"]);
    Ok(())
}
