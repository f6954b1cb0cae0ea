//! Configurations and command lines.

use std::path::Path;

use anyhow::Result;
use testkit::program::call;

use crate::{lab, path, train};

#[test]
fn wrong_settings() -> Result<()> {
    let dir = lab()?;
    let cases: [(&[&str], &[&str]); 52] = [
        (&["data.size=64"], &["data.size is 64", "cifar10-mini are 32 x 32"]),
        (&["data.resize=80"], &["data.resize (model.resize) is for sets of image files", "cifar10-mini"]),
        (&["loss.weights.ce=0.0"], &["no term of the loss has a weight at the start of epoch 1"]),
        (
            &["loss.weights.explanation=1.0", "loss.interpreter=mask"],
            &["loss.interpreter = \"mask\"", "not differentiable", "optimisation"],
        ),
        (&["loss.weights.explanation=1.0", "loss.interpreter=eigen_cam"], &["not differentiable", "singular"]),
        (
            &["loss.weights.explanation=1.0", "loss.interpreter=shap_cam", "interpreter.shap_cam.estimator=mc"],
            &["not differentiable", "det2"],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer2",
                "loss.interpreter=score_cam",
                "teacher.checkpoint=none",
            ],
            &["score_cam", "layer2", "loss.gradient = \"stop_grad\""],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer2",
                "loss.interpreter=shap_cam",
                "teacher.checkpoint=none",
            ],
            &["shap_cam", "sampled", "\"last\""],
        ),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.interpreter=shap_cam",
                "interpreter.shap_cam.fill=dataset_mean",
                "teacher.checkpoint=none",
            ],
            &["dataset_mean", "channel_mean"],
        ),
        (&["loss.layer=layer2", "loss.distance=all_class_pooled"], &["loss.layer is \"layer2\"", "\"last\" only"]),
        (&["optim.drops=[0]"], &["optim.drops.0 is 0", "at least 1"]),
        (&["data.size=0"], &["data.size is 0", "at least 16 and at most 1024"]),
        (&["train.clip=-1.0"], &["train.clip is -1", "at least 0"]),
        (&["train.clip=nan"], &["train.clip is NaN", "it must be"]),
        (&["optim.weight_decay=inf"], &["optim.weight_decay is inf", "at most 1000"]),
        (&["train.epoch=3"], &["train", "unknown field `epoch`", "did you mean `epochs`", "`batch`"]),
        (&["optim.weigth_decay=1e-4"], &["optim", "did you mean `weight_decay`"]),
        (&["nonsense.key=1"], &["unknown field `nonsense`", "`data`", "`train`"]),
        (&["train.epochs=many"], &["train.epochs", "invalid type", "many", "expected a whole number"]),
        (&["train=3"], &["train: ", "expected a table of settings"]),
        (&["train.epochs=1\ntrain.batch=4"], &["train.epochs", "expected a whole number"]),
        (&["student.chekpoint=true"], &["\"chekpoint\"", "did you mean \"checkpoint\""]),
        (&["student.layers=[{}]"], &["student.layers[0]", "found 0 elements, expected exactly one KEY = VALUE"]),
        (&["loss.class=\"x\""], &["loss.class", "a class's number"]),
        (&["train.epochs=0"], &["train.epochs", "at least 1"]),
        (&["train.batch=0"], &["train.batch", "at least 1"]),
        (&["train.batch=65"], &["train.batch is 65", "only 64 training images", "smaller batch"]),
        (&["optim.lr=-1.0"], &["optim.lr is -1", "positive"]),
        (&["optim.lr=nan"], &["optim.lr", "positive"]),
        (&["train.profile=fats"], &["unknown profile \"fats\"", "did you mean \"fast\"", "paper"]),
        (&["data.name=cifar11"], &["unknown data set \"cifar11\"", "did you mean \"cifar10\"", "planted"]),
        (&["data.limit=-3"], &["data.limit"]),
        (&["data.validation=5000"], &["data.validation is 5000", "only 5000"]),
        (&["student.arch=wrn-17-2"], &["6 N + 4"]),
        (&["student.arch=wrm-16-2"], &["unknown architecture \"wrm-16-2\"", "did you mean \"wrn-16-2\"", "resnetD"]),
        (&["student.arch=wrn-1000000000000000000000-2"], &["unknown architecture"]),
        (
            &["loss.interpreter=shapcam"],
            &["unknown interpreter \"shapcam\"", "did you mean \"shap_cam\"", "grad_cam_pp"],
        ),
        (
            &["loss.interpreter=shap_cam", "interpreter.shap_cam.fil=zero"],
            &["interpreter.shap_cam", "did you mean `fill`"],
        ),
        (&["loss.distance=l3"], &["unknown variant `l3`", "raw_l2"]),
        (&["loss.temperature=0.0"], &["loss.temperature is 0", "at least 0.05"]),
        (&["loss.temperature=inf"], &["loss.temperature is inf", "at most 1000000"]),
        (&["loss.weights.kd=1.0"], &["need a [teacher]"]),
        (&["loss.weights.ce=-1.0"], &["loss.weights.ce is -1", "at least 0"]),
        (&["train.ema=1.5"], &["train.ema is 1.5", "at most 0.999999999"]),
        (&["justakey"], &["--set \"justakey\"", "a.b=value"]),
        (&["train.epochs=1000000000000"], &["train.epochs is 1000000000000", "at most 1000000"]),
        (&["interpreter.rise.masks=9000000000000000000"], &["interpreter.rise.masks is 9000000000000000000"]),
        (
            &["interpreter.mask.iterations=4294967296"],
            &["interpreter.mask.iterations is 4294967296", "at most 1000000"],
        ),
        (&["loss.temperature=1e7"], &["loss.temperature is 10000000", "at most 1000000"]),
        (
            &["optim.schedule=one_cycle", "optim.warmup=2.0"],
            &["optim.warmup is 2", "one_cycle", "rises over the first 30 %"],
        ),
        // The only term goes out in the middle of an epoch, which a look at its start does not show.
        (&["loss.schedule.ce.cut_off=0.5"], &["no term of the loss has a weight from step 2 on", "loss.schedule"]),
        (
            &[
                "loss.weights.explanation=1.0",
                "loss.layer=layer1",
                "loss.interpreter=cam",
                "loss.gradient=stop_grad",
                "teacher.checkpoint=none",
            ],
            &["\"cam\" at loss.layer = \"layer1\" is not defined", "grad_cam"],
        ),
    ];
    for (i, (sets, parts)) in cases.iter().enumerate() {
        let run = format!("run{i}");
        train(&dir, &run, sets).assert_fails(1, parts);
        assert!(!Path::new(&path(&dir, &run)).exists(), "{sets:?} left a folder behind");
    }
    Ok(())
}

#[test]
fn wrong_usage() {
    for arguments in [
        &["tarin"][..],
        &["train"],
        &["eval", "--data", "cifar10"],
        &["eval", "--checkpoint", "x"],
        &["bench", "step", "--batch", "0"],
        &["bench", "step", "--dtype", "f8"],
        &["bench", "forward", "--side", "3"],
        &["--threads", "0", "list"],
        &["list", "everything"],
    ] {
        let call = call(arguments);
        assert_eq!(call.code, 2, "{arguments:?}: {}", call.stderr);
        assert!(!call.stderr.is_empty() && call.stdout.is_empty());
    }
}

/// A benchmark that no memory could hold is refused; an architecture that nobody knows, before another is timed.
#[test]
fn wrong_benchmarks() {
    call(&["bench", "forward", "--batch", "4096", "--side", "1024"]).assert_fails(1, &["more than 67108864 pixels"]);
    let wrong = call(&["bench", "forward", "--arch", "resnet18", "--arch", "resnet19"]);
    wrong.assert_fails(1, &["resnet19"]);
    assert!(wrong.stdout.is_empty());
    call(&["bench", "forward", "--arch", "squeezenet1_1", "--side", "8"]).assert_fails(1, &["at least 48 x 48"]);
}

#[test]
fn wrong_devices() {
    let checkpoint = ["eval", "--checkpoint", "nothing.safetensors", "--data", "cifar10-mini", "--device"];
    for (device, part) in
        [("gpu", "accepted: cpu, cuda, cuda:N, metal"), ("cuda:x", "expected a number"), ("metal", "Metal")]
    {
        call(&[&checkpoint[..], &[device]].concat()).assert_fails(1, &[part]);
        call(&["list", "--device", device]).assert_fails(1, &[part]);
    }
}

#[test]
fn wrong_configuration_files() -> Result<()> {
    let dir = lab()?;
    call(&["train", "no/such.toml"]).assert_fails(1, &["reading the configuration no/such.toml"]);
    std::fs::write(dir.path().join("quick.toml"), "[train\nepochs = ")?;
    train(&dir, "run", &[]).assert_fails(1, &["quick.toml is not TOML: line 1: "]);
    std::fs::write(dir.path().join("quick.toml"), [0xff, 0xfe, 0x00])?;
    train(&dir, "run", &[]).assert_fails(1, &["quick.toml"]);
    Ok(())
}
