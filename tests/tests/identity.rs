//! A result belongs to what it was made of: to its settings, to the contents of its inputs, and to one process at a
//! time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use testkit::program::{Call, call, command, finish};

const QUICK: &str = "
    [data]
    name = 'cifar10-mini'
    limit = 64
    [student]
    arch = 'resnet8'
    [train]
    epochs = 1
    batch = 32
";

struct Lab(TempDir);

impl Lab {
    fn new() -> Result<Lab> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("quick.toml"), QUICK)?;
        Ok(Lab(dir))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn train(&self, run: &str, more: &[&str]) -> Call {
        call(&[&["train", &self.path("quick.toml"), "--quiet", "--json", "--run", &self.path(run)], more].concat())
    }

    /// A trained model.
    fn model(&self, run: &str, seed: &str) -> String {
        self.train(run, &["--seed", seed]).json();
        self.path(&format!("{run}/last.safetensors"))
    }
}

/// Finished or not, a run is not another teacher's, warm start's or data folder's, though every file is called the
/// same.
#[test]
fn a_result_is_not_given_for_other_inputs() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.model("a", "1"), lab.model("b", "2"));
    let kd = |teacher: &str| {
        vec!["--set".to_string(), format!("teacher.checkpoint={teacher}"), "--set".into(), "loss.weights.kd=1.0".into()]
    };
    let warm = |start: &str| vec!["--set".to_string(), format!("student.checkpoint={start}")];
    let stop = "train.max_minutes=1e-9";
    type Sets<'a> = &'a dyn Fn(&str) -> Vec<String>;
    for (what, sets) in [("teacher", &kd as Sets), ("student's warm start", &warm as Sets)] {
        for finished in [true, false] {
            let run = format!("{}-{finished}", what.replace(' ', "-"));
            let go = |of: &str, more: &[&str]| {
                let sets = sets(of);
                lab.train(&run, &[&sets.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
            };
            let early = ["--set", stop];
            let first = go(&a, if finished { &[] } else { &early });
            assert_eq!(first.code, if finished { 0 } else { 130 }, "{}", first.stderr);
            go(&b, &["--resume"]).assert_fails(1, &[&format!("the {what} is not what the run in"), "--run"]);
            go(&lab.path("nowhere/last.safetensors"), &["--resume"]).assert_fails(1, &["reading", "nowhere"]);
            // A copy of the same bytes under another name is the same input.
            std::fs::copy(&a, lab.path("copy.safetensors"))?;
            let again = go(&lab.path("copy.safetensors"), &["--resume"]).json();
            if finished {
                assert_eq!(again["test_loss"], first.json()["test_loss"]);
            }
        }
    }
    Ok(())
}

/// A folder of images with `classes` of `count` images each, shifted by `tint`.
fn write_images(root: &Path, classes: &[&str], count: u8, tint: u8) -> Result<()> {
    for split in ["train", "test"] {
        for (c, class) in classes.iter().enumerate() {
            let dir = root.join(split).join(class);
            std::fs::create_dir_all(&dir)?;
            for i in 0..count {
                let color = image::Rgb([c as u8 * 60 + tint, i * 20, 128]);
                image::RgbImage::from_pixel(20, 20, color).save(dir.join(format!("{i}.png")))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_result_is_not_given_for_another_data_folder() -> Result<()> {
    let lab = Lab::new()?;
    for (name, tint) in [("x", 0), ("y", 9)] {
        write_images(&lab.0.path().join(name), &["cat", "dog"], 8, tint)?;
    }
    let go = |data: &str, more: &[&str]| {
        let dir = format!("data.dir={}", lab.path(data));
        let sets = ["--set", "data.name=folder", "--set", &dir, "--set", "data.limit=0", "--set", "train.batch=8"];
        lab.train("run", &[&sets[..], more].concat())
    };
    let first = go("x", &[]).json();
    assert_eq!(go("x", &["--resume"]).json()["test_loss"], first["test_loss"]);
    go("y", &["--resume"]).assert_fails(1, &["images is not what the run in"]);
    // Only the test images differ.
    std::fs::copy(lab.path("y/test/cat/0.png"), lab.path("x/test/cat/0.png"))?;
    go("x", &["--resume"]).assert_fails(1, &["the test images is not what the run in"]);
    Ok(())
}

/// Two runs started together into one folder: one works, the other says who does, and nothing is mixed.
#[test]
fn a_folder_is_one_process_s() -> Result<()> {
    let lab = Lab::new()?;
    for resume in [&[][..], &["--resume"]] {
        let run = format!("run{}", resume.len());
        let arguments = |lr: &str| -> Vec<String> {
            let base =
                ["train", &lab.path("quick.toml"), "--quiet", "--run", &lab.path(&run), "--set", "train.epochs=40"];
            let lr = ["--set".to_string(), format!("optim.lr={lr}")];
            base.map(String::from).into_iter().chain(lr).chain(resume.iter().map(|s| s.to_string())).collect()
        };
        let start = |lr: &str| {
            let arguments = arguments(lr);
            command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn()
        };
        let (a, b) = (start("0.1")?, start("0.2")?);
        let ids = [a.id(), b.id()];
        let ends: Vec<_> = [a, b].into_iter().map(|child| child.wait_with_output()).collect::<std::io::Result<_>>()?;
        let codes: Vec<_> = ends.iter().map(|e| e.status.code().unwrap_or(-1)).collect();
        let winner = codes.iter().position(|c| *c == 0).context("nobody finished")?;
        let loser = 1 - winner;
        assert_eq!(codes[loser], 1, "{codes:?}");
        let told = String::from_utf8_lossy(&ends[loser].stderr);
        assert!(told.contains("is in use by process") && told.contains(&ids[winner].to_string()), "{told}");
        assert!(told.contains("--run"), "{told}");
        let config = std::fs::read_to_string(lab.path(&format!("{run}/config.toml")))?;
        assert!(config.contains(["lr = 0.1", "lr = 0.2"][winner]), "{config}");
        let last = trainer::checkpoint::File::read(Path::new(&lab.path(&format!("{run}/last.safetensors"))))?;
        assert!(last.metadata["config"].contains(["\"lr\":0.1", "\"lr\":0.2"][winner]));
    }
    Ok(())
}

/// A claim dies with its process: nothing is left to clean up after a kill.
#[test]
fn a_killed_process_holds_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let sets = ["--set", "train.epochs=400", "--set", "train.save_every=1"];
    let quick = lab.path("quick.toml");
    let run = lab.path("run");
    let mut child = command(&[&["train", &quick, "--quiet", "--run", &run], &sets[..]].concat()).spawn()?;
    let start = Instant::now();
    while !Path::new(&run).join("state.safetensors").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.train("run", &[&sets[..], &["--resume"]].concat()).assert_fails(1, &["is in use by process"]);
    child.kill()?;
    child.wait()?;
    let stop = ["--resume", "--set", "train.max_minutes=1e-9"];
    lab.train("run", &[&sets[..], &stop].concat()).assert_fails(130, &["the state is saved"]);
    let left: Vec<_> = std::fs::read_dir(&run)?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    Ok(())
}

/// A sweep without --run meets itself, and is told so.
#[test]
fn a_sweep_into_one_folder_is_told_how_to_name_others() -> Result<()> {
    let lab = Lab::new()?;
    let go = |lr: &str| {
        let mut c = command(&["train", "quick.toml", "--quiet", "--json", "--set", lr]);
        c.current_dir(lab.0.path());
        finish(c)
    };
    assert_eq!(go("optim.lr=0.1").json()["run"], "runs/quick-s0");
    go("optim.lr=0.3").assert_fails(1, &["already holds a different run", "settings given with --set", "--run"]);
    Ok(())
}

/// What the teacher said is kept apart by all that it depends on, its size is told, and there is a bound.
#[test]
fn a_cache_says_what_it_takes() -> Result<()> {
    let lab = Lab::new()?;
    let teacher = format!("teacher.checkpoint={}", lab.model("t", "1"));
    let cache = format!("teacher.cache={}", lab.path("cache"));
    let sets = ["--set", &teacher, "--set", &cache, "--set", "loss.weights.kd=1.0", "--set", "train.epochs=3"];
    let mut loud = command(&[&["train", &lab.path("quick.toml"), "--run", &lab.path("one")], &sets[..]].concat());
    loud.current_dir(lab.0.path());
    let told = finish(loud);
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stderr.contains("1 MB for 3 views, 0 MB of them there already"), "{}", told.stderr);
    let mut folders = std::fs::read_dir(lab.path("cache"))?.map_while(|entry| Some(entry.ok()?.path()));
    let folder = folders.find(|folder| !folder.ends_with("test")).context("a folder")?;
    let key: Value = serde_json::from_slice(&std::fs::read(folder.join("key.json"))?)?;
    let engine = key["engine"].as_str().context("engine")?;
    assert!(key["format"].as_u64().is_some() && engine.contains("Kernels") && engine.contains("Cpu"), "{key}");
    // 64 images of 10 logits and 10 maps of 8 x 8 in 4 bytes, a new view each of 50,000 epochs: 8 GB and more.
    let many = ["--set", "train.epochs=50000", "--set", "loss.weights.explanation=1.0"];
    let refused = lab.train("two", &[&sets[..], &many].concat());
    refused.assert_fails(1, &["teacher.cache would take", "for 50000 views", "teacher.cache_limit_mb", "data.views"]);
    assert!(!Path::new(&lab.path("two")).exists());
    let limit = ["--set", "teacher.cache_limit_mb=0"];
    lab.train("three", &[&sets[..], &limit].concat()).assert_fails(1, &["teacher.cache_limit_mb allows 0"]);
    Ok(())
}

/// A finished run is made longer where that changes nothing of what is done; else the two ways on are said.
#[test]
fn a_run_is_made_longer_where_that_is_honest() -> Result<()> {
    let lab = Lab::new()?;
    lab.train("linear", &[]).json();
    let told = lab.train("linear", &["--resume", "--set", "train.epochs=2"]);
    told.assert_fails(1, &["a run of 1 epochs", "student.checkpoint=", "constant, multi_step"]);
    let constant = ["--set", "optim.schedule=constant", "--set", "optim.warmup=1.0"];
    let epochs = |n: &str| format!("train.epochs={n}");
    let go =
        |run: &str, n: &str, more: &[&str]| lab.train(run, &[&constant[..], &["--set", &epochs(n)], more].concat());
    go("short", "2", &[]).json();
    let long = go("short", "4", &["--resume"]).json();
    let whole = go("whole", "4", &[]).json();
    assert_eq!((&long["test_loss"], &long["epochs"]), (&whole["test_loss"], &whole["epochs"]));
    assert_eq!(std::fs::read(lab.path("short/last.safetensors"))?, std::fs::read(lab.path("whole/last.safetensors"))?);
    go("short", "3", &["--resume"]).assert_fails(1, &["train.epochs: 4 there, 3 here"]);
    // What is written how often changes nothing.
    let often = ["--resume", "--set", "train.log_every=1", "--set", "train.save_every=7", "--threads", "1"];
    assert_eq!(go("short", "4", &often).json()["test_loss"], long["test_loss"]);
    Ok(())
}

/// After a kill TensorBoard's files hold every step once.
#[test]
fn events_are_cut_with_the_metrics() -> Result<()> {
    let lab = Lab::new()?;
    let sets = ["--set", "train.epochs=6", "--set", "train.save_every=3", "--set", "train.log_every=1"];
    let quick = lab.path("quick.toml");
    let run = lab.path("run");
    for _ in 0..3 {
        let arguments = [&["train", &quick, "--quiet", "--run", &run, "--resume"], &sets[..]].concat();
        let mut child = command(&arguments).spawn()?;
        let lines = || std::fs::read_to_string(Path::new(&run).join("metrics.jsonl")).map_or(0, |t| t.lines().count());
        let (start, before) = (Instant::now(), lines());
        while lines() < before + 2 && child.try_wait()?.is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "the run does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()?;
    }
    lab.train("run", &[&sets[..], &["--resume"]].concat()).json();
    let mut steps: Vec<u64> = vec![];
    let files = std::fs::read_dir(&run)?.filter_map(|e| Some(e.ok()?.path()));
    for file in files.filter(|f: &PathBuf| f.to_string_lossy().contains("tfevents")) {
        steps.extend(losses(&std::fs::read(file)?));
    }
    steps.sort_unstable();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>(), "each of the 12 steps once");
    Ok(())
}

/// The steps of the events that hold `step/total`.
fn losses(mut bytes: &[u8]) -> Vec<u64> {
    let mut steps = vec![];
    while let Some((head, rest)) = bytes.split_at_checked(12) {
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        let event = &rest[..length];
        bytes = &rest[length + 4..];
        if event.windows(10).any(|w| w == b"step/total") {
            // wall_time (tag 0x09, 8 bytes), then the step (tag 0x10, one byte below 128).
            assert_eq!((event[0], event[9]), (0x09, 0x10));
            steps.push(u64::from(event[10]));
        }
    }
    steps
}

/// What people's folders hold besides images.
#[test]
fn folders_are_read_as_they_are_meant() -> Result<()> {
    let lab = Lab::new()?;
    let root = lab.0.path().join("images");
    write_images(&root, &["cat", "dog"], 4, 0)?;
    // Hidden names are nobody's class and no image; sub-folders are walked; what is no image is counted.
    for split in ["train", "test"] {
        std::fs::create_dir(root.join(split).join(".ipynb_checkpoints"))?;
        std::fs::write(root.join(split).join("cat/._0.png"), b"Mac OS X")?;
        std::fs::write(root.join(split).join("cat/notes.txt"), b"three cats")?;
        std::fs::create_dir(root.join(split).join("dog/puppies"))?;
        std::fs::copy(root.join(split).join("dog/0.png"), root.join(split).join("dog/puppies/p.png"))?;
    }
    let dir = format!("data.dir={}", root.display());
    let sets = ["--set", "data.name=folder", "--set", &dir, "--set", "data.limit=0", "--set", "train.batch=4"];
    let mut loud =
        command(&[&["train", &lab.path("quick.toml"), "--json", "--run", &lab.path("run")], &sets[..]].concat());
    loud.current_dir(lab.0.path());
    let told = finish(loud);
    let model = lab.path("run/last.safetensors");
    let data = format!("folder:{}", root.display());
    let eval = || call(&["eval", "--checkpoint", &model, "--data", &data, "--json"]);
    assert_eq!(told.json()["steps"], 3, "4 cats, 5 dogs");
    assert!(told.stderr.contains("not read as images (1 .txt) and 2 hidden names"), "{}", told.stderr);
    let found = eval();
    assert_eq!(
        (found.json()["n"].as_u64(), found.json()["error_per_class"].as_array().map(Vec::len)),
        (Some(9), Some(2))
    );
    assert!(found.stderr.contains("passed over"), "{}", found.stderr);

    // Classes without images are errors that name them.
    let empty = root.join("train/eel");
    std::fs::create_dir(&empty)?;
    lab.train("no", &sets).assert_fails(1, &["the class eel has no image", "PNG, JPEG"]);
    std::fs::write(empty.join("eel.heic"), b"no")?;
    lab.train("no", &sets).assert_fails(1, &["the class eel has no image", "1 .heic"]);
    std::fs::remove_dir_all(&empty)?;
    // So is a picture of which a part is missing, by its name.
    let whole = root.join("test/cat/1.jpg");
    image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * 6) as u8, (y * 6) as u8, 9])).save(&whole)?;
    assert_eq!(eval().json()["n"], 10);
    let bytes = std::fs::read(&whole)?;
    std::fs::write(&whole, &bytes[..bytes.len() - 1])?;
    eval().assert_fails(1, &["1.jpg", "truncated"]);
    lab.train("no", &sets).assert_fails(1, &["1.jpg", "truncated"]);
    let explain =
        call(&["explain", "--checkpoint", &model, "--images", &whole.display().to_string(), "--method", "cam"]);
    explain.assert_fails(1, &["1.jpg", "truncated"]);
    Ok(())
}

#[test]
#[cfg(target_os = "linux")]
fn a_class_whose_name_is_no_text_is_a_class() -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::new()?;
    let root = lab.0.path().join("images");
    write_images(&root, &["cat", "dog"], 4, 0)?;
    for split in ["train", "test"] {
        let from = root.join(split).join("dog");
        std::fs::rename(&from, root.join(split).join(std::ffi::OsStr::from_bytes(b"chi\xeaen")))?;
    }
    let dir = format!("data.dir={}", root.display());
    let sets = ["--set", "data.name=folder", "--set", &dir, "--set", "data.limit=0", "--set", "train.batch=4"];
    assert_eq!(lab.train("run", &sets).json()["steps"], 2);
    Ok(())
}

/// SIGTERM, as batch systems send it, saves as Ctrl-C does.
#[test]
#[cfg(unix)]
fn a_terminated_run_is_saved() -> Result<()> {
    let lab = Lab::new()?;
    let (quick, run) = (lab.path("quick.toml"), lab.path("run"));
    let child = command(&["train", &quick, "--quiet", "--run", &run, "--set", "train.epochs=400"]).spawn()?;
    let start = Instant::now();
    while !Path::new(&run).join("last.safetensors").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?.success());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the state is saved"));
    Ok(())
}
