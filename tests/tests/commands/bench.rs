//! `trainer bench` and `trainer evaluate`.

use anyhow::{Context, Result};
use cams::methods::Methods;
use kernels::graph::Shape;
use testkit::program::call;
use trainer::models::{Architecture, Options};

use crate::{assert_keys, lab, path};

#[test]
fn bench_step() {
    let arguments =
        ["bench", "step", "--student", "wrn-10-1", "--teacher", "wrn-16-1", "--batch", "8", "--repeats", "1", "--json"];
    let result = call(&arguments).json();
    let keys = [
        "train_ms",
        "kd_ms",
        "teacher_ms",
        "teacher_train_ms",
        "explain_ms",
        "cached_ms",
        "peak_rss_mb",
        "threads",
        "device",
        "dtype",
    ];
    assert_keys(&result, &keys);
    for key in ["train_ms", "kd_ms", "teacher_ms", "teacher_train_ms", "cached_ms"] {
        assert!(result[key].as_f64().is_some_and(|v| v > 0.0), "{key}");
    }
}

#[test]
fn bench_forward() {
    let arguments = ["bench", "forward", "--arch", "resnet18", "--arch", "wrn-10-1", "--batch", "1", "--side", "32"];
    let result = call(&[&arguments[..], &["--repeats", "1", "--json"]].concat()).json();
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_keys(row, &["arch", "ms", "gflops"]);
        let operations = row["gflops"].as_f64().unwrap() * row["ms"].as_f64().unwrap() * 1e6;
        let arch = row["arch"].as_str().unwrap();
        let input = Shape { channels: 3, h: 32, w: 32 };
        let macs = Architecture::named(arch, input, 1000, &Options::new()).unwrap().macs();
        assert!((operations / (2.0 * macs as f64) - 1.0).abs() < 1e-9, "{row}");
    }
}

#[test]
fn bench_maps_and_kernels() {
    let arguments = ["bench", "maps", "--arch", "wrn-10-1", "--batch", "4", "--few", "1", "--repeats", "1", "--json"];
    let result = call(&arguments).json();
    let rows = result["rows"].as_array().unwrap();
    for name in Methods::NAMES {
        let row = rows.iter().find(|r| r["method"].as_str().is_some_and(|m| m.split(' ').next() == Some(name)));
        assert!(row.is_some_and(|r| r["ms_per_map"].as_f64().is_some_and(|ms| ms > 0.0)), "{name}");
    }
    for dtype in ["f32", "f32_direct", "bf16"] {
        let arguments = ["bench", "kernels", "--batch", "1", "--repeats", "1", "--dtype", dtype, "--json"];
        let result = call(&arguments).json();
        assert!(result["peak_gflops"].as_f64().is_some_and(|p| p > 0.0));
        for row in result["rows"].as_array().unwrap() {
            assert_keys(row, &["op", "ms", "candle_ms", "ratio", "error"]);
        }
    }
}

/// Exact where there is an exact form, whatever the seed; elsewhere more permutations agree better.
#[test]
fn evaluate_seeds() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, seeds) = (path(&dir, "run"), path(&dir, "seeds.toml"));
    call(&["train", &config, "--run", &run, "--json"]).json();
    std::fs::write(
        &seeds,
        format!(
            "[model]\ncheckpoint = '{run}/last.safetensors'\nimages = 'cifar10-mini:test[0..4]'\n\
             [seeds]\npermutations = [8, 200]\nscores = ['logit', 'prob']\nfills = ['zero']\ncount = 3\nreference = 4000\n"
        ),
    )?;
    let result = call(&["evaluate", "seeds", &seeds, "--json"]).json();
    let rows = result["rows"].as_array().context("rows")?;
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_keys(row, &["method", "score", "fill", "permutations", "correlation", "error", "average_drop", "n"]);
    }
    let figure = |row: usize, key: &str| rows[row][key]["mean"].as_f64().unwrap();
    for row in 0..2 {
        assert!(
            figure(row, "correlation") > 1.0 - 1e-9 && figure(row, "error") < 1e-5,
            "the logit depends on the seed"
        );
    }
    assert!(figure(3, "error") < figure(2, "error"), "more permutations are no better");
    call(&["evaluate", "seeds", &seeds, "--set", "seeds.scores=[]"]).assert_fails(1, &["seeds.scores is empty"]);
    call(&["evaluate", "seeds", &seeds, "--set", "seeds.counts=3"]).assert_fails(1, &["did you mean `count`"]);
    call(&["evaluate", "seeds", &seeds, "--set", "seeds.count=1000000000000000"])
        .assert_fails(1, &["seeds.count is 1000000000000000", "at most 1000"]);
    Ok(())
}
