//! `trainer evaluate faithfulness`, `localization` and `sanity`.

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::program::call;

use crate::{assert_keys, lab, path};

const METHODS: &str =
    "methods = ['grad_cam', 'random', { name = 'shap mean', method = 'shap_cam', set = { fill = 'channel_mean' } }]";

fn row<'v>(result: &'v Value, method: &str) -> Result<&'v Value> {
    let rows = result["rows"].as_array().context("rows")?;
    rows.iter().find(|row| row["method"] == method).with_context(|| format!("no row of {method}"))
}

/// Figures, differences, curves, pictures; and what was measured is not measured again.
#[test]
fn faithfulness() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, settings, record, pictures) =
        (path(&dir, "run"), path(&dir, "f.toml"), path(&dir, "figures.jsonl"), path(&dir, "pictures"));
    call(&["train", &config, "--run", &run, "--json"]).json();
    std::fs::write(
        &settings,
        format!(
            "[model]\ncheckpoint = '{run}/last.safetensors'\nimages = 'cifar10-mini:test[0..5]'\n\
             [faithfulness]\n{METHODS}\nsteps = 4\nroad = true\nadcc = true\nbatch = 3\nrecord = '{record}'\n\
             pictures = '{pictures}'\n\
             [published]\nsource = 'somewhere'\ndiffers = 'the model'\nfigures.average_drop = {{ grad_cam = 47.8 }}\n"
        ),
    )?;
    let called = call(&["evaluate", "faithfulness", &settings, "--json"]);
    assert!(
        called.stdout.lines().filter(|l| !l.starts_with('{')).all(|l| l.chars().count() <= 80),
        "{}",
        called.stdout
    );
    assert!(called.stdout.contains("What differs: the model") && called.stdout.contains("47.8"), "{}", called.stdout);
    let result = called.json();
    let keys = ["average_drop", "average_drop_se", "average_increase", "insertion", "deletion", "road", "complexity"];
    for method in ["grad_cam", "random", "shap mean"] {
        let row = row(&result, method)?;
        assert_keys(row, &keys);
        assert_keys(row, &["adcc", "coherency", "likeness", "average_drop_muted"]);
        assert_eq!(row["n"], 5);
        let curve = row["deletion_curve"]["mean"].as_array().context("curve")?;
        assert_eq!(curve.len(), 5, "four steps and the start");
    }
    assert!(row(&result, "grad_cam")?.get("insertion_difference").is_none());
    // The seed is the methods' that draw, unless their own tables name another; of the others it moves nothing but ties and noise.
    let of_seed = |sets: &[&str]| -> Result<(Value, Value)> {
        let record = format!("faithfulness.record={}", path(&dir, &format!("seeds-{}.jsonl", sets.len())));
        let mut arguments = vec!["evaluate", "faithfulness", &settings, "--json", "--seed", "7", "--set", &record];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        let found = call(&arguments).json();
        let drop = |method| Ok::<_, anyhow::Error>(row(&found, method)?["average_drop"].clone());
        Ok((drop("random")?, drop("grad_cam")?))
    };
    let (plain, other, named) =
        (row(&result, "random")?["average_drop"].clone(), of_seed(&[])?, of_seed(&["interpreter.random.seed=0"])?);
    assert!(other.0 != plain && named.0 == plain, "{plain} {other:?} {named:?}");
    assert!(other.1 == named.1 && other.1 == row(&result, "grad_cam")?["average_drop"]);
    // Pixels that stay as they are: the muted figures are others, and no other is.
    let other = format!("faithfulness.record={}", path(&dir, "binary.jsonl"));
    let sets = ["--set", "faithfulness.mute_values=binary", "--set", &other];
    let binary = call(&[["evaluate", "faithfulness", &settings, "--json"].as_slice(), &sets].concat()).json();
    let (soft, binary) = (row(&result, "grad_cam")?, row(&binary, "grad_cam")?);
    assert!(soft["average_drop_muted"] != binary["average_drop_muted"] && soft["insertion"] == binary["insertion"]);
    assert_eq!(soft["average_drop"], binary["average_drop"]);
    let number = |method: &str, key: &str| row(&result, method).ok().and_then(|row| row[key].as_f64());
    let (a, b) = (number("random", "insertion").context("a")?, number("grad_cam", "insertion").context("b")?);
    let difference = number("random", "insertion_difference").context("difference")?;
    assert!((a - b - difference).abs() < 1e-12, "{a} - {b} is not {difference}");
    assert_eq!((number("ones", "average_drop"), number("ones", "complexity")), (Some(0.0), Some(1.0)));
    for file in ["insertion.svg", "deletion.svg", "drop-complexity.svg", "index.html", "shap-mean-0.png"] {
        assert!(dir.path().join("pictures").join(file).is_file(), "{file}");
    }
    // Cut behind an image in the middle of a batch: the same table, to the bit.
    let text = std::fs::read_to_string(&record)?;
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&record, lines[..lines.len() / 2].join("\n"))?;
    let again = call(&["evaluate", "faithfulness", &settings, "--json"]).json();
    for method in ["grad_cam", "random", "shap mean", "ones"] {
        for key in ["average_drop", "insertion", "road", "likeness"] {
            assert_eq!(row(&again, method)?[key], row(&result, method)?[key], "{method} {key}");
        }
    }
    // Two processes that begin with what was measured of one image, and with what others have left: the same table once more.
    std::fs::write(&record, lines[..5].join("\n"))?;
    for rest in [true, false] {
        if !rest {
            // Seven processes were killed once, of which one had begun.
            std::fs::rename(&record, format!("{record}.3-of-7"))?;
        }
        let dealt = call(&["evaluate", "faithfulness", &settings, "--jobs", "2", "--json"]).json();
        for method in ["grad_cam", "random", "shap mean", "ones"] {
            for key in ["n", "average_drop", "insertion", "road", "likeness"] {
                assert_eq!(row(&dealt, method)?[key], row(&result, method)?[key], "{method} {key}");
            }
        }
        let left: Vec<_> =
            std::fs::read_dir(dir.path())?.filter_map(|f| f.ok()?.file_name().into_string().ok()).collect();
        assert!(!left.iter().any(|name| name.contains("-of-")), "{left:?}");
    }
    let mut wrong = vec!["evaluate", "faithfulness", &settings, "--jobs", "2"];
    wrong.extend(["--set", "model.checkpoint=/nowhere"]);
    call(&wrong).assert_fails(1, &["/nowhere"]);
    call(&["evaluate", "faithfulness", &settings, "--share", "2/2"]).assert_fails(2, &["no share such as 0/2"]);
    let other = call(&["evaluate", "faithfulness", &settings, "--set", "faithfulness.mute=0.25"]);
    other.assert_fails(1, &["holds another evaluation"]);
    let dealt = call(&["evaluate", "faithfulness", &settings, "--set", "faithfulness.mute=0.25", "--jobs", "2"]);
    dealt.assert_fails(1, &["holds another evaluation"]);
    assert!(!dealt.stderr.contains("-of-"), "{}", dealt.stderr);
    let class =
        |class: &str| call(&["evaluate", "faithfulness", &settings, "--set", &format!("faithfulness.class={class}")]);
    let folder = format!("faithfulness.record={}", dir.path().display());
    call(&["evaluate", "faithfulness", &settings, "--set", &folder]).assert_fails(1, &["is no file: a record is one"]);
    class("foo").assert_fails(1, &["faithfulness.class is \"foo\"", "label, top1"]);
    class("[3]").assert_fails(1, &["faithfulness.class", "[3] is no class"]);
    call(&["evaluate", "faithfulness", &settings, "--set", "faithfulness.probability=logit"])
        .assert_fails(1, &["softmax", "sigmoid"]);
    Ok(())
}

/// What is known: a map that is 1 everywhere has its boxes' part of the image.
#[test]
fn localization() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, settings) = (path(&dir, "run"), path(&dir, "l.toml"));
    call(&["train", &config, "--set", "data.name=\"planted\"", "--run", &run, "--json"]).json();
    std::fs::write(
        &settings,
        format!(
            "[model]\ncheckpoint = '{run}/last.safetensors'\nimages = 'planted:test[0..20]'\n[localization]\n{METHODS}\n"
        ),
    )?;
    let result = call(&["evaluate", "localization", &settings, "--json"]).json();
    for method in ["grad_cam", "random", "shap mean", "ones"] {
        assert_keys(row(&result, method)?, &["proportion", "box_area", "n"]);
        // A map that is the same everywhere has no highest place.
        assert_eq!(row(&result, method)?.get("hit").is_some(), method != "ones", "{method}");
    }
    let ones = row(&result, "ones")?;
    let (part, area) = (ones["proportion"].as_f64().context("part")?, ones["box_area"].as_f64().context("area")?);
    assert!((part - area).abs() < 1e-9, "{part} and {area}");
    Ok(())
}

/// Maps of the whole model are compared with those of a model with drawn layers; the classifier comes first.
#[test]
fn sanity() -> Result<()> {
    let (dir, config) = lab()?;
    let (run, settings, record) = (path(&dir, "run"), path(&dir, "s.toml"), path(&dir, "sanity.jsonl"));
    call(&["train", &config, "--run", &run, "--json"]).json();
    std::fs::write(
        &settings,
        format!(
            "[model]\ncheckpoint = '{run}/last.safetensors'\nimages = 'cifar10-mini:test[0..6]'\n\
             [sanity]\nmethods = ['grad_cam', 'eigen_cam', {{ name = 'shap_cam', method = 'shap_cam', set = {{ relu = true }} }}]\n\
             batch = 4\nrecord = '{record}'\n"
        ),
    )?;
    let result = call(&["evaluate", "sanity", &settings, "--json"]).json();
    let value = |method: &str, part: &str| row(&result, method).ok().and_then(|row| row[part].as_f64());
    // EigenCAM looks at no class: another classifier changes nothing of it, and everything of the others, even where
    // hardly anything was learned: what is drawn is not what the training began with.
    assert!(value("eigen_cam", "fc").is_some_and(|rho| rho > 1.0 - 1e-9));
    for method in ["grad_cam", "shap_cam"] {
        assert!(value(method, "fc").is_some_and(|rho| rho < 0.9), "{method}: {:?}", value(method, "fc"));
        assert!(value(method, "conv1").is_some_and(|rho| rho < 0.9));
        assert!(value(method, "undefined").is_some_and(|part| (0.0..1.0).contains(&part)));
    }
    assert_eq!(value("grad_cam", "fc"), value("shap_cam", "fc"), "one map at the last layer, behind a ReLU");
    let again = call(&["evaluate", "sanity", &settings, "--json"]).json();
    assert_eq!(again["rows"], result["rows"]);
    let with = |set: &str| call(&["evaluate", "sanity", &settings, "--set", set]);
    with("sanity.draws=0").assert_fails(1, &["sanity.draws is 0", "at least 1"]);
    with("sanity.draws=2").assert_fails(1, &["holds another evaluation"]);
    Ok(())
}
