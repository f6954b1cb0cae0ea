//! What was measured while a run trained.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::is_scheduled;
use crate::config::Config;
use crate::report::page::Page;
use crate::report::plot::{self, Line};
use crate::run::Report;

/// The lines of metrics.jsonl.
pub(super) struct Measured {
    pub(super) epochs: Vec<Value>,
    steps: Vec<Value>,
}

impl Measured {
    /// Of nothing where there is no such file, as in a grid whose reports alone were kept.
    pub(super) fn read(dir: &Path) -> Result<Measured> {
        let path = dir.join("metrics.jsonl");
        let mut measured = Measured { epochs: vec![], steps: vec![] };
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(measured),
            bytes => bytes.with_context(|| format!("reading {}", path.display()))?,
        };
        // The last line may be half written.
        for line in String::from_utf8_lossy(&text).lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            match line["kind"].as_str() {
                Some("epoch") => measured.epochs.push(line),
                Some("step") => measured.steps.push(line),
                _ => {}
            }
        }
        Ok(measured)
    }

    /// Errors, terms, their gradients and the rate, as far as they are known.
    pub(super) fn show(&self, page: &mut Page, config: &Config, report: Option<&Report>) -> Result<()> {
        let epoch = |l: &Value| l["epoch"].as_f64();
        // A step is within its epoch: the first of 391 steps of epoch 3 at 2 + 1/391.
        let per_epoch = self.epochs.iter().find_map(|l| Some(l["step"].as_f64()? / epoch(l)?));
        let within = |l: &Value| Some(l["step"].as_f64()? / per_epoch?);
        // Where weights change, terms are shown without them.
        let scheduled = is_scheduled(config);
        let active = config.loss.weights.each().into_iter().filter(|(_, weight)| *weight > 0.0);
        let terms: Vec<(&str, f64)> = active.map(|(name, w)| (name, if scheduled { 1.0 } else { w })).collect();

        let of_epochs = |name: &str, key: &str| line(name, key, 1.0, &self.epochs, epoch);
        let errors =
            [("training images", "train_error"), ("held-out images", "val_error"), ("test images", "test_error")];
        let mut errors: Vec<Line> = errors.into_iter().filter_map(|(name, key)| of_epochs(name, key)).collect();
        if errors.is_empty()
            && let Some(curve) = report.map(Report::measured_epochs).filter(|curve| curve.len() > 1)
        {
            let name = if config.data.validation > 0 { "held-out images" } else { "test images" };
            errors.push((name.into(), curve));
        }
        let values = terms.iter().filter_map(|(name, w)| line(name, name, *w, &self.epochs, epoch));
        let values: Vec<Line> = of_epochs("the loss", "total").into_iter().chain(values).collect();
        let norms =
            terms.iter().filter_map(|(name, w)| line(name, &format!("gradient_norm_{name}"), *w, &self.steps, within));
        let whole = line("the loss", "gradient_norm_total", 1.0, &self.steps, within);
        let norms: Vec<Line> = whole.into_iter().chain(norms).collect();
        let rate: Vec<Line> = line("learning rate", "lr", 1.0, &self.steps, within).into_iter().collect();

        page.heading("Curves");
        let whose: Vec<&str> = errors.iter().map(|(name, _)| name.as_str()).collect();
        let during = if whose.contains(&"training images") {
            " Training images are judged in every epoch, while the weights change; the others after the epochs that were measured."
        } else {
            ""
        };
        let drawn = [
            (errors, "error, %", format!("Errors by epoch.{during}")),
            if scheduled {
                (
                    values,
                    "value",
                    "The terms of the loss without their weights, which loss.schedule changes; means over an epoch."
                        .into(),
                )
            } else {
                (
                    values,
                    "weight times value",
                    "The terms of the loss, each times its weight; means over an epoch.".into(),
                )
            },
            if scheduled {
                (
                    norms,
                    "norm",
                    "Lengths of the terms' gradients without their weights, and of the whole, on the logged steps."
                        .into(),
                )
            } else {
                (
                    norms,
                    "weight times norm",
                    "Lengths of the terms' gradients on the logged steps: what each pulls with.".into(),
                )
            },
            (rate, "learning rate", "The learning rate.".into()),
        ];
        let mut any = false;
        for (lines, axis, caption) in drawn.iter().filter(|(lines, ..)| !lines.is_empty()) {
            page.drawing(&plot::lines(["epoch", axis], lines)?, caption);
            any = true;
        }
        if !any {
            page.text("There are none: a curve takes two epochs.");
        }
        Ok(())
    }
}

/// A figure of lines over epochs; `epoch` says where a line stands.
fn line(name: &str, key: &str, factor: f64, lines: &[Value], epoch: impl Fn(&Value) -> Option<f64>) -> Option<Line> {
    let points: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|l| Some((epoch(l)?, factor * l[key].as_f64().filter(|x| x.abs() <= f32::MAX.into())?)))
        .collect();
    (points.len() > 1).then(|| (name.into(), points))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epochs and steps stand on one axis; what is not a number, or alone, is no line.
    #[test]
    fn lines_are_of_what_was_measured() {
        let lines = [r#"{"epoch":1,"kd":2.0}"#, r#"{"epoch":2,"kd":null}"#, r#"{"epoch":3,"kd":4.0}"#];
        let lines: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let epoch = |l: &Value| l["epoch"].as_f64();
        assert_eq!(line("L_KD", "kd", 0.5, &lines, epoch), Some(("L_KD".into(), vec![(1.0, 1.0), (3.0, 2.0)])));
        assert_eq!(line("L_KD", "kd", 0.5, &lines[..2], epoch), None);
    }
}
