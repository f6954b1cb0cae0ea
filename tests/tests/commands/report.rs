//! `trainer report` of a run, and runs whose report was not to be had.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tempfile::TempDir;
use testkit::program::call;

use crate::{lab, path};

/// A student's settings, beside the quick ones.
fn student(dir: &TempDir, more: &str) -> Result<String> {
    let teacher = path(dir, "teacher/last.safetensors");
    let text = format!("[teacher]\ncheckpoint = {teacher:?}\n{more}");
    std::fs::write(path(dir, "student.toml"), text)?;
    Ok(path(dir, "student.toml"))
}

fn page(dir: &TempDir, run: &str) -> Result<String> {
    let written = call(&["report", &path(dir, run), "--json"]).json();
    assert_eq!(written["out"], path(dir, &format!("{run}/report.html")));
    Ok(std::fs::read_to_string(path(dir, &format!("{run}/report.html")))?)
}

#[track_caller]
fn assert_has(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part} is not in {page}");
    }
}

/// One file with everything in it, and what there is where something is missing.
#[test]
fn a_run_as_a_page() -> Result<()> {
    let (dir, quick) = lab()?;
    let teacher = ["train", &quick, "--run", &path(&dir, "teacher"), "--json"];
    call(&teacher).json();
    let loss = "loss = { weights = { ce = 0.1, kd = 0.9, explanation = 2.0 }, interpreter = 'grad_cam_pp' }";
    let config = student(&dir, "")?;
    std::fs::write(&config, format!("{loss}\n{}", std::fs::read_to_string(&config)?))?;
    let report = call(&["train", &quick, &config, "--run", &path(&dir, "<run>"), "--json"]).json();
    let whole = page(&dir, "<run>")?;
    let error = format!("{:.2} %", report["test_error"].as_f64().unwrap());
    assert_has(
        &whole,
        &[
            "<h1>&lt;run&gt;</h1>",
            "resnet8 on cifar10-mini, teacher teacher/last.safetensors; loss: 0.1 ce + 0.9 kd + 2 explanation (grad_cam_pp)",
            &error,
            "95 % interval, images",
            "grad_cam_pp, student (exact), range ",
            "grad_cam, teacher (exact)",
            "data:image/png;base64,",
            "weight times norm",
            "interpreter = \"grad_cam_pp\"",
        ],
    );
    // Nothing is fetched and nothing runs.
    let sources = whole.matches("src=").count();
    assert!(sources == 30 && whole.matches("src=\"data:").count() == sources, "{sources} sources");
    assert!(!whole.contains("<script") && !whole.contains("href="));

    let run = dir.path().join("<run>");
    // Another teacher than the run's has not taught it; without one the student's maps are there.
    std::fs::copy(run.join("last.safetensors"), path(&dir, "teacher/last.safetensors"))?;
    let other = page(&dir, "<run>")?;
    assert_has(&other, &["The teacher's maps are left out", "is not the file that the run used", "grad_cam, student"]);
    // Settings of another version.
    let settings = std::fs::read_to_string(run.join("config.toml"))?;
    std::fs::write(run.join("config.toml"), format!("later = 1\n{settings}"))?;
    assert_has(&page(&dir, "<run>")?, &["does not know its settings", "unknown field `later`", &error]);
    std::fs::write(run.join("config.toml"), settings)?;
    std::fs::remove_file(run.join("last.safetensors"))?;
    std::fs::remove_file(run.join("report.json"))?;
    let rest = page(&dir, "<run>")?;
    assert_has(&rest, &["Not finished: 2 of 2 epochs", "There are none here: the folder holds no last.safetensors"]);
    std::fs::remove_file(run.join("metrics.jsonl"))?;
    assert_has(&page(&dir, "<run>")?, &["There are none: a curve takes two epochs"]);
    std::fs::write(run.join("report.json"), "{")?;
    call(&["report", &run.display().to_string()]).assert_fails(1, &["report.json is damaged"]);
    call(&["report", &path(&dir, "nowhere")]).assert_fails(1, &["nowhere: no such folder"]);
    std::fs::create_dir(path(&dir, "empty"))?;
    call(&["report", &path(&dir, "empty")]).assert_fails(1, &["there are no finished runs"]);
    Ok(())
}

/// Features cannot be masked behind a classifier of convolutions, and `cam` is not defined there: the run is finished all the
/// same, with what can be measured.
#[test]
fn a_student_whose_head_is_no_single_layer() -> Result<()> {
    let (dir, quick) = lab()?;
    let large = ["--set", "data.name='planted'", "--set", "data.size=48", "--json"];
    call(&[&["train", &quick, "--run", &path(&dir, "teacher")][..], &large].concat()).json();
    let config = student(&dir, "[loss]\nweights = { ce = 0.1, kd = 0.9 }\ninterpreter = 'cam'\n")?;
    let run = path(&dir, "run");
    let other =
        ["train", &quick, &config, "--run", &run, "--set", "student.arch='squeezenet1_1'", "--set", "optim.lr=0.01"];
    let trained = call(&[&other[..], &large].concat());
    assert!(trained.json()["test_error"].as_f64().is_some());
    assert_eq!(trained.stderr.matches("no picture of maps by cam").count(), 1, "{}", trained.stderr);
    let report: Value = serde_json::from_slice(&std::fs::read(Path::new(&run).join("report.json"))?)?;
    assert!(report["agreement"]["kl"].as_f64().is_some_and(f64::is_finite), "{report}");
    Ok(())
}
