//! `trainer table` and `trainer report` of grids, from run folders alone.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::program::{call, command, finish};

/// What a run says of itself.
fn report(error: f64, seed: u64, wrong: &str, profile: &str) -> Value {
    serde_json::json!({
        "run": "", "test_error": error, "test_loss": 0.3, "train_error": 1.0, "train_loss": 0.1, "epochs": 60,
        "steps": 1, "seconds": 1.0, "images_per_second": 1.0, "parameters": 1, "flops_per_image": 1.0,
        "profile": profile, "seed": seed, "commit": "abc", "machine": "m", "threads": 1, "device": "cpu",
        "test_wrong": wrong, "inputs": { "teacher": "t" }, "curve": [90.0, error],
    })
}

/// A block may be a link to elsewhere, and a folder may be named by `..`: what its grid says of it holds.
#[test]
#[cfg(unix)]
fn a_block_keeps_its_grids_rules_however_it_is_named() -> Result<()> {
    let (grid, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    std::fs::write(grid.path().join("table.toml"), "held_out = [\"search\"]")?;
    let run = elsewhere.path().join("a/s0");
    std::fs::create_dir_all(&run)?;
    std::fs::write(run.join("config.toml"), "[train]\nseed = 0\nepochs = 60\n[data]\nvalidation = 10\n")?;
    let mut report = report(5.0, 0, "00", "fast");
    report["curve"] = serde_json::json!([9.0, 8.25]);
    std::fs::write(run.join("report.json"), report.to_string())?;
    let block = grid.path().join("search");
    std::os::unix::fs::symlink(elsewhere.path(), &block)?;
    for named in [&block, &block.join("a")] {
        let row = &call(&["table", &named.display().to_string(), "--json"]).json()["rows"][0];
        assert_eq!((&row["cell"], &row["error"]), (&"search/a".into(), &8.25.into()), "{}", named.display());
    }
    let plain = grid.path().join("other");
    std::fs::create_dir(&plain)?;
    let mut above = command(&["table", "..", "--json"]);
    above.current_dir(&plain);
    assert_eq!(finish(above).json()["rows"][0]["error"], 8.25);
    Ok(())
}

/// A table of reports by hand: what is the mean, what is compared, what is mixed.
#[test]
fn tables_from_folders_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let write = |cell: &str, seed: u64, error: f64, wrong: &str, profile: &str| -> Result<()> {
        let run = dir.path().join(format!("published/{cell}/s{seed}"));
        std::fs::create_dir_all(&run)?;
        std::fs::write(run.join("report.json"), report(error, seed, wrong, profile).to_string())?;
        let config = format!("[train]\nseed = {seed}\n[loss]\ninterpreter = \"{cell}\"");
        std::fs::write(run.join("config.toml"), config)?;
        Ok(())
    };
    for (seed, a, b) in [(0, 6.8, 6.5), (1, 6.9, 6.6), (2, 6.7, 6.4)] {
        write("kd-none", seed, a, "f0", "fast")?;
        write("kd-maps", seed, b, "80", "fast")?;
    }
    std::fs::write(dir.path().join("table.toml"), "published = { \"published/kd-none\" = 5.68 }")?;
    let path = dir.path().display().to_string();
    let value = call(&["table", &path, "--json"]).json();
    let rows = value["rows"].as_array().context("rows")?;
    let (none, maps) = (&rows[0], &rows[1]);
    assert_eq!((&none["cell"], &none["published"]), (&"published/kd-none".into(), &5.68.into()));
    assert!((none["error"].as_f64().unwrap() - 6.8).abs() < 1e-12);
    // sd 0.1 in both cells, 4 degrees of freedom: t = 2.776, half width 2.776 * 0.1 / sqrt 3.
    assert!((none["half_width"].as_f64().unwrap() - 0.160_298_1).abs() < 1e-6, "{none}");
    assert!((maps["difference"].as_f64().unwrap() + 0.3).abs() < 1e-12);
    // t = 0.3 / (0.1 sqrt(2/3)) = 3.674 at 4: p = 0.0213.
    assert!((maps["p"].as_f64().unwrap() - 0.021_312).abs() < 1e-5, "{maps}");
    // Three times the same four images wrong without maps, one of them with: three more are not nine.
    assert!((maps["mcnemar"].as_f64().unwrap() - 0.25).abs() < 1e-12, "{maps}");
    assert_eq!((&maps["only_this_wrong"], &maps["only_other_wrong"]), (&0.into(), &9.into()));
    let sentence = value["sentences"][0].as_str().context("a sentence")?;
    assert!(
        sentence.starts_with("published/kd-maps: better (-0.30 ± 0.23 points against kd-none, p = 0.021"),
        "{sentence}"
    );
    let plot = dir.path().join("table.svg");
    let markdown = call(&["table", &path, "--format", "md", "--plot", &plot.display().to_string()]);
    assert!(
        markdown.stdout.contains("| published/kd-none | 3 | 6.80 ± 0.16 | 0.10 | 5.68 | 0.300 |"),
        "{}",
        markdown.stdout
    );
    assert!(std::fs::read_to_string(plot)?.contains("<svg"));
    let csv = call(&["table", &path, "--format", "csv"]).stdout;
    assert_eq!(csv.lines().count(), 3, "{csv}");
    // Of fewer seeds: one run a cell has no interval and is compared with nothing.
    let one = call(&["table", &path, "--seeds", "1..2", "--json"]).json();
    let rows = one["rows"].as_array().context("rows")?;
    assert_eq!(
        rows.iter().map(|r| (r["n"].clone(), r["error"].clone())).collect::<Vec<_>>(),
        [(1.into(), 6.9.into()), (1.into(), 6.6.into())]
    );
    assert!(rows.iter().all(|r| r["half_width"].is_null() && r["p"].is_null()), "{one}");
    call(&["table", &path, "--seeds", "7..9"]).assert_fails(1, &["no finished runs of these seeds"]);
    let page = dir.path().join("page.html");
    let written = call(&["report", &path, "--out", &page.display().to_string(), "--json"]).json();
    assert_eq!(written["out"], page.display().to_string());
    let page = std::fs::read_to_string(Path::new(&page))?;
    for part in [
        "6 finished runs of 2 cells",
        "published/kd-maps: better (-0.30 ± 0.23",
        ">6.80 ± 0.16<",
        "Block published: test images that are wrong",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert_eq!(page.matches("<svg role=").count(), 2, "every run, and a block's curves");
    // A program of later gave its reports a setting more, at its default.
    let later = dir.path().join("published/kd-maps/s1/config.toml");
    std::fs::write(&later, "[train]\nseed = 1\n[loss]\ninterpreter = \"kd-maps\"\ncontrol = \"none\"")?;
    assert_eq!(call(&["table", &path, "--format", "csv"]).stdout, csv);
    // A block may be compared with a cell of another, and be shown alone.
    let control = dir.path().join("controls/other/s0");
    std::fs::create_dir_all(&control)?;
    let at = |file: &str| dir.path().join("published/kd-maps/s0").join(file);
    std::fs::copy(at("report.json"), control.join("report.json"))?;
    std::fs::copy(at("config.toml"), control.join("config.toml"))?;
    let about = dir.path().join("table.toml");
    std::fs::write(&about, "against = { controls = \"published/kd-none\" }")?;
    let only = call(&["table", &path, "--block", "controls", "--json"]).json();
    assert_eq!(only["rows"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&only["rows"][0]["cell"], &only["rows"][0]["against"]),
        (&"controls/other".into(), &"published/kd-none".into())
    );
    // One run, the other cell's sd of 0.1 with 2 degrees of freedom: t = 0.3 / (0.1 sqrt(1 + 1/3)) = 2.598, p = 0.1217.
    assert!((only["rows"][0]["p"].as_f64().unwrap() - 0.121_69).abs() < 1e-4, "{only}");
    call(&["table", &path, "--block", "x"]).assert_fails(1, &["a block x", "controls, published"]);
    std::fs::write(&about, "against = { controls = \"published/kd-later\" }")?;
    let awaited = call(&["table", &path, "--json"]).json();
    assert!(awaited["notes"].to_string().contains("controls/other with published/kd-later"), "{awaited}");
    // What settings are chosen by is the images held out, and nothing is said of the test images.
    std::fs::write(&about, "held_out = [\"controls\"]")?;
    call(&["table", &path]).assert_fails(1, &["controls", "other seed 0 held none out"]);
    let mut report: Value = serde_json::from_slice(&std::fs::read(at("report.json"))?)?;
    report["curve"] = serde_json::json!([9.0, 8.25]);
    std::fs::write(control.join("report.json"), report.to_string())?;
    std::fs::write(control.join("config.toml"), "[train]\nseed = 0\nepochs = 60\n[data]\nvalidation = 10\n")?;
    let chosen = call(&["table", &path, "--block", "controls", "--json"]).json();
    let row = &chosen["rows"][0];
    assert_eq!((&row["error"], &row["error_of"], &row["nll"]), (&8.25.into(), &"held-out images".into(), &Value::Null));
    // Nor by way of the block's own folder, from outside or inside.
    let folder = dir.path().join("controls");
    let mut inside = command(&["table", ".", "--json"]);
    inside.current_dir(&folder);
    for table in [call(&["table", &folder.display().to_string(), "--json"]), finish(inside)] {
        let within = &table.json()["rows"][0];
        assert_eq!((&within["cell"], &within["error"]), (&"controls/other".into(), &8.25.into()));
    }
    let page = call(&["report", &folder.join("other/s0").display().to_string()]);
    assert_eq!(page.code, 0, "{}", page.stderr);
    let page = std::fs::read_to_string(folder.join("other/s0/report.html"))?;
    assert!(page.contains("<h1>controls/other/s0</h1>") && page.contains("<dd>8.25 %</dd>"), "{page}");
    assert!(!page.contains("test error") && page.contains("nothing of the test images is shown"), "{page}");
    // Nor are cells compared that were trained otherwise.
    std::fs::write(control.join("config.toml"), "[train]\nseed = 0\nepochs = 2\n")?;
    report["epochs"] = 2.into();
    std::fs::write(control.join("report.json"), report.to_string())?;
    std::fs::write(&about, "against = { controls = \"published/kd-none\" }")?;
    call(&["table", &path]).assert_fails(1, &["controls/other was trained for 2 epochs", "cannot be compared"]);
    std::fs::remove_dir_all(dir.path().join("controls"))?;
    std::fs::remove_file(&about)?;
    // Profiles and settings are not mixed.
    write("kd-other", 0, 6.0, "00", "paper")?;
    call(&["table", &path]).assert_fails(1, &["profile fast", "profile paper", "one profile"]);
    std::fs::remove_dir_all(dir.path().join("published/kd-other"))?;
    std::fs::write(
        dir.path().join("published/kd-maps/s1/config.toml"),
        "[train]\nseed = 1\n[loss]\ninterpreter = \"x\"",
    )?;
    call(&["table", &path]).assert_fails(1, &["kd-maps", "different settings"]);
    std::fs::write(dir.path().join("published/kd-maps/s1/report.json"), "{")?;
    call(&["table", &path]).assert_fails(1, &["report.json is damaged"]);
    call(&["table", &dir.path().join("table.svg").display().to_string()]).assert_fails(1, &["table.svg"]);
    Ok(())
}
