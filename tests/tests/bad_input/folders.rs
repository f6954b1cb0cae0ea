//! Folders of runs, divergence, and a full disk.

use anyhow::Result;
use testkit::program::call;

use crate::{lab, limited, path, train};

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

/// A folder's name that is no text is shown as well as it can be, at the end of a whole run, too.
#[test]
#[cfg(target_os = "linux")]
fn a_name_that_is_no_text() -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let dir = lab()?;
    let run = dir.path().join(std::ffi::OsStr::from_bytes(b"run-\xff"));
    let config = path(&dir, "quick.toml");
    let mut train = testkit::program::command(&["train", &config, "--quiet", "--json", "--run"]);
    train.arg(&run);
    let report = testkit::program::finish(train).json();
    assert!(report["run"].as_str().is_some_and(|run| run.contains("run-\u{fffd}")), "{report}");
    assert!(run.join("report.json").is_file());
    let mut page = testkit::program::command(&["report", "--json"]);
    page.arg(&run);
    assert!(testkit::program::finish(page).json()["out"].as_str().is_some_and(|out| out.ends_with("report.html")));
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
    // A single step, and it leaves the numbers: nothing is written that cannot be read.
    let sets = ["optim.lr=1e39", "optim.warmup=0.0", "optim.schedule=constant", "data.limit=32", "data.validation=100"];
    train(&dir, "step", &sets).assert_fails(1, &["weights are not finite after step 1"]);
    for file in ["last.safetensors", "best.safetensors", "state.safetensors"] {
        assert!(!std::path::Path::new(&path(&dir, "step")).join(file).exists(), "{file}");
    }
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
    limited("trap '' XFSZ; ulimit -f 100", &["train", &config, "--run", &run, "--resume", "--quiet"])
        .assert_fails(1, &["writing", "nothing that was there has been changed"]);
    assert!(before == std::fs::read(path(&dir, "run/state.safetensors"))?);
    assert_eq!(call(&["train", &config, "--run", &run, "--resume", "--quiet"]).code, 0);
    Ok(())
}

/// Nobody can be told anything: the run is done all the same; a result that cannot be written is no success.
#[test]
#[cfg(target_os = "linux")]
fn a_terminal_that_takes_nothing() -> Result<()> {
    let dir = lab()?;
    let (config, run) = (path(&dir, "quick.toml"), path(&dir, "run"));
    let silent = limited("exec 2>/dev/full", &["train", &config, "--run", &run]);
    assert_eq!(silent.code, 0);
    assert!(std::path::Path::new(&run).join("report.json").exists());
    limited("exec >/dev/full", &["list", "datasets"]).assert_fails(1, &["writing the result"]);
    Ok(())
}
