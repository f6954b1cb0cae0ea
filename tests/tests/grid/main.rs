//! Grids: what is missing is done, once, however the launchers end; and the table says what came of it.

mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use testkit::program::{Call, call, command};

const GRID: &str = "
    profile = 'smoke'
    [config.data]
    name = 'cifar10-mini'
    views = 1
    limit = 64
    [config.student]
    arch = 'resnet8'
    [config.teacher]
    checkpoint = 'TEACHER'
    cache = 'CACHE'
    [config.train]
    log_every = 2
    save_every = 1
    [table]
    published = { 'a/ce-none' = 50.0 }
    [[block]]
    name = 'a'
    seeds = '0..2'
    [block.axes.row]
    ce = { loss = { weights = { ce = 1.0 } } }
    kd = { loss = { weights = { ce = 0.1, kd = 0.9 } } }
    [block.axes.column]
    none = {}
    shap = { loss = { weights = { explanation = 0.01 }, interpreter = 'shap_cam' } }
    [[block]]
    name = 'b'
    [[block.cell]]
    name = 'plus_plus'
    config = { loss = { weights = { explanation = 0.01 }, interpreter = 'grad_cam_pp' } }
    [[block.cell]]
    name = 'diverges'
    config = { optim = { lr = 1e30 } }
    [[block.cell]]
    name = 'wrong'
    config = { loss = { temprature = 1.0 } }
";

struct Lab(TempDir);

impl Lab {
    /// A folder with a teacher and the grid.
    fn new() -> Result<Lab> {
        let lab = Lab(tempfile::tempdir()?);
        let teacher = lab.path("teacher");
        std::fs::write(
            lab.path("teacher.toml"),
            "data.limit = 64\nstudent.arch = 'resnet8'\ntrain = { epochs = 1, batch = 32 }",
        )?;
        let trained = call(&["train", &lab.path("teacher.toml"), "--run", &teacher, "--quiet"]);
        assert_eq!(trained.code, 0, "{}", trained.stderr);
        let grid = GRID.replace("TEACHER", &lab.path("teacher/last.safetensors")).replace("CACHE", &lab.path("cache"));
        std::fs::write(lab.path("grid.toml"), grid)?;
        Ok(lab)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let all = ["ablate", &self.path("grid.toml"), "--out", &self.path(out), "--json"].map(String::from);
        all.into_iter().chain(more.iter().map(|s| s.to_string())).collect()
    }

    fn ablate(&self, out: &str, more: &[&str]) -> Call {
        call(&self.arguments(out, more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn start(&self, out: &str, more: &[&str]) -> Result<Child> {
        Ok(command(&self.arguments(out, more).iter().map(String::as_str).collect::<Vec<_>>()).spawn()?)
    }

    /// The weights of every finished run.
    fn weights(&self, out: &str) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let root = self.0.path().join(out);
        let mut found = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(dir) = folders.pop() {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.ends_with("last.safetensors") && path.with_file_name("report.json").exists() {
                    found.insert(path.strip_prefix(&root)?.to_path_buf(), std::fs::read(&path)?);
                }
            }
        }
        Ok(found)
    }

    fn table(&self, out: &str) -> Vec<Value> {
        let rows = call(&["table", &self.path(out), "--json"]).json()["rows"].clone();
        rows.as_array().cloned().unwrap_or_default()
    }

    /// How often each cell was started, by the ledger.
    fn started(&self, out: &str) -> Result<BTreeMap<String, usize>> {
        let text = std::fs::read_to_string(Path::new(&self.path(out)).join("ledger.jsonl"))?;
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            if line["event"] == "started" {
                *counts.entry(line["cell"].as_str().context("cell")?.to_string()).or_default() += 1;
            }
        }
        Ok(counts)
    }
}

/// The whole life of a grid: done once, a wrong cell alone, a divergence told apart, nothing done again, the launcher
/// killed over and over, a damaged cache made anew: always the same weights.
#[test]
fn what_is_missing_is_done_and_nothing_twice() -> Result<()> {
    let lab = Lab::new()?;
    let first = lab.ablate("whole", &["--jobs", "2"]);
    let value = first.json();
    let counts =
        |v: &Value| ["cells_done", "cells_diverged", "cells_failed", "cells_total"].map(|k| v[k].as_u64().unwrap());
    assert_eq!(counts(&value), [9, 1, 1, 11], "{}", first.stderr);
    for part in ["b/wrong/s0: configuration, loss.temprature: unknown field", "b/diverges/s0: the loss is"] {
        assert!(first.stdout.contains(part), "{}", first.stdout);
    }
    assert!(first.stderr.contains("teacher's cache: view 1 of 1"), "{}", first.stderr);
    let whole = lab.weights("whole")?;
    assert_eq!(whole.len(), 9);
    // Again: at once, without starting anything.
    let before = lab.started("whole")?;
    assert!(before.values().all(|n| *n == 1), "{before:?}");
    assert_eq!(counts(&lab.ablate("whole", &["--jobs", "2"]).json()), [9, 1, 1, 11]);
    assert_eq!(lab.started("whole")?, before);
    // A run from the cache is the run that asks its teacher itself.
    let cell = std::fs::read_to_string(lab.path("whole/cells/a/kd-shap-s1.toml"))?;
    let live: String = cell.lines().filter(|line| !line.starts_with("cache = ")).map(|l| format!("{l}\n")).collect();
    std::fs::write(lab.path("live.toml"), live)?;
    assert_eq!(call(&["train", &lab.path("live.toml"), "--run", &lab.path("live"), "--quiet"]).code, 0);
    assert!(std::fs::read(lab.path("live/last.safetensors"))? == whole[Path::new("a/kd-shap/s1/last.safetensors")]);

    // Killed at moments that wander over the grid's length, with a bit of the cache flipped once.
    let (mut kills, mut patience) = (0, Duration::from_millis(150));
    loop {
        let mut child = lab.start("killed", &["--quiet", "--jobs", "2"])?;
        let start = Instant::now();
        while child.try_wait()?.is_none() && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait()?.is_some_and(|status| status.success()) {
            break;
        }
        child.kill()?;
        child.wait()?;
        kills += 1;
        patience += Duration::from_millis(if kills < 20 { 130 } else { 2000 });
        if kills == 3 {
            let folder = std::fs::read_dir(lab.path("cache"))?.next().context("a cache")??.path();
            let file = folder.join("view-0.class_maps");
            let mut bytes = std::fs::read(&file)?;
            bytes[1000] ^= 4;
            std::fs::write(&file, bytes)?;
        }
        assert!(kills < 60, "it never ends");
    }
    println!("killed {kills} times");
    assert!(kills >= 3);
    assert!(lab.weights("killed")? == whole, "after kills other weights");
    assert_eq!(lab.table("killed"), lab.table("whole"));
    Ok(())
}

/// Two launchers in one folder share the work.
#[test]
fn launchers_share() -> Result<()> {
    let lab = Lab::new()?;
    let children = [lab.start("shared", &["--block", "a"])?, lab.start("shared", &["--block", "a"])?];
    for child in children {
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        let last: Value =
            serde_json::from_slice(output.stdout.split(|b| *b == b'\n').rfind(|l| !l.is_empty()).context("JSON")?)?;
        assert_eq!(last["cells_done"], 8, "{stderr}");
    }
    assert_eq!(lab.weights("shared")?.len(), 8);
    let done = std::fs::read_to_string(lab.path("shared/ledger.jsonl"))?.matches("\"done\"").count();
    assert_eq!(done, 8, "each cell was done once");
    Ok(())
}

/// Jobs of a cluster, here played by a script that runs each as it is submitted: what is missing is done, the table is printed.
#[test]
#[cfg(unix)]
fn a_cluster_does_what_is_missing() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new()?;
    let bin = lab.path("bin");
    std::fs::create_dir(&bin)?;
    let sbatch = "#!/bin/sh
        dir=$(dirname \"$0\")
        echo \"$@\" >> \"$dir/calls\"
        last=0
        for word; do
            case $word in --array=*) last=${word#--array=0-}; last=${last%\\%*};; esac
            script=$word
        done
        for task in $(seq 0 $last); do
            SLURM_ARRAY_TASK_ID=$task sh \"$script\" >> \"$dir/said\" 2>&1
        done
        wc -l < \"$dir/calls\" | tr -d ' '
    ";
    let script = Path::new(&bin).join("sbatch");
    std::fs::write(&script, sbatch)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{bin}:{}", std::env::var("PATH")?);
    let submit = |out: &str, more: &[&str]| -> Result<Value> {
        let arguments = lab.arguments(out, &[&["--launcher", "slurm", "--threads", "1"], more].concat());
        let mut command = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let output = command.env("PATH", &path).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout)?;
        Ok(serde_json::from_str(lines.lines().last().context("JSON")?)?)
    };
    // A name that a shell would take apart.
    let out = "it's a grid";
    lab.ablate(out, &["--run", "a/ce-none/s0"]).json();
    let sets = ["--block", "a", "--seeds", "0..1"];
    let jobs = submit(out, &[&sets[..], &["--jobs", "3", "--sbatch=--partition=all"]].concat())?;
    assert_eq!(jobs["jobs"], serde_json::json!({ "caches": "1", "runs": "2", "table": "3" }));
    assert_eq!((&jobs["cells_done"], &jobs["cells_total"]), (&1.into(), &4.into()));
    let calls = std::fs::read_to_string(Path::new(&bin).join("calls"))?;
    let array = calls.lines().nth(1).context("three calls")?;
    for word in
        ["--array=0-2%3", "--dependency=afterok:1", "--cpus-per-task=1", "--partition=all", "--signal=B:TERM@120"]
    {
        assert!(array.contains(word), "{word} in: {array}");
    }
    let said = std::fs::read_to_string(Path::new(&bin).join("said"))?;
    assert_eq!(lab.ablate("whole", &sets).json()["cells_done"], 4);
    assert!(lab.weights(out)? == lab.weights("whole")?, "{said}");
    assert!(said.contains("kd-shap"), "the table: {said}");
    assert!(submit(out, &sets)?["jobs"].is_null());
    lab.ablate(out, &["--run", "a/ce-nine/s0"]).assert_fails(1, &["a/ce-nine/s0", "did you mean \"a/ce-none/s0\""]);
    Ok(())
}

/// Ctrl-C stops the runs with their states saved; the same command goes on.
#[test]
#[cfg(unix)]
fn an_interrupted_grid_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let sets = ["--block", "a", "--seeds", "0..1", "--set", "train.epochs=12"];
    let child = lab.start("stopped", &sets)?;
    let state = Path::new(&lab.path("stopped")).join("a/ce-none/s0/state.safetensors");
    let start = Instant::now();
    while !state.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "the first run does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("The same command goes on"));
    let late = lab.ablate("stopped", &[&sets[..], &["--max-minutes", "0"]].concat());
    late.assert_fails(130, &["0 of 4 runs are done"]);
    assert!(state.exists());
    assert_eq!(lab.ablate("stopped", &sets).json()["cells_done"], 4);
    assert_eq!(lab.ablate("whole", &sets).json()["cells_done"], 4);
    assert!(lab.weights("stopped")? == lab.weights("whole")?);
    lab.ablate("stopped", &["--max-minutes", "inf"]).assert_fails(1, &["--max-minutes inf"]);
    Ok(())
}

/// Runs in bf16 that a processor without it computed in f32 are not put beside others, and no hours are spent on them.
#[test]
fn runs_in_bf16_are_of_one_arithmetic() -> Result<()> {
    let lab = Lab::new()?;
    let bf16 = ["--set", "train.dtype='bf16'"];
    let [one, two] = ["a/ce-none/s0", "a/ce-none/s1"].map(|run| [&bf16[..], &["--run", run]].concat());
    assert_eq!(lab.ablate("mixed", &one).json()["cells_done"], 1);
    let path = Path::new(&lab.path("mixed")).join("a/ce-none/s0/report.json");
    let mut report: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let here = report["computed_in"].as_str().context("computed_in")?.to_string();
    let other = if here == "bf16" { "f32" } else { "bf16" };
    report["computed_in"] = other.into();
    std::fs::write(&path, report.to_string())?;
    lab.ablate("mixed", &two).assert_fails(1, &["train.dtype = \"bf16\" (a/ce-none seed 0", "one arithmetic", "--out"]);
    assert_eq!(lab.ablate("mixed", &one).json()["cells_done"], 1);
    report["computed_in"] = here.into();
    std::fs::write(&path, report.to_string())?;
    assert_eq!(lab.ablate("mixed", &two).json()["cells_done"], 1);
    report["computed_in"] = other.into();
    std::fs::write(&path, report.to_string())?;
    call(&["table", &lab.path("mixed")]).assert_fails(1, &["1 of 2 runs", "a/ce-none seed ", "one arithmetic"]);
    Ok(())
}

/// What holds images out is chosen by them: the launcher says nothing of the test images.
#[test]
fn the_launcher_tells_the_error_of_held_out_images() -> Result<()> {
    let lab = Lab::new()?;
    let told = lab.ablate("held", &["--set", "data.validation=16", "--run", "a/ce-none/s0"]);
    assert_eq!(told.json()["cells_done"], 1);
    let report = std::fs::read(Path::new(&lab.path("held")).join("a/ce-none/s0/report.json"))?;
    let report: Value = serde_json::from_slice(&report)?;
    let last = report["curve"].as_array().and_then(|c| c.last()).and_then(Value::as_f64).context("a curve")?;
    assert_ne!(Some(last), report["test_error"].as_f64());
    let line = format!("a/ce-none/s0 done: {last:.2} % of the held-out images wrong");
    assert!([&told.stdout, &told.stderr].iter().any(|s| s.contains(&line)), "{line}\n{}\n{}", told.stdout, told.stderr);
    Ok(())
}

/// A mistake of one cell is that cell's alone; where nothing else was to be done, nothing was done.
#[test]
fn a_grid_of_mistakes_has_failed() -> Result<()> {
    let lab = Lab::new()?;
    lab.ablate("wrong", &["--run", "b/wrong/s0"]).assert_fails(1, &["1 could not run", "loss.temprature"]);
    lab.ablate("wrong", &["--set", "train=3"]).assert_fails(1, &["--set: train = 3, expected a table of settings"]);
    call(&["train", &lab.path("teacher.toml"), "--run", &lab.path("wrong")])
        .assert_fails(1, &["wrong is a grid's folder"]);
    lab.ablate("wrong", &["--seed", "1", "--seeds", "0..2"]).assert_fails(1, &["--seeds and --seed"]);
    lab.ablate("wrong", &["--set", "train.seed=5"]).assert_fails(1, &["--set train.seed", "--seeds A..B"]);
    Ok(())
}

/// `[table]` goes where `trainer table` looks for it, as often as it changes; a file of somebody's own stays.
#[test]
fn what_a_grid_says_of_its_table_stands_beside_the_runs() -> Result<()> {
    let lab = Lab::new()?;
    let (grid, about) = (lab.path("grid.toml"), lab.path("told/table.toml"));
    let told = || lab.ablate("told", &["--run", "a/ce-none/s0"]);
    assert_eq!(told().json()["cells_done"], 1);
    assert_eq!(lab.table("told")[0]["published"], 50.0);
    let text = std::fs::read_to_string(&grid)?;
    std::fs::write(&grid, text.replace("= 50.0", "= 40.0"))?;
    told();
    assert_eq!(lab.table("told")[0]["published"], 40.0);
    // What the grid no longer says is gone; what somebody else says stays, whatever it is written in.
    std::fs::write(&grid, text.replace("[table]\n    published = { 'a/ce-none' = 50.0 }\n", ""))?;
    told();
    assert!(!Path::new(&about).exists());
    std::fs::write(&grid, &text)?;
    std::fs::write(&about, b"# M\xfcller\nmargin = 0.5\n")?;
    assert!(told().stderr.contains("stays as it is"));
    std::fs::write(&about, "margin = 0.5\n")?;
    assert!(told().stderr.contains("is not the grid's [table] and stays as it is"));
    assert_eq!(std::fs::read_to_string(&about)?, "margin = 0.5\n");
    Ok(())
}

#[test]
fn a_dry_run_tells_the_cost() -> Result<()> {
    let lab = Lab::new()?;
    let told = lab.ablate("nothing", &["--dry-run"]);
    let value = told.json();
    assert_eq!((value["cells_total"].as_u64(), value["cells_done"].as_u64()), (Some(11), Some(0)));
    let rows = value["rows"].as_array().context("rows")?;
    assert_eq!(rows.len(), 7);
    assert!(rows.iter().filter(|r| r["error"].is_null()).all(|r| r["hours"].as_f64() > Some(0.0)), "{rows:?}");
    assert!(told.stdout.contains("cannot run: configuration, loss.temprature"), "{}", told.stdout);
    // Logits, ten maps of 8 x 8, one map of 8 x 8 for 64 images, rounded up to MB each.
    assert_eq!(value["cache_mb"], 3);
    assert!(!Path::new(&lab.path("nothing")).exists());
    let report = lab.path("some/b/wrong/s0/report.json");
    std::fs::create_dir_all(Path::new(&report).parent().context("a folder")?)?;
    std::fs::write(&report, "{}")?;
    assert_eq!(lab.ablate("some", &["--dry-run"]).json()["cells_done"], 1);
    lab.ablate("nothing", &["--seeds", "0..20000"]).assert_fails(1, &["20000 seeds", "at most 10,000"]);
    Ok(())
}
