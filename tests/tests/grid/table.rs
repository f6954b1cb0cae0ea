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
    report["curve"] = serde_json::json!([9.0, null, 8.25]);
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

/// A run's folder below a grid's.
fn put(grid: &Path, run: &str, report: &Value, settings: &str) -> Result<()> {
    let dir = grid.join(run);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("report.json"), report.to_string())?;
    Ok(std::fs::write(dir.join("config.toml"), settings)?)
}

/// Runs that are the same, that diverged, that are not alike: each is said, none is judged.
#[test]
fn what_a_table_says_of_odd_cells() -> Result<()> {
    let grid = tempfile::tempdir()?;
    let dir = grid.path();
    let settings = |epochs: usize| format!("[train]\nepochs = {epochs}\n");
    // A run that is being made longer is none yet.
    put(dir, "b/a-longer/s0", &report(5.0, 0, "80", "fast"), &settings(80))?;
    for (seed, error) in [(0, 6.8), (1, 6.9), (2, 6.7)] {
        let told = report(error, seed, ["f0", "0f", "33"][seed as usize], "fast");
        put(dir, &format!("b/a-none/s{seed}"), &told, &settings(60))?;
        put(dir, &format!("b/a-same/s{seed}"), &told, &settings(60))?;
        put(dir, &format!("b/a-weight=1000e-2/s{seed}"), &report(error - 1.0, seed, "80", "fast"), &settings(60))?;
        put(dir, &format!("b/a-weight=9e0/s{seed}"), &report(error - 0.01, seed, "80", "fast"), &settings(60))?;
        let mut short = report(error - 2.0, seed, "80", "fast");
        short["epochs"] = 10.into();
        put(dir, &format!("b/a-short/s{seed}"), &short, &settings(10))?;
        put(dir, &format!("b/c-pp/s{seed}"), &report(error - 3.0, seed, "80", "fast"), &settings(60))?;
    }
    put(dir, "b/c-none/s0", &report(6.8, 0, "f0", "fast"), &settings(60))?;
    put(dir, "b/a-lost/s0", &report(5.0, 0, "80", "fast"), &settings(60))?;
    for run in ["b/a-lost/s1", "b/a-lost/s2", "b/a-gone/s0", "b/a-gone/s1"] {
        std::fs::create_dir_all(dir.join(run))?;
        std::fs::write(dir.join(run).join("diverged.json"), "{}")?;
    }
    std::fs::write(dir.join("table.toml"), "against = { \"b/a-weight=9e0\" = \"a-gone\" }")?;
    let path = dir.display().to_string();
    let told = call(&["table", &path, "--json"]).json();
    let lines = |key: &str| -> Vec<String> { serde_json::from_value(told[key].clone()).unwrap() };
    let (sentences, notes) = (lines("sentences"), lines("notes").join("\n"));
    for part in [
        "b/a-same: identical to a-none on every test image (seeds 0, 1, 2)",
        "b/a-lost: not judged, as 2 of the runs diverged (-1.80 ± ",
        "b/a-gone: every run diverged (2)",
        "b/a-weight=1000e-2: better (-1.00 ± ",
        "b/c-pp: not judged, as c-none has one run (-3.00 ± ",
    ] {
        assert!(sentences.iter().any(|s| s.starts_with(part)), "{part}: {sentences:#?}");
    }
    assert_eq!(sentences.len(), 5, "{sentences:#?}");
    for part in [
        "b/a-short with b/a-none: b/a-short was trained for 10 epochs, b/a-none for 60",
        "b/a-weight=9e0 with b/a-gone, of which every run diverged",
        // One of them of a cell that is gone, one with it.
        "5 % after Holm over 5 comparisons",
        // The twin says nothing of its own: none, two weights, the short one and c-pp share 10 degrees of freedom.
        "(10 degrees of freedom)",
        "some cells have more seeds than 0, which all have",
        "of 15 pairs of runs of one cell it tells 0 apart",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    let rows = told["rows"].as_array().context("rows")?;
    let order: Vec<&str> = rows.iter().map(|r| r["cell"].as_str().unwrap()).collect();
    assert!(order[0] == "b/a-none" && order[1] == "b/a-weight=9e0" && order[2] == "b/a-weight=1000e-2", "{order:?}");
    // What is not judged takes no place among the tests that are.
    let lost = rows.iter().find(|row| row["cell"] == "b/a-lost").context("a-lost")?;
    assert!(lost["holm"] == 1.0 && lost["p"].as_f64().is_some_and(|p| p < 0.05), "{lost}");
    let markdown = call(&["table", &path, "--format", "md"]).stdout;
    assert!(markdown.contains("| b/a-lost | 1 (+2 diverged) | 5.00 ± "), "{markdown}");
    // Of one seed nothing is compared, but what is the same is seen.
    let one = call(&["table", &path, "--seeds", "0..1", "--json"]).json();
    assert!(
        one["notes"].to_string().contains("No cell in b has two runs and none that diverged: nothing is compared"),
        "{one}"
    );
    assert!(
        one["sentences"].to_string().contains("b/a-same: identical to a-none on every test image (seed 0)"),
        "{one}"
    );
    // A block of single runs, whose reference has several: its tests' deviation is said.
    std::fs::write(dir.join("table.toml"), "against = { c = \"b/a-none\" }")?;
    put(dir, "c/other/s0", &report(5.0, 0, "80", "fast"), &settings(60))?;
    let beside = call(&["table", &path, "--block", "c", "--json"]).json();
    let notes = beside["notes"].to_string();
    assert!(notes.contains("c: the standard deviation over seeds that its cells and those of other blocks"), "{notes}");
    assert!(
        notes.contains("is 0.100 points (2 degrees of freedom)") && notes.contains("over 1 comparison)"),
        "{notes}"
    );
    assert!(!notes.contains("nothing is compared"), "{notes}");
    // Outside a grid names that happen to match ask for nothing; in one there is one teacher.
    let mut other = report(5.0, 0, "80", "fast");
    other["inputs"]["teacher"] = "u".into();
    put(dir, "b/a-other/s0", &other, &settings(60))?;
    call(&["table", &path]).assert_fails(1, &["b/a-other and b/a-none have different teacher", "cannot be compared"]);
    std::fs::remove_dir_all(dir.join("b/a-other"))?;
    let plain = tempfile::tempdir()?;
    put(plain.path(), "kd-none-s0", &report(5.0, 0, "80", "fast"), &settings(60))?;
    put(plain.path(), "kd-pp-s0", &other, &settings(60))?;
    let notes = call(&["table", &plain.path().display().to_string(), "--json"]).json()["notes"].to_string();
    assert!(notes.contains("kd-pp with kd-none: kd-pp and kd-none have different teacher"), "{notes}");
    // Whoever asks for a comparison of what is not alike is told at once.
    std::fs::write(dir.join("table.toml"), "against = { \"b/a-short\" = \"a-none\" }")?;
    call(&["table", &path]).assert_fails(1, &["b/a-short was trained for 10 epochs", "cannot be compared"]);
    Ok(())
}

/// Maps are compared by a cell's own method, with those of the same method where there is no term.
#[test]
fn maps_beside_those_without_the_term() -> Result<()> {
    let grid = tempfile::tempdir()?;
    let alike =
        |pearson: f64| serde_json::json!({ "pearson": pearson, "spearman": 0.1, "cosine": 0.2, "top20": 0.3, "n": 8 });
    for seed in 0..2 {
        let mut told = report(6.0 + seed as f64, seed, "80", "fast");
        let maps = [("grad_cam", alike(0.5)), ("grad_cam_pp", alike(0.7 + 0.1 * seed as f64))];
        let agreement = serde_json::json!({ "same_class": 90.0, "kl": 0.5, "maps": maps.into_iter().collect::<std::collections::BTreeMap<_, _>>() });
        told["agreement"] = agreement;
        let settings = "[loss]\ninterpreter = 'grad_cam_pp'\nweights = { ce = 1.0, explanation = 0.25 }\n";
        put(grid.path(), &format!("b/x-none/s{seed}"), &told, settings)?;
        told["gradient_norms"] = serde_json::json!({ "explanation": 2.0, "total": 4.0 });
        told["agreement"]["maps"]["grad_cam_pp"] = alike(0.9);
        told["test_wrong"] = "40".into();
        put(grid.path(), &format!("b/x-pp/s{seed}"), &told, settings)?;
    }
    let told = call(&["table", &grid.path().display().to_string(), "--json"]).json();
    let figure = |row: usize, key: &str| told["rows"][row][key].as_f64().unwrap_or(f64::NAN);
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}, not {expected}: {told}");
    close(figure(0, "pearson"), 0.5);
    close(figure(1, "pearson"), 0.9);
    close(figure(1, "pearson_without"), 0.75);
    close(figure(1, "share"), 12.5);
    // Both cells' kl never change: an interval of no width.
    close(figure(1, "kl_half_width"), 0.0);
    assert!(told["rows"][0]["pearson_without"].is_null());
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
    // Three times the same four images wrong without maps, one of them with: three more are not nine. Twice the median.
    assert!((maps["mcnemar"].as_f64().unwrap() - 0.5).abs() < 1e-12, "{maps}");
    assert_eq!((&maps["only_this_wrong"], &maps["only_other_wrong"]), (&0.into(), &9.into()));
    let sentence = value["sentences"][0].as_str().context("a sentence")?;
    assert!(
        sentence.starts_with("published/kd-maps: better (-0.30 ± 0.23 points against kd-none, p = 0.021"),
        "{sentence}"
    );
    let plot = dir.path().join("table.svg");
    call(&["table", &path, "--plot", "table.png"]).assert_fails(1, &["what is written is SVG"]);
    let markdown = call(&["table", &path, "--format", "md", "--plot", &plot.display().to_string()]);
    assert!(
        markdown.stdout.contains("| published/kd-none | 3 | 6.80 ± 0.16 | 0.10 | 5.68 | 0.300 ± 0.000 |"),
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

/// The middle of the values that are as good as the best, and what one should know of it.
#[test]
fn a_search_chooses_the_middle_of_what_is_as_good_as_the_best() -> Result<()> {
    let grid = tempfile::tempdir()?;
    let (dir, about) = (grid.path(), grid.path().join("table.toml"));
    let cell = |run: &str, error: f64| {
        let mut told = report(50.0, 100, "00", "fast");
        told["curve"] = serde_json::json!([90.0, error]);
        put(dir, &format!("search/{run}/s100"), &told, "[train]\nseed = 100\nepochs = 60\n[data]\nvalidation = 5000\n")
    };
    let errors = |name: &str, errors: &[(&str, f64)]| -> Result<()> {
        errors.iter().try_for_each(|(value, error)| cell(&format!("{name}={value}"), *error))
    };
    // Within 0.34 points of the lowest, to the second digit; the lower of two; a number is a number however it is written.
    errors("a-weight", &[("0.3", 7.5), ("1.0", 7.04), ("3.0", 6.9), ("10.0", 6.7), ("30.0", 7.05)])?;
    errors("b-weight", &[("0.3", 9.0), ("1e0", 6.8), ("3.0", 6.9), ("10.0", 8.0)])?;
    errors("c-weight", &[("0.3", 9.0), ("1.0", 8.0), ("3.0", 7.0)])?;
    cell("none", 1.0)?;
    // One run is as good as none where others of its cell diverged.
    cell("c-weight=10.0", 5.0)?;
    for run in ["c-weight=10.0/s101", "c-weight=30.0/s100"] {
        std::fs::create_dir_all(dir.join("search").join(run))?;
        std::fs::write(dir.join("search").join(run).join("diverged.json"), "{}")?;
    }
    let said = |rule: &str| -> Result<Vec<String>> {
        std::fs::write(&about, format!("held_out = [\"search\"]\nchoose = {{ search = {rule} }}"))?;
        let told = call(&["table", &dir.display().to_string(), "--json"]).json();
        let sentences = told["sentences"].as_array().context("no sentences")?;
        Ok(sentences.iter().filter_map(Value::as_str).filter(|s| s.contains("chosen")).map(str::to_string).collect())
    };
    let [a, b, c] = said("{ within = 0.34 }")?.try_into().map_err(|all| anyhow::anyhow!("{all:?}"))?;
    assert!(
        a.starts_with("search/a-weight: 3.0 is chosen") && a.contains("(1.0, 3.0, 10.0; lowest 6.70 % at 10.0)"),
        "{a}"
    );
    assert!(b.starts_with("search/b-weight: 1e0 is chosen") && b.contains("(1e0, 3.0; lowest 6.80 % at 1e0)"), "{b}");
    assert!(c.starts_with("search/c-weight: 3.0 is chosen") && c.contains("lowest of 3 (no other;"), "{c}");
    assert!(c.contains("lowest 7.00 % at 3.0; diverged: 10.0, 30.0)"), "{c}");
    errors("c-weight", &[("9.0", 6.0), ("99.0", 5.0)])?;
    let beyond = &said("{ within = 0.34 }")?[2];
    assert!(
        beyond.starts_with("search/c-weight: 99.0 is chosen") && beyond.contains("may lie beyond; diverged"),
        "{beyond}"
    );
    for value in ["9.0", "99.0"] {
        std::fs::remove_dir_all(dir.join(format!("search/c-weight={value}")))?;
    }
    // Of two the one nearer to what is asked for; of two as near the smaller, though 0.3 - 0.2 is less than 0.2 - 0.1 in binary.
    errors("d-rate", &[("0.1", 6.8), ("0.3", 6.8)])?;
    assert!(said("{ within = 0.34, toward = 0.2 }")?[3].starts_with("search/d-rate: 0.1 is chosen"));
    assert!(said("{ within = 0.34, toward = 2.5 }")?[1].starts_with("search/b-weight: 3.0 is chosen"));
    // One standard error of 5,000 images: sqrt(0.067 * 0.933 / 5000) = 0.3536 points, which 7.05 is within.
    let a = &said("{}")?[0];
    assert!(a.starts_with("search/a-weight: 3.0 is chosen") && a.contains("within 0.35 points"), "{a}");
    assert!(a.contains("(1.0, 3.0, 10.0, 30.0; "), "{a}");
    let path = dir.display().to_string();
    std::fs::write(&about, "choose = { search = {} }")?;
    call(&["table", &path]).assert_fails(1, &["chosen in the block search", "test images", "held_out"]);
    std::fs::write(&about, "held_out = [\"search\"]\nchoose = { search = { within = -1.0 } }")?;
    call(&["table", &path]).assert_fails(1, &["choose.search", "within must be a number of at least 0"]);
    cell("other/none", 1.0)?;
    std::fs::write(&about, "held_out = [\"search\", \"search/other\"]\nchoose = { \"search/other\" = {} }")?;
    call(&["table", &path]).assert_fails(1, &["no cell's name ends with =NUMBER (one is none)"]);
    std::fs::write(&about, "held_out = [\"search\"]\nchoose = { search = { withing = 1.0 } }")?;
    call(&["table", &path]).assert_fails(1, &["withing", "within"]);
    Ok(())
}
