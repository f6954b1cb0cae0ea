//! Data sets, pictures, and what is asked of them.

use std::path::Path;

use anyhow::Result;
use testkit::program::call;

use crate::{lab, path, train};

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
    call(&["data", "verify", "cifar10:/no/such"]).assert_fails(1, &["in /no/such"]);
    call(&["data", "verify", "cifar10:/no/such", "--dir", &target]).assert_fails(1, &["--dir names one"]);
    call(&["data", "fetch", "cifar11"]).assert_fails(1, &["did you mean \"cifar10\""]);
    call(&["data", "fetch", "planted"]).assert_fails(1, &["there is nothing to fetch"]);
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
