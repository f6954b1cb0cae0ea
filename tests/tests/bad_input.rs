//! Whatever is wrong, the program says so in one line that names the fault and the remedy, and fails.

use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;
use testkit::program::{Call, call, command, finish};

const QUICK: &str = "
    [data]
    name = 'cifar10-mini'
    limit = 64
    [student]
    arch = 'wrn-10-1'
    [train]
    epochs = 1
    batch = 32
";

fn lab() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("quick.toml"), QUICK)?;
    Ok(dir)
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn train(dir: &TempDir, run: &str, sets: &[&str]) -> Call {
    let (config, run) = (path(dir, "quick.toml"), path(dir, run));
    let mut arguments = vec!["train", &config, "--quiet", "--run", &run];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    call(&arguments)
}

#[test]
fn wrong_settings() -> Result<()> {
    let dir = lab()?;
    let cases: [(&[&str], &[&str]); 45] = [
        (&["loss.weights.ce=0.0"], &["no term of the loss has a weight at the start of epoch 1"]),
        (
            &["loss.weights.explanation=1.0", "loss.interpreter=mask"],
            &["loss.interpreter = \"mask\"", "not differentiable", "optimisation"],
        ),
        (&["loss.weights.explanation=1.0", "loss.interpreter=eigen_cam"], &["not differentiable", "singular"]),
        (
            &["loss.weights.explanation=1.0", "loss.interpreter=shap_cam", "interpreter.shap_cam.estimator=mc"],
            &["not differentiable", "det2"],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer2",
                "loss.interpreter=score_cam",
                "teacher.checkpoint=none",
            ],
            &["score_cam", "layer2", "loss.gradient = \"stop_grad\""],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer2",
                "loss.interpreter=shap_cam",
                "teacher.checkpoint=none",
            ],
            &["shap_cam", "sampled", "\"last\""],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.interpreter=shap_cam",
                "interpreter.shap_cam.fill=dataset_mean",
                "teacher.checkpoint=none",
            ],
            &["dataset_mean", "channel_mean"],
        ),
        (&["loss.layer=layer2", "loss.distance=all_class_pooled"], &["loss.layer is \"layer2\"", "\"last\" only"]),
        (&["optim.drops=[0]"], &["optim.drops.0 is 0", "at least 1"]),
        (&["data.size=0"], &["data.size is 0", "at least 16 and at most 1024"]),
        (&["train.clip=-1.0"], &["train.clip is -1", "at least 0"]),
        (&["train.clip=nan"], &["train.clip is NaN", "it must be"]),
        (&["optim.weight_decay=inf"], &["optim.weight_decay is inf", "at most 1000"]),
        (&["train.epoch=3"], &["train", "unknown field `epoch`", "did you mean `epochs`", "`batch`"]),
        (&["optim.weigth_decay=1e-4"], &["optim", "did you mean `weight_decay`"]),
        (&["nonsense.key=1"], &["unknown field `nonsense`", "`data`", "`train`"]),
        (&["train.epochs=many"], &["train.epochs", "invalid type", "many"]),
        (&["train.epochs=0"], &["train.epochs", "at least 1"]),
        (&["train.batch=0"], &["train.batch", "at least 1"]),
        (&["train.batch=65"], &["train.batch is 65", "only 64 training images", "smaller batch"]),
        (&["optim.lr=-1.0"], &["optim.lr is -1", "positive"]),
        (&["optim.lr=nan"], &["optim.lr", "positive"]),
        (&["train.profile=fats"], &["unknown profile \"fats\"", "did you mean \"fast\"", "paper"]),
        (&["data.name=cifar11"], &["unknown data set \"cifar11\"", "did you mean \"cifar10\"", "planted"]),
        (&["data.limit=-3"], &["data.limit"]),
        (&["data.validation=5000"], &["data.validation is 5000", "only 5000"]),
        (&["student.arch=wrn-17-2"], &["6 N + 4"]),
        (&["student.arch=wrm-16-2"], &["unknown architecture \"wrm-16-2\"", "did you mean \"wrn-16-2\"", "resnetD"]),
        (&["student.arch=wrn-1000000000000000000000-2"], &["unknown architecture"]),
        (
            &["loss.interpreter=shapcam"],
            &["unknown interpreter \"shapcam\"", "did you mean \"shap_cam\"", "grad_cam_pp"],
        ),
        (
            &["loss.interpreter=shap_cam", "interpreter.shap_cam.fil=zero"],
            &["interpreter.shap_cam", "did you mean `fill`"],
        ),
        (&["loss.distance=l3"], &["unknown variant `l3`", "raw_l2"]),
        (&["loss.temperature=0.0"], &["loss.temperature is 0", "at least 0.05"]),
        (&["loss.temperature=inf"], &["loss.temperature is inf", "at most 1000000"]),
        (&["loss.weights.kd=1.0"], &["need a [teacher]"]),
        (&["loss.weights.ce=-1.0"], &["loss.weights.ce is -1", "at least 0"]),
        (&["train.ema=1.5"], &["train.ema is 1.5", "at most 0.999999999"]),
        (&["justakey"], &["--set \"justakey\"", "a.b=value"]),
        (&["train.epochs=1000000000000"], &["train.epochs is 1000000000000", "at most 1000000"]),
        (&["interpreter.rise.masks=9000000000000000000"], &["interpreter.rise.masks is 9000000000000000000"]),
        (
            &["interpreter.mask.iterations=4294967296"],
            &["interpreter.mask.iterations is 4294967296", "at most 1000000"],
        ),
        (&["loss.temperature=1e7"], &["loss.temperature is 10000000", "at most 1000000"]),
        (
            &["optim.schedule=one_cycle", "optim.warmup=2.0"],
            &["optim.warmup is 2", "one_cycle", "rises over the first 30 %"],
        ),
        // The only term goes out in the middle of an epoch, which a look at its start does not show.
        (&["loss.schedule.ce.cut_off=0.5"], &["no term of the loss has a weight from step 2 on", "loss.schedule"]),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer1",
                "loss.interpreter=cam",
                "loss.gradient=stop_grad",
                "teacher.checkpoint=none",
            ],
            &["\"cam\" at loss.layer = \"layer1\" is not defined", "grad_cam"],
        ),
    ];
    for (i, (sets, parts)) in cases.iter().enumerate() {
        let run = format!("run{i}");
        train(&dir, &run, sets).assert_fails(1, parts);
        assert!(!Path::new(&path(&dir, &run)).exists(), "{sets:?} left a folder behind");
    }
    Ok(())
}

#[test]
fn wrong_usage() {
    for arguments in [
        &["tarin"][..],
        &["train"],
        &["eval", "--data", "cifar10"],
        &["eval", "--checkpoint", "x"],
        &["bench", "step", "--batch", "0"],
        &["bench", "step", "--dtype", "f8"],
        &["--threads", "0", "list"],
        &["list", "everything"],
    ] {
        let call = call(arguments);
        assert_eq!(call.code, 2, "{arguments:?}: {}", call.stderr);
        assert!(!call.stderr.is_empty() && call.stdout.is_empty());
    }
}

#[test]
fn wrong_devices() {
    let checkpoint = ["eval", "--checkpoint", "nothing.safetensors", "--data", "cifar10-mini", "--device"];
    for (device, part) in
        [("gpu", "accepted: cpu, cuda, cuda:N, metal"), ("cuda:x", "expected a number"), ("metal", "Metal")]
    {
        call(&[&checkpoint[..], &[device]].concat()).assert_fails(1, &[part]);
    }
}

#[test]
fn wrong_configuration_files() -> Result<()> {
    let dir = lab()?;
    call(&["train", "no/such.toml"]).assert_fails(1, &["reading the configuration no/such.toml"]);
    std::fs::write(dir.path().join("quick.toml"), "[train\nepochs = ")?;
    train(&dir, "run", &[]).assert_fails(1, &["quick.toml is not TOML"]);
    std::fs::write(dir.path().join("quick.toml"), [0xff, 0xfe, 0x00])?;
    train(&dir, "run", &[]).assert_fails(1, &["quick.toml"]);
    Ok(())
}

/// Six files of CIFAR-10's form with labels in order.
fn write_cifar10(dir: &Path) -> Result<()> {
    let bytes: Vec<u8> =
        (0..10_000).flat_map(|i| std::iter::once((i % 10) as u8).chain(vec![(i % 251) as u8; 3072])).collect();
    for (file, _) in trainer::data::fetch::CIFAR10 {
        std::fs::write(dir.join(file), &bytes)?;
    }
    Ok(())
}

#[test]
fn wrong_cifar_files() -> Result<()> {
    let dir = lab()?;
    let model = path(&dir, "run/last.safetensors");
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let data = dir.path().join("data");
    std::fs::create_dir(&data)?;
    let name = format!("cifar10:{}", data.display());
    let eval = || call(&["eval", "--checkpoint", &model, "--data", &name]);
    eval().assert_fails(1, &["no test_batch.bin in", "trainer data fetch cifar10"]);
    write_cifar10(&data)?;
    assert_eq!(eval().code, 0);
    let test = data.join("test_batch.bin");
    let mut bytes = std::fs::read(&test)?;
    std::fs::write(&test, &bytes[..bytes.len() - 1])?;
    eval().assert_fails(1, &["test_batch.bin: it has 30729999 bytes", "30730000 are expected", "truncated"]);
    bytes[3073 * 77] = 10;
    std::fs::write(&test, &bytes)?;
    eval().assert_fails(1, &["test_batch.bin: image 77 has label 10, accepted are 0 to 9"]);
    let verify = ["data", "verify", "cifar10", "--dir", &data.display().to_string()].map(str::to_string);
    let verify: Vec<&str> = verify.iter().map(String::as_str).collect();
    call(&verify).assert_fails(1, &["data_batch_1.bin has sha256", "CIFAR-10's is cee916563c9f", "damaged"]);

    // Fetching refuses what is not CIFAR-10, leaves nothing, and can be repeated.
    let target = path(&dir, "fetched");
    let from = data.display().to_string();
    for _ in 0..2 {
        let call = call(&["data", "fetch", "cifar10", "--dir", &target, "--from", &from]);
        call.assert_fails(1, &["data_batch_1.bin came with sha256", "nothing was kept"]);
        assert!(!Path::new(&target).join("cifar-10-batches-bin").exists());
    }
    let archive = path(&dir, "broken.tgz");
    std::fs::write(&archive, b"not an archive")?;
    call(&["data", "fetch", "cifar10", "--dir", &target, "--from", &archive])
        .assert_fails(1, &["damaged or truncated"]);
    call(&["data", "fetch", "cifar11"]).assert_fails(1, &["did you mean \"cifar10\""]);
    call(&["data", "fetch", "planted"]).assert_fails(1, &["there is nothing to fetch"]);
    Ok(())
}

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
        (metadata("shortcut", "sideways")?, &["accepted: preact, raw"]),
        (metadata("input_size", "100000000")?, &["input_size"]),
    ] {
        std::fs::write(&bad, bytes)?;
        eval().assert_fails(1, parts);
    }
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
fn a_folder_with_another_run() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let before = std::fs::read(path(&dir, "run/last.safetensors"))?;
    train(&dir, "run", &[]).assert_fails(1, &["already holds this run", "--resume"]);
    train(&dir, "run", &["train.seed=1"]).assert_fails(1, &["already holds a different run", "--run"]);
    let (config, run) = (path(&dir, "quick.toml"), path(&dir, "run"));
    call(&["train", &config, "--run", &run, "--resume", "--seed", "1"])
        .assert_fails(1, &["another configuration", "train.seed: 0 there, 1 here"]);
    assert!(before == std::fs::read(path(&dir, "run/last.safetensors"))?);
    std::fs::write(path(&dir, "run/config.toml"), "garbage")?;
    call(&["train", &config, "--run", &run, "--resume"]).assert_fails(1, &["config.toml is damaged"]);
    Ok(())
}

#[test]
fn a_damaged_state() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    std::fs::remove_file(path(&dir, "run/report.json"))?;
    let state = path(&dir, "run/state.safetensors");
    let bytes = std::fs::read(&state)?;
    std::fs::write(&state, &bytes[..bytes.len() / 2])?;
    let (config, run) = (path(&dir, "quick.toml"), path(&dir, "run"));
    call(&["train", &config, "--run", &run, "--resume"]).assert_fails(1, &["state.safetensors", "truncated"]);
    Ok(())
}

/// Divergence stops with the step, the terms and the learning rate.
#[test]
fn divergence_is_named() -> Result<()> {
    let dir = lab()?;
    let call = train(&dir, "run", &["optim.lr=1e30", "train.epochs=5", "optim.warmup=0.0"]);
    call.assert_fails(1, &["at step", "ce ", "learning rate", "train.clip"]);
    Ok(())
}

/// A full disk: the error names the file, and what was there before is whole.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk() -> Result<()> {
    let dir = lab()?;
    let config = path(&dir, "quick.toml");
    assert_eq!(train(&dir, "run", &[]).code, 0);
    std::fs::remove_file(path(&dir, "run/report.json"))?;
    let before = std::fs::read(path(&dir, "run/state.safetensors"))?;
    // A limit on the size of files acts like a disk that fills up while a file is written.
    let run = path(&dir, "run");
    let inner = command(&["train", &config, "--run", &run, "--resume", "--quiet"]);
    let program = inner.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = inner.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh", &program])
        .args(&arguments)
        .current_dir(testkit::program::root());
    finish(limited).assert_fails(1, &["writing", "nothing that was there has been changed"]);
    assert!(before == std::fs::read(path(&dir, "run/state.safetensors"))?);
    assert_eq!(call(&["train", &config, "--run", &run, "--resume", "--quiet"]).code, 0);
    Ok(())
}

#[test]
fn wrong_images_and_methods() -> Result<()> {
    let dir = lab()?;
    assert_eq!(train(&dir, "run", &[]).code, 0);
    let model = path(&dir, "run/last.safetensors");
    let explain = |more: &[&str]| call(&[&["explain", "--checkpoint", &model, "--images"], more].concat());
    explain(&["cifar10-mini:test[0..4]", "--method", "grad_cam2"])
        .assert_fails(1, &["unknown method \"grad_cam2\"", "did you mean"]);
    explain(&["cifar10-mini:test[0..4]", "--layer", "layer9"]).assert_fails(1, &["unknown layer \"layer9\"", "layer1"]);
    explain(&["cifar10-mini:test[0..4]", "--class", "11"]).assert_fails(1, &["class 11", "0 to 9"]);
    explain(&["cifar10-mini:test[0..4]", "--class", "cat"]).assert_fails(1, &["cat"]);
    explain(&["cifar10-mini:test[4..4]"]).assert_fails(1, &["the slice is empty"]);
    explain(&["nowhere.png"]).assert_fails(1, &["nowhere.png", "no such file"]);
    explain(&["cifar10-mini:test[0..4]", "--set", "shap_cam.fill=zero"])
        .assert_fails(1, &["interpreter.<method>.<key>"]);
    explain(&["cifar10-mini:test[0..4]", "--set", "interpreter.shap_cam.fil=zero"])
        .assert_fails(1, &["did you mean `fill`"]);
    let folder = dir.path().join("pictures");
    std::fs::create_dir(&folder)?;
    explain(&[&folder.display().to_string()]).assert_fails(1, &["holds no image", "PNG, JPEG"]);
    explain(&["cifar10-mini:test[0..2]", "--method", "rise", "--set", "interpreter.rise.masks=9000000000000000000"])
        .assert_fails(1, &["interpreter.rise.masks is 9000000000000000000", "at most"]);
    std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\n broken")?;
    explain(&[&folder.display().to_string()]).assert_fails(1, &["broken.png"]);
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
    for more in [&["--mean", "0.5,0.5,0.5"][..], &["--std", "0.3,0.3,0.3"], &["--shortcut", "raw"]] {
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
    let inner = command(&["eval", "--checkpoint", &bad, "--data", "cifar10-mini", "--threads", "1"]);
    let program = inner.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = inner.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut limited = std::process::Command::new("sh");
    // wrn-994-20 has 6,000 million parameters, 24 GB.
    limited.args(["-c", "ulimit -v 3000000; exec \"$@\"", "sh", &program]).args(&arguments);
    finish(limited).assert_fails(1, &["does not fit wrn-994-20", "missing"]);
    Ok(())
}
