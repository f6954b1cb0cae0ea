//! What a loss is told to do is done, and what it cannot do is said.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use testkit::program::{command, finish};

use crate::Lab;

/// With weight 0 a term leaves no trace: the run is the one without it.
#[test]
fn a_term_of_weight_zero_leaves_no_trace() -> Result<()> {
    let lab = Lab::new()?;
    let none = "loss.weights={ ce = 0.3, kd = 0.7, explanation = 0.0, attention = 0.0, sp = 0.0, rkd = 0.0 }";
    lab.train("none", &["--set", none]).json();
    let other = ["--set", none, "--set", "loss.interpreter=grad_cam_pp", "--set", "loss.control=random"];
    lab.train("other", &other).json();
    assert_eq!(lab.metrics("none")?, lab.metrics("other")?);
    Ok(())
}

/// Every interpreter, distance, control and class trains, and each makes a difference.
#[test]
fn every_choice_of_the_explanation_term_counts() -> Result<()> {
    let lab = Lab::new()?;
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let explanation = "loss.weights={ ce = 0.3, kd = 0.0, explanation = 1.0, attention = 0.0, sp = 0.0, rkd = 0.0 }";
    for set in [
        "loss.interpreter=grad_cam",
        "loss.interpreter=grad_cam_pp",
        "loss.interpreter=score_cam",
        "loss.interpreter=random",
        "interpreter.shap_cam.fill=channel_mean",
        "loss.distance=raw_l2",
        "loss.distance=cosine",
        "loss.distance=all_class_pooled",
        "loss.distance=region_kl",
        "loss.relu=false",
        "loss.control=random",
        "loss.control=shuffled",
        "loss.class=teacher_top1",
        "loss.class=3",
        "loss.schedule.explanation.ramp=2.0",
    ] {
        let run = set.replace(['.', '='], "-");
        let call = lab.train(
            &run,
            &["--set", explanation, "--set", set, "--set", "train.epochs=1", "--set", "init.bn_gamma=uniform"],
        );
        assert_eq!(call.code, 0, "{set}: {}", call.stderr);
        let last = lab.metrics(&run)?.pop().context("an epoch")?;
        let value = last["explanation"].as_f64().with_context(|| format!("{set}: no explanation term"))?;
        assert!(value.is_finite() && value > 0.0, "{set}: {value}");
        if let Some(same) = seen.insert(format!("{value:?}"), set.into()) {
            panic!("{set} and {same} give the same loss {value}");
        }
    }
    Ok(())
}

/// A map that takes passes of its own is differentiated through them wherever the loss looks, and by default.
#[test]
fn maps_of_many_passes_are_matched_at_any_layer() -> Result<()> {
    let lab = Lab::new()?;
    let explanation = "loss.weights={ ce = 0.3, kd = 0.0, explanation = 1.0, attention = 0.0, sp = 0.0, rkd = 0.0 }";
    for interpreter in ["rise", "occlusion"] {
        let values = ["last", "layer2"].map(|layer| -> Result<Option<f64>> {
            let run = format!("{interpreter}-{layer}");
            let sets = [
                explanation.to_string(),
                format!("loss.interpreter={interpreter}"),
                format!("loss.layer={layer}"),
                "interpreter.rise.masks=3".into(),
                "interpreter.occlusion.window=1.0".into(),
                "train.epochs=1".into(),
            ];
            let call = lab.train(&run, &sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>());
            assert_eq!(call.code, 0, "{run}: {}", call.stderr);
            Ok(lab.metrics(&run)?.first().context("a step")?["explanation"].as_f64())
        });
        let [last, inner] = values;
        let (last, inner) = (last?.context("a number")?, inner?.context("a number")?);
        assert!(last > 0.0 && (last - inner).abs() <= 1e-6 * last, "{interpreter}: {last} and {inner}");
    }
    Ok(())
}

/// A class that a loss cannot explain, and what it can.
#[test]
fn classes_of_a_loss_are_named() -> Result<()> {
    let lab = Lab::new()?;
    let refused = |set: &str, parts: &[&str]| lab.train("refused", &["--set", set]).assert_fails(1, parts);
    refused("loss.class=top1", &["loss.class", "the class that the student names", "\"teacher_top1\""]);
    refused("loss.class=teacher_top", &["loss.class", "did you mean", "teacher_top1"]);
    refused("loss.class=-1", &["loss.class", "-1", "a class's number"]);
    refused("loss.class=10", &["loss.class is 10", "10 classes, 0 to 9"]);
    Ok(())
}

/// A student whose classifier alone is trained cannot follow what speaks of activations alone.
#[test]
fn terms_of_activations_need_the_trunk() -> Result<()> {
    let lab = Lab::new()?;
    let refused = |weights: &str, more: &str, name: &str| {
        let none = "ce = 0.3, kd = 0.0, explanation = 0.0, attention = 0.0, sp = 0.0, rkd = 0.0";
        let weights =
            format!("loss.weights={{ {} }}", none.replace(&format!("{weights} = 0.0"), &format!("{weights} = 1.0")));
        let call = lab.train(
            "refused",
            &["--set", &weights, "--set", "student.trained=head", "--set", "train.ema=0.0", "--set", more],
        );
        call.assert_fails(1, &["student.trained", name, "student.trained = \"all\""]);
    };
    for term in ["attention", "sp", "rkd"] {
        refused(term, "loss.interpreter=grad_cam", &format!("loss.weights.{term}"));
    }
    refused("explanation", "loss.interpreter=score_cam", "loss.weights.explanation");
    Ok(())
}

/// The two words a user needs about Score-CAM in a loss.
#[test]
fn score_cam_says_where_it_masks() -> Result<()> {
    let lab = Lab::new()?;
    for (more, part) in
        [(None, "space = \"features\""), (Some("interpreter.score_cam.space=image"), "space = \"image\"")]
    {
        let mut arguments = lab.arguments(part, &["--set", "loss.interpreter=score_cam", "--set", "train.epochs=1"]);
        arguments.retain(|a| a != "--quiet");
        arguments.extend(more.into_iter().flat_map(|set| ["--set".to_string(), set.to_string()]));
        let call = finish(command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(call.code, 0, "{}", call.stderr);
        assert!(call.stderr.contains(part), "{}", call.stderr);
    }
    Ok(())
}
