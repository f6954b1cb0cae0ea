//! `trainer explain`, and what it needs calibrated.

use std::path::Path;

use anyhow::{Context, Result};
use cams::methods::Methods;
use testkit::program::call;
use trainer::checkpoint::File;

use crate::{assert_keys, lab, path};

#[test]
fn explain() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, maps, gallery) = (path(&dir, "run"), path(&dir, "maps.safetensors"), path(&dir, "gallery"));
    call(&["train", &config, "--run", &run, "--json", "--set", "train.epochs=1"]).json();
    let model = path(&dir, "run/last.safetensors");
    let explained = call(&[
        "explain",
        "--checkpoint",
        &model,
        "--images",
        "cifar10-mini:test[98..102]",
        "--method",
        "grad_cam,shap_cam,score_cam",
        "--class",
        "label",
        "--out",
        &maps,
        "--gallery",
        &gallery,
        "--json",
    ]);
    let rows = explained.json()["rows"].as_array().context("rows")?.clone();
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert_keys(row, &["method", "estimator", "n", "evaluations", "seconds"]);
        assert_eq!(row["n"], 4);
    }
    assert_eq!(rows[2]["evaluations"], 64, "one forward pass a channel");
    let file = File::read(Path::new(&maps))?;
    let shapes = file.shapes()?;
    for method in ["grad_cam", "shap_cam", "score_cam"] {
        assert_eq!(shapes[method], [4, 8, 8]);
    }
    assert_eq!((&shapes["classes"][..], &shapes["logits"][..]), (&[4][..], &[4, 10][..]));
    assert_eq!(file.f64("classes")?, [0.0, 0.0, 1.0, 1.0]);
    // On this head Grad-CAM is the ReLU of Shap-CAM.
    let (grad, shap) = (file.f64("grad_cam")?, file.f64("shap_cam")?);
    assert!(shap.iter().any(|v| *v < 0.0) && grad.iter().all(|v| *v >= 0.0));
    testkit::assert_close("grad_cam", &grad, &shap.iter().map(|v| v.max(0.0)).collect::<Vec<_>>(), 1e-5);
    let page = std::fs::read_to_string(Path::new(&gallery).join("index.html"))?;
    for i in 0..4 {
        for name in ["original", "grad_cam", "shap_cam", "score_cam"] {
            let file = format!("{name}-{i}.png");
            assert!(page.contains(&file), "{file}");
            let picture = image::open(Path::new(&gallery).join(&file))?;
            assert!(picture.width() >= 160 && picture.width() == picture.height());
        }
    }
    // Another model beside it: the same classes, rows of its own.
    let another = path(&dir, "another");
    call(&["train", &config, "--run", &another, "--json", "--set", "train.epochs=1", "--seed", "9"]).json();
    let other = path(&dir, "another/last.safetensors");
    let images = "cifar10-mini:test[98..102]";
    let two = path(&dir, "two");
    let arguments = ["explain", "--checkpoint", &model, "--beside", &other, "--images", images, "--gallery", &two];
    let result = call(&[&arguments[..], &["--method", "grad_cam", "--json"]].concat()).json();
    assert_eq!(
        (result["rows"].as_array().map(Vec::len), result["beside"]["rows"][0]["n"].as_u64()),
        (Some(1), Some(4))
    );
    let own = std::fs::read(Path::new(&two).join("grad_cam-0.png"))?;
    assert!(own != std::fs::read(Path::new(&two).join("beside-grad_cam-0.png"))?, "two models, one map");
    let absent = [&arguments[..4], &["nothing.safetensors"], &arguments[5..]].concat();
    call(&absent).assert_fails(1, &["nothing.safetensors"]);
    // The same images from files, one of which is broken: the others are explained, the broken one is named.
    let folder = dir.path().join("files");
    std::fs::create_dir(&folder)?;
    for i in 0..2 {
        std::fs::copy(Path::new(&gallery).join(format!("original-{i}.png")), folder.join(format!("{i}.png")))?;
    }
    std::fs::write(folder.join("broken.jpg"), b"no picture")?;
    let folder = folder.display().to_string();
    let some = call(&["explain", "--checkpoint", &model, "--images", &folder, "--method", "grad_cam", "--json"]);
    let result = some.json();
    assert_eq!(result["rows"][0]["n"], 2);
    assert!(result["bad_images"][0].as_str().is_some_and(|b| b.contains("broken.jpg")), "{result}");
    // What is asked for and cannot be had is an error, not left out.
    let refused = |images: &[&str], more: &[&str], parts: &[&str]| {
        call(&[&["explain", "--checkpoint", &model, "--images"][..], images, more].concat()).assert_fails(1, parts);
    };
    let (first, second) = (format!("{folder}/0.png"), format!("{folder}/2.png"));
    refused(&[&first, &second], &[], &["2.png: no such file"]);
    refused(&[&first, &folder], &[], &["no image file", "stands alone"]);
    refused(&[&first], &["--class", "10"], &["class 10: there are 10 classes, 0 to 9"]);
    refused(&[&first], &["--class", "label"], &["--class is label", "use top1 or a number"]);
    refused(&[&first], &["--out", &first], &["is read from: choose another file"]);
    refused(&[&folder], &["--out", &second.replace("2.png", "1.png")], &["is read from: choose another file"]);
    refused(&[&first], &["--out", &model], &["is read from: choose another file"]);
    refused(&["planted:test[0..2]"], &["--class", "label"], &["no labels of the model's classes"]);
    // Other layers have their own resolution.
    call(&[
        "explain",
        "--checkpoint",
        &model,
        "--images",
        "cifar10-mini:test[0..2]",
        "--layer",
        "layer1",
        "--out",
        &maps,
        "--method",
        "all",
        "--set",
        "interpreter.rise.masks=20",
        "--set",
        "interpreter.mask.iterations=2",
        "--set",
        "interpreter.shap_cam.evaluations=1000",
        "--json",
    ])
    .json();
    let inner = File::read(Path::new(&maps))?;
    assert!(inner.shapes()?.contains_key("shap_cam.standard_error"), "a sampled map without its error");
    assert!(!inner.shapes()?.contains_key("cam"), "cam has no meaning at an inner layer");
    assert_eq!(File::read(Path::new(&maps))?.shapes()?["grad_cam"], [2, 32, 32]);
    Ok(())
}

/// Some images' values are sampled, others' are not: each has the error of its kind.
#[test]
fn sampled_and_estimated_errors_lie_apart() -> Result<()> {
    let (dir, _) = lab()?;
    let maps = path(&dir, "maps.safetensors");
    let model = "checkpoints/wrn-16-2-cifar10.safetensors";
    let sets = ["--set", "interpreter.shap_cam.score=prob", "--set", "interpreter.shap_cam.fill=channel_mean"];
    let what = ["--images", "cifar10-mini:test[6..9]", "--method", "shap_cam", "--out", &maps, "--json"];
    let told = call(&[&["explain", "--checkpoint", model][..], &what, &sets].concat()).json();
    let estimators: Vec<String> = serde_json::from_value(told["rows"][0]["estimators"].clone())?;
    assert_eq!(estimators, ["det2", "mc", "det2"]);
    let file = File::read(Path::new(&maps))?;
    for (name, of) in [("standard_error", [false, true, false]), ("error_estimate", [true, false, true])] {
        let values = file.f64(&format!("shap_cam.{name}"))?;
        let images = values.chunks(values.len() / 3).map(|image| image.iter().all(|v| v.is_finite()));
        assert_eq!(images.collect::<Vec<_>>(), of, "{name}");
        assert!(values.iter().all(|v| v.is_nan() || *v >= 0.0), "{name}");
    }
    Ok(())
}

/// A map depends on its image alone: not on the batch it came in, nor on the number of threads.
#[test]
fn explanations_do_not_depend_on_their_neighbours() -> Result<()> {
    let (dir, config) = lab()?;
    let run = path(&dir, "run");
    call(&["train", &config, "--run", &run, "--json", "--set", "train.epochs=1"]).json();
    let model = path(&dir, "run/last.safetensors");
    let explain = |slice: &str, threads: &str| -> Result<File> {
        let out = path(&dir, "maps.safetensors");
        let images = format!("cifar10-mini:test{slice}");
        let few = ["--set", "interpreter.rise.masks=20", "--set", "interpreter.mask.iterations=2"];
        let arguments =
            ["explain", "--checkpoint", &model, "--images", &images, "--threads", threads, "--out", &out, "--json"];
        call(&[&arguments[..], &["--method", "all"], &few].concat()).json();
        File::read(Path::new(&out))
    };
    let (all, single) = (explain("[0..40]", "2")?, explain("[37..38]", "1")?);
    for name in Methods::NAMES.iter().filter(|n| !["mask", "random"].contains(n)) {
        let (all, single) = (all.f64(name)?, single.f64(name)?);
        let len = all.len() / 40;
        assert!(all[37 * len..38 * len] == single[..], "{name}");
    }
    Ok(())
}

/// A model without mean activations cannot be explained with them; calibrated, it can.
#[test]
fn calibrated_mean_activations() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, out) = (path(&dir, "run"), path(&dir, "calibrated.safetensors"));
    call(&["train", &config, "--run", &run, "--json", "--set", "train.epochs=1"]).json();
    let explain = |model: &str, fill: &str| {
        let set = format!("interpreter.shap_cam.fill={fill}");
        let images = "cifar10-mini:test[0..3]";
        let maps = path(&dir, "maps.safetensors");
        let call = call(&[
            "explain",
            "--checkpoint",
            model,
            "--images",
            images,
            "--method",
            "shap_cam",
            "--set",
            &set,
            "--out",
            &maps,
        ]);
        (call, maps)
    };
    let model = path(&dir, "run/last.safetensors");
    explain(&model, "dataset_mean").0.assert_fails(1, &["dataset_mean", "calibrate"]);
    call(&["convert", &model, &out, "--arch", "resnet8", "--calibrate", "cifar10-mini", "--json"]).json();
    let kept = File::read(Path::new(&out))?;
    assert_eq!(kept.get("test_error")?, File::read(Path::new(&model))?.get("test_error")?);
    let mean = kept.feature_mean()?.context("no mean")?;
    assert!(mean.len() == 64 && mean.iter().all(|m| *m >= 0.0) && mean.iter().any(|m| *m > 0.0));
    // phi with this fill is phi with zero fill, less a constant of the class.
    let of = |fill: &str| -> Result<Vec<f64>> {
        let (call, maps) = explain(&out, fill);
        assert_eq!(call.code, 0, "{}", call.stderr);
        File::read(Path::new(&maps))?.f64("shap_cam")
    };
    let (zero, filled) = (of("zero")?, of("dataset_mean")?);
    for (zero, filled) in zero.chunks_exact(64).zip(filled.chunks_exact(64)) {
        let shift = zero[0] - filled[0];
        assert!(shift.abs() > 1e-6 && zero.iter().zip(filled).all(|(z, f)| (z - f - shift).abs() < 1e-5));
    }
    Ok(())
}
