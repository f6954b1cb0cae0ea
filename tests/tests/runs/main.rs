//! A run is a function of its configuration, data and seed: however it is interrupted, on however many threads.

mod cache;
mod terms;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use testkit::program::{Call, call, command};

/// A tiny teacher; its layers are cut where attention is transferred.
const TEACHER: &str = "
    [data]
    name = 'cifar10-mini'
    limit = 100
    [train]
    epochs = 1
    batch = 50
    [[student.layers]]
    conv = { channels = 6, stride = 4 }
    [[student.layers]]
    cut = { name = 'layer1' }
    [[student.layers]]
    bn = {}
    [[student.layers]]
    relu = {}
    [[student.layers]]
    cut = { name = 'layer2' }
    [[student.layers]]
    residual = { layers = [{ conv = { channels = 6 } }, { bn = {} }] }
    [[student.layers]]
    cut = { name = 'layer3' }
    [[student.layers]]
    relu = {}
";

/// Everything a run can do, small.
const STUDENT: &str = "
    [train]
    epochs = 4
    batch = 24
    ema = 0.9
    clip = 2.0
    log_every = 1
    save_every = 2
    [optim]
    schedule = 'multi_step'
    drops = [3]
    warmup = 1.0
    lr = 0.05
    reset_momentum_at_drops = true
    [loss]
    interpreter = 'shap_cam'
    distance = 'at_l2'
    weights = { ce = 0.3, kd = 0.7, explanation = 10.0, attention = 10.0, sp = 10.0, rkd = 0.1 }
    schedule = { kd = { ramp = 2.0 }, attention = { cut_off = 3.0 } }
";

struct Lab {
    dir: TempDir,
    teacher: PathBuf,
}

impl Lab {
    /// A folder with a trained teacher and the configurations.
    fn new() -> Result<Lab> {
        let dir = tempfile::tempdir()?;
        let teacher = dir.path().join("teacher/last.safetensors");
        std::fs::write(dir.path().join("teacher.toml"), TEACHER)?;
        std::fs::write(dir.path().join("student.toml"), STUDENT)?;
        let lab = Lab { dir, teacher };
        let call = call(&["train", &lab.path("teacher.toml"), "--run", &lab.path("teacher"), "--quiet"]);
        assert_eq!(call.code, 0, "{}", call.stderr);
        Ok(lab)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The arguments that train the student into `run`.
    fn arguments(&self, run: &str, more: &[&str]) -> Vec<String> {
        let teacher = format!("teacher.checkpoint={}", self.teacher.display());
        let (base, student) = (self.path("teacher.toml"), self.path("student.toml"));
        let mut all: Vec<String> =
            ["train", &base, &student, "--set", &teacher, "--quiet", "--json", "--run"].map(String::from).into();
        all.push(self.path(run));
        all.extend(more.iter().map(|s| s.to_string()));
        all
    }

    fn train(&self, run: &str, more: &[&str]) -> Call {
        call(&self.arguments(run, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn bytes(&self, file: &str) -> Result<Vec<u8>> {
        std::fs::read(self.path(file)).with_context(|| file.to_string())
    }

    /// The measurements without times and speeds.
    fn metrics(&self, run: &str) -> Result<Vec<BTreeMap<String, Value>>> {
        let text = std::fs::read_to_string(Path::new(&self.path(run)).join("metrics.jsonl"))?;
        let line = |line: &str| -> Result<BTreeMap<String, Value>> {
            let mut record: BTreeMap<String, Value> = serde_json::from_str(line)?;
            record.retain(|key, _| key != "seconds" && key != "images_per_second");
            Ok(record)
        };
        text.lines().map(line).collect()
    }

    /// Panics unless two runs gave the same weights and the same measurements, to the bit.
    #[track_caller]
    fn assert_same(&self, a: &str, b: &str) {
        for file in ["last.safetensors", "ema.safetensors"] {
            let (x, y) = (self.bytes(&format!("{a}/{file}")).unwrap(), self.bytes(&format!("{b}/{file}")).unwrap());
            assert!(x == y, "{file} of {a} and of {b} differ");
        }
        assert_eq!(self.metrics(a).unwrap(), self.metrics(b).unwrap(), "{a}, {b}");
    }
}

/// Four epochs = one step, resume, one step, ..., on one, two and three threads in turn.
#[test]
fn resuming_is_exact() -> Result<()> {
    let lab = Lab::new()?;
    let whole = lab.train("whole", &["--threads", "2"]).json();
    assert_eq!(whole["steps"], 20);
    let mut calls = 0;
    let parts = loop {
        let threads = (calls % 3 + 1).to_string();
        let call = lab.train("parts", &["--resume", "--threads", &threads, "--set", "train.max_minutes=1e-9"]);
        calls += 1;
        if call.code == 0 {
            break call.json();
        }
        call.assert_fails(130, &["train.max_minutes is over; the state is saved", "--resume"]);
        assert!(calls < 40);
    };
    assert_eq!(calls, 20, "a step a call");
    assert_eq!(parts["test_error"], whole["test_error"]);
    lab.assert_same("whole", "parts");
    // A finished run gives its result again.
    let again = lab.train("parts", &["--resume"]).json();
    assert_eq!(again["test_error"], whole["test_error"]);
    Ok(())
}

/// Products of a whole batch's activations, large enough to be divided among threads.
#[test]
fn what_compares_the_images_of_a_batch_does_not_depend_on_threads() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("student.toml").display().to_string();
    std::fs::write(
        &config,
        "[data]\nname = 'cifar10-mini'\nlimit = 256\n[student]\narch = 'resnet8'\n\
         [teacher]\ncheckpoint = 'checkpoints/wrn-16-2-cifar10.safetensors'\n\
         [loss]\nweights = { ce = 0.3, kd = 0.0, explanation = 0.0, sp = 1000.0, rkd = 1.0 }\n\
         [train]\nprofile = 'fast'\nepochs = 1\nbatch = 128\n",
    )?;
    let trained = |threads: &str| -> Result<Vec<u8>> {
        let run = dir.path().join(threads).display().to_string();
        let arguments = ["train", &config, "--quiet", "--run", &run, "--threads", threads];
        let call = call(&arguments);
        assert_eq!(call.code, 0, "{}", call.stderr);
        std::fs::read(dir.path().join(threads).join("last.safetensors")).context("the student")
    };
    let alone = trained("1")?;
    assert!(alone == trained("2")? && alone == trained("3")?, "the students differ");
    Ok(())
}

/// Killed without warning, over and over, at any moment.
#[test]
fn a_kill_loses_nothing() -> Result<()> {
    let lab = Lab::new()?;
    lab.train("whole", &[]).json();
    let arguments = lab.arguments("killed", &["--resume"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut patience = Duration::from_millis(250);
    let mut kills = 0;
    loop {
        let mut child = command(&arguments).spawn()?;
        let start = Instant::now();
        let done = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if let Some(status) = done {
            assert!(status.success());
            break;
        }
        kills += 1;
        patience += Duration::from_millis(40);
    }
    println!("killed {kills} times");
    assert!(kills > 0, "the run was too fast to be killed");
    lab.assert_same("whole", "killed");
    Ok(())
}

#[test]
#[cfg(unix)]
fn ctrl_c_saves_and_says_how_to_go_on() -> Result<()> {
    let lab = Lab::new()?;
    let quoted = "data.name='cifar10-mini'";
    let arguments = lab.arguments("stopped", &["--set", "train.epochs=400", "--set", quoted]);
    let child = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn()?;
    let metrics = lab.path("stopped/metrics.jsonl");
    let start = Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    assert!(interrupt.success());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr)?;
    assert!(stderr.contains("interrupted; the state is saved. Go on with:\n  trainer train "), "{stderr}");
    assert!(stderr.contains(&format!("--set \"{quoted}\" ")) && stderr.contains(" --resume"), "{stderr}");
    assert!(Path::new(&lab.path("stopped/state.safetensors")).exists());
    Ok(())
}

/// Held-out images choose `best.safetensors`; the test set is read once, at the end.
#[test]
fn validation_chooses_the_best() -> Result<()> {
    let lab = Lab::new()?;
    let report = lab.train("held-out", &["--set", "data.validation=50"]).json();
    let metrics = lab.metrics("held-out")?;
    let epochs: Vec<_> = metrics.iter().filter(|m| m["kind"] == "epoch").collect();
    assert_eq!(epochs.len(), 4);
    assert!(epochs.iter().all(|m| m.contains_key("val_error") && !m.contains_key("test_error")));
    let best = lab.path("held-out/best.safetensors");
    let measured = call(&["eval", "--checkpoint", &best, "--data", "cifar10-mini", "--json"]).json();
    assert_eq!(measured["error"], report["best_test_error"]);
    let ema = lab.path("held-out/ema.safetensors");
    let measured = call(&["eval", "--checkpoint", &ema, "--data", "cifar10-mini", "--json"]).json();
    assert_eq!(measured["error"], report["ema_test_error"]);
    Ok(())
}

/// How often the error is measured changes nothing but the curve; where held-out images choose the best epoch by it, it is
/// another run.
#[test]
fn epochs_are_measured_as_often_as_asked() -> Result<()> {
    let lab = Lab::new()?;
    let whole = lab.train("whole", &[]).json()["curve"].clone();
    assert_eq!(whole.as_array().map(Vec::len), Some(4));
    for (every, measured) in [("3", [false, false, true, true]), ("0", [false, false, false, true])] {
        let run = format!("every-{every}");
        let curve = lab.train(&run, &["--set", &format!("train.evaluate_every={every}")]).json()["curve"].clone();
        for (at, measured) in measured.into_iter().enumerate() {
            assert_eq!(curve[at], if measured { whole[at].clone() } else { Value::Null }, "{every}: {curve}, {whole}");
        }
        let epochs: Vec<bool> = lab
            .metrics(&run)?
            .iter()
            .filter(|record| record["kind"] == "epoch")
            .map(|record| record.contains_key("test_error"))
            .collect();
        assert_eq!(epochs, measured);
        assert!(lab.bytes(&format!("{run}/last.safetensors"))? == lab.bytes("whole/last.safetensors")?, "{every}");
        assert_eq!(lab.train(&run, &["--resume"]).json()["curve"], curve, "a finished run is what it was");
    }
    let held = ["--set", "data.validation=50", "--set", "train.max_minutes=1e-9"];
    assert_eq!(lab.train("held", &held).code, 130);
    let other = [&held[..2], &["--resume", "--set", "train.evaluate_every=3"]].concat();
    lab.train("held", &other).assert_fails(1, &["train.evaluate_every: 1 there, 3 here"]);
    // The last epoch of a run may be its best, so a longer one has to measure it, too.
    let held = ["--set", "data.validation=50", "--set", "train.evaluate_every=3", "--resume", "--set"];
    let epochs = |n: &'static str| [&held[..], &[n]].concat();
    lab.train("short", &epochs("train.epochs=4")).json();
    lab.train("short", &epochs("train.epochs=6")).assert_fails(1, &["a run of 4 epochs", "train.evaluate_every = 3"]);
    lab.train("even", &epochs("train.epochs=3")).json();
    assert_eq!(lab.train("even", &epochs("train.epochs=6")).json()["epochs"], 6);
    Ok(())
}

/// The saved configuration repeats the run alone.
#[test]
fn the_saved_configuration_repeats_the_run() -> Result<()> {
    let lab = Lab::new()?;
    lab.train("one", &[]).json();
    call(&["train", &lab.path("one/config.toml"), "--run", &lab.path("two"), "--quiet", "--json"]).json();
    lab.assert_same("one", "two");
    // A run's folder may be moved; what it came to is told of where it lies now.
    std::fs::rename(lab.path("two"), lab.path("moved"))?;
    let moved = call(&["train", &lab.path("moved/config.toml"), "--run", &lab.path("moved"), "--resume", "--json"]);
    assert_eq!(moved.json()["run"], lab.path("moved"));
    Ok(())
}

/// A run goes on only with the teacher it began with, whatever the file's name.
#[test]
fn another_teacher_under_the_same_name_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let stop = ["--set", "train.max_minutes=1e-9"];
    lab.train("run", &stop).assert_fails(130, &["--resume"]);
    call(&["train", &lab.path("teacher.toml"), "--run", &lab.path("other"), "--quiet", "--seed", "9"]);
    std::fs::copy(lab.path("other/last.safetensors"), &lab.teacher)?;
    lab.train("run", &["--resume"]).assert_fails(1, &["the teacher is not what the run in", "has been using", "--run"]);
    Ok(())
}

/// After every epoch there is a checkpoint to look at.
#[test]
fn an_unfinished_run_has_a_checkpoint() -> Result<()> {
    let lab = Lab::new()?;
    let mut call_again = lab.train("run", &["--set", "train.max_minutes=1e-9"]);
    for _ in 0..5 {
        call_again.assert_fails(130, &["the state is saved"]);
        call_again = lab.train("run", &["--resume", "--set", "train.max_minutes=1e-9"]);
    }
    let last = lab.path("run/last.safetensors");
    call(&["eval", "--checkpoint", &last, "--data", "cifar10-mini", "--json"]).json();
    Ok(())
}

/// A model of another image size is evaluated and explained on images of its size.
#[test]
fn other_image_sizes() -> Result<()> {
    let lab = Lab::new()?;
    let planted = ["--set", "data.name=planted", "--set", "data.size=24"];
    let arguments =
        ["train", &lab.path("teacher.toml"), "--run", &lab.path("planted"), "--quiet", "--json"].map(String::from);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(planted).collect();
    let report = call(&arguments).json();
    let last = lab.path("planted/last.safetensors");
    let measured = call(&["eval", "--checkpoint", &last, "--data", "planted", "--json"]).json();
    assert_eq!(measured["error"], report["test_error"]);
    call(&["explain", "--checkpoint", &last, "--images", "planted:test[0..3]", "--method", "shap_cam", "--json"])
        .json();
    Ok(())
}
