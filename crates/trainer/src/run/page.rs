//! A run as a page: what it came to, its curves, its maps, its settings; whatever of that there is yet.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cams::Interpreter;
use candle_core::Device;
use image::RgbImage;
use serde_json::Value;

use super::report::{JudgedBy, Report, bits};
use super::{Divergence, folder};
use crate::checkpoint::File;
use crate::config::{Config, WeightSchedule, typed};
use crate::data::{Images, Split};
use crate::error::sentence;
use crate::explain::gallery::{self, Strip};
use crate::explain::{Class, Explained, explain};
use crate::files::sha256;
use crate::nn::{Backend, Network};
use crate::report::page::{Page, name_of};
use crate::report::plot::{self, Line};
use crate::report::statistics::wilson;
use crate::report::table::{Table, column};

/// Test images whose maps are shown.
const PICTURES: usize = 6;

/// Whether a folder is that of a run.
pub fn is_run(dir: &Path) -> bool {
    dir.join("config.toml").is_file()
}

/// The page of the run in `dir`, of which the images that it may be judged by are shown. Its maps are made anew from its weights,
/// on `device`; where weights or images are not there, the page says so.
pub fn page(dir: &Path, judged_by: JudgedBy, device: &Device) -> Result<String> {
    let path = dir.join("config.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("{} is damaged", path.display()))?;
    let diverged: Option<Divergence> = folder::read(&dir.join("diverged.json"))?;
    let report: Option<Report> = folder::read(&dir.join("report.json"))?;
    let measured = Measured::read(dir)?;
    let config = match typed::<Config>(table) {
        Ok(config) => config,
        // A run of another version of this program: its figures are what they are.
        Err(e) => {
            let mut page = Page::new(&name_of(dir), "settings of another version of this program");
            page.text(&format!("This program does not know its settings: {}.", sentence(&e)));
            report.iter().for_each(|report| outcome(&mut page, report, judged_by));
            page.folded("config.toml", &text);
            return Ok(page.finish());
        }
    };
    // A run that is being made longer has the report of a shorter one.
    let report = report.filter(|r| r.epochs == config.train.epochs);
    let mut page = Page::new(&name_of(dir), &about(&config));
    match (&report, &diverged) {
        (Some(report), _) => outcome(&mut page, report, judged_by),
        (None, Some(d)) => page.text(&format!("Diverged at step {}: {} (commit {}).", d.step, d.what, d.commit)),
        (None, None) => page.text(&format!(
            "Not finished: {} of {} epochs are measured. What follows is what there is.",
            measured.epochs.len(),
            config.train.epochs
        )),
    }
    curves(&mut page, &config, report.as_ref(), &measured)?;
    page.heading("Maps");
    if judged_by == JudgedBy::HeldOutImages {
        page.text("Settings are chosen by this run: nothing of the test images is shown.");
    } else if let Err(e) = maps(&mut page, dir, &config, report.as_ref(), device) {
        page.text(&format!("There are none here: {}", sentence(&e)));
    }
    page.heading("Settings");
    page.folded("config.toml repeats the run alone", &text);
    if let Some(report) = &report {
        let inputs: String = report.inputs.iter().map(|(what, hash)| format!("{what}: sha256 {hash}\n")).collect();
        page.folded("What it read", &inputs);
    }
    Ok(page.finish())
}

/// What a run came to.
fn outcome(page: &mut Page, report: &Report, judged_by: JudgedBy) {
    page.figures(&figures(report, judged_by));
    page.text(&origin(report));
    let Some(agreement) = report.agreement.as_ref().filter(|_| judged_by == JudgedBy::TestImages) else { return };
    page.heading("Student and teacher on the test images");
    page.text(&format!(
        "They name the same class on {:.2} % of the images; KL(teacher || student) is {:.4} nats. How alike their maps of the \
         labels' classes are, on average:",
        agreement.same_class, agreement.kl
    ));
    let mut table = Table::new(vec![
        column("method", "method", 0),
        column("pearson", "correlation", 3),
        column("spearman", "rank correlation", 3),
        column("cosine", "cosine after ReLU", 3),
        column("top20", "overlap of the highest fifth", 3),
        column("n", "images", 0),
    ]);
    for (method, a) in &agreement.maps {
        let figures = [a.pearson, a.spearman, a.cosine, a.top20].map(Into::into);
        table.rows.push([vec![method.clone().into()], figures.into(), vec![a.n.into()]].concat());
    }
    page.table(&table);
}

/// Who learns what from whom, in a line.
fn about(config: &Config) -> String {
    let student = config.student.arch.clone().unwrap_or_else(|| "layers of one's own".into());
    let terms: Vec<String> = config
        .loss
        .weights
        .each()
        .into_iter()
        .filter(|(_, weight)| *weight > 0.0)
        .map(|(name, weight)| match name {
            "explanation" if !config.loss.distance.compares_all_classes() => {
                format!("{weight} {name} ({})", config.loss.interpreter)
            }
            _ => format!("{weight} {name}"),
        })
        .collect();
    let teacher = config.teacher.as_ref().map_or(String::new(), |t| {
        let parts: Vec<_> = t.checkpoint.iter().map(|part| part.to_string_lossy()).collect();
        // Every run's file has one name; the folder says whose it is.
        format!(", teacher {}", parts[parts.len().saturating_sub(2)..].join("/"))
    });
    let scheduled = if is_scheduled(config) { ", by loss.schedule" } else { "" };
    format!(
        "{student} on {}{teacher}; loss: {}{scheduled}; profile {}, {} epochs, seed {}",
        config.data.name,
        terms.join(" + "),
        config.train.profile,
        config.train.epochs,
        config.train.seed
    )
}

/// Whether a term's weight changes.
fn is_scheduled(config: &Config) -> bool {
    let schedules = config.loss.schedule.each();
    config.loss.weights.each().iter().zip(schedules).any(|((_, w), s)| *w > 0.0 && s != WeightSchedule::Constant)
}

fn figures(report: &Report, judged_by: JudgedBy) -> Vec<(&'static str, String)> {
    let percent = |x: f64| format!("{x:.2} %");
    let mut figures = match judged_by {
        JudgedBy::HeldOutImages => vec![("error of held-out images", percent(report.error(judged_by)))],
        JudgedBy::TestImages => tested(report),
    };
    let mut add = |name, value: Option<String>| figures.extend(value.map(|value| (name, value)));
    add("training error, last epoch", Some(percent(report.train_error)));
    add("epochs", Some(report.epochs.to_string()));
    add("time", Some(duration(report.seconds)));
    add("images per second", Some(format!("{:.0}", report.images_per_second)));
    add("parameters", Some(format!("{:.3} M", report.parameters as f64 / 1e6)));
    add("GFLOP per image and step", Some(format!("{:.3}", report.flops_per_image / 1e9)));
    figures
}

/// Of the test images.
fn tested(report: &Report) -> Vec<(&'static str, String)> {
    let percent = |x: f64| format!("{x:.2} %");
    let mut figures = vec![("test error", percent(report.test_error))];
    if let Some([low, high]) = interval(report) {
        figures.push(("95 % interval, images", format!("{low:.1} to {high:.1} %")));
    }
    let mut add = |name, value: Option<String>| figures.extend(value.map(|value| (name, value)));
    add("mean average precision", report.test_mean_average_precision.map(percent));
    add("test error, moving average", report.ema_test_error.map(percent));
    add("test error, best by held-out images", report.best_test_error.map(percent));
    add("teacher's test error", report.teacher_test_error.map(percent));
    let several = report.test_mean_average_precision.is_some();
    add(if several { "test loss" } else { "test loss (NLL)" }, Some(format!("{:.4}", report.test_loss)));
    figures
}

/// The test error's, in percent, where the report says which images are wrong.
fn interval(report: &Report) -> Option<[f64; 2]> {
    let wrong = bits(&report.test_wrong)?;
    let (images, wrong) = (wrong.len(), wrong.into_iter().filter(|wrong| *wrong).count());
    // The bitmap is filled up to whole bytes: how many images there are follows from the error; without any, at least that many.
    let images = match wrong {
        0 => images.saturating_sub(7),
        _ => (wrong as f64 / (report.test_error / 100.0)).round() as usize,
    };
    (images > 0).then(|| wilson(wrong, images).map(|end| 100.0 * end))
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Where the figures come from.
fn origin(report: &Report) -> String {
    let threads = if report.threads == 1 { "1 thread".into() } else { format!("{} threads", report.threads) };
    let dtype = report
        .computed_in
        .map_or(String::new(), |dtype| format!(", computed in {}", format!("{dtype:?}").to_lowercase()));
    let commits = if report.commits.is_empty() { report.commit.clone() } else { report.commits.join(", ") };
    format!("Errors after the last epoch. {}, {threads}, {}{dtype}; commit {commits}.", report.machine, report.device)
}

/// The lines of metrics.jsonl.
struct Measured {
    epochs: Vec<Value>,
    steps: Vec<Value>,
}

impl Measured {
    /// Of nothing where there is no such file, as in a grid whose reports alone were kept.
    fn read(dir: &Path) -> Result<Measured> {
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
}

/// A figure of lines over epochs; `epoch` says where a line stands.
fn line(name: &str, key: &str, factor: f64, lines: &[Value], epoch: impl Fn(&Value) -> Option<f64>) -> Option<Line> {
    let points: Vec<(f64, f64)> =
        lines.iter().filter_map(|l| Some((epoch(l)?, factor * l[key].as_f64().filter(|x| x.is_finite())?))).collect();
    (points.len() > 1).then(|| (name.into(), points))
}

fn curves(page: &mut Page, config: &Config, report: Option<&Report>, measured: &Measured) -> Result<()> {
    let epoch = |l: &Value| l["epoch"].as_f64();
    // A step is within its epoch: the first of 391 steps of epoch 3 at 2 + 1/391.
    let per_epoch = measured.epochs.iter().find_map(|l| Some(l["step"].as_f64()? / epoch(l)?));
    let within = |l: &Value| Some(l["step"].as_f64()? / per_epoch?);
    // Where weights change, terms are shown without them.
    let scheduled = is_scheduled(config);
    let active = config.loss.weights.each().into_iter().filter(|(_, weight)| *weight > 0.0);
    let terms: Vec<(&str, f64)> = active.map(|(name, w)| (name, if scheduled { 1.0 } else { w })).collect();

    let of_epochs = |name: &str, key: &str| line(name, key, 1.0, &measured.epochs, epoch);
    let errors = [("training images", "train_error"), ("held-out images", "val_error"), ("test images", "test_error")];
    let mut errors: Vec<Line> = errors.into_iter().filter_map(|(name, key)| of_epochs(name, key)).collect();
    if errors.is_empty()
        && let Some(curve) = report.map(|r| &r.curve).filter(|curve| curve.len() > 1)
    {
        let name = if config.data.validation > 0 { "held-out images" } else { "test images" };
        errors.push((name.into(), curve.iter().enumerate().map(|(at, e)| ((at + 1) as f64, *e)).collect()));
    }
    let values = terms.iter().filter_map(|(name, w)| line(name, name, *w, &measured.epochs, epoch));
    let values: Vec<Line> = of_epochs("the loss", "total").into_iter().chain(values).collect();
    let norms =
        terms.iter().filter_map(|(name, w)| line(name, &format!("gradient_norm_{name}"), *w, &measured.steps, within));
    let whole = line("the loss", "gradient_norm_total", 1.0, &measured.steps, within);
    let norms: Vec<Line> = whole.into_iter().chain(norms).collect();
    let rate: Vec<Line> = line("learning rate", "lr", 1.0, &measured.steps, within).into_iter().collect();

    page.heading("Curves");
    let whose: Vec<&str> = errors.iter().map(|(name, _)| name.as_str()).collect();
    let during =
        if whose.contains(&"training images") { " Training images are judged while the weights change." } else { "" };
    let drawn = [
        (errors, "error, %", format!("Errors after each epoch.{during}")),
        if scheduled {
            (
                values,
                "value",
                "The terms of the loss without their weights, which loss.schedule changes; means over an epoch.".into(),
            )
        } else {
            (values, "weight times value", "The terms of the loss, each times its weight; means over an epoch.".into())
        },
        if scheduled {
            (
                norms,
                "norm",
                "Lengths of the terms' gradients without their weights, and of the whole, on the logged steps.".into(),
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
        page.text("There are none: a curve takes two epochs that are measured.");
    }
    Ok(())
}

/// Maps of a few test images by the loss's interpreter and by Grad-CAM, the student's and under them its teacher's.
fn maps(page: &mut Page, dir: &Path, config: &Config, report: Option<&Report>, device: &Device) -> Result<()> {
    let weights = dir.join("last.safetensors");
    ensure!(weights.is_file(), "the folder holds no last.safetensors");
    let layers = vec![config.loss.layer.clone()];
    let network = |path: &Path, arch: Option<&str>| -> Result<Network> {
        File::read(path)?.network(arch, |_| layers.clone(), Backend::f32(device))
    };
    let student = network(&weights, None)?;
    let images = config.data.source().load(Split::Test)?.spread(PICTURES);
    let mut names = vec![config.loss.interpreter.as_str()];
    names.extend((names[0] != "grad_cam").then_some("grad_cam"));
    let methods: Vec<(&str, &dyn Interpreter)> =
        names.iter().filter_map(|name| Some((*name, config.interpreter.get(name)?))).collect();
    let class = if images.several { Class::Top1 } else { Class::Label };
    let own = explain(&methods, &student, &config.loss.layer, &images, &class)?;
    let said = config.teacher.as_ref().map(|teacher| -> Result<Explained> {
        if let Some(used) = report.and_then(|r| r.inputs.get("teacher")) {
            let bytes =
                fs::read(&teacher.checkpoint).with_context(|| format!("reading {}", teacher.checkpoint.display()))?;
            ensure!(sha256(&bytes) == *used, "{} is not the file that the run used", teacher.checkpoint.display());
        }
        let network = network(&teacher.checkpoint, teacher.arch.as_deref())?;
        explain(&methods, &network, &config.loss.layer, &images, &Class::Given(own.classes.clone()))
    });
    let mut left_out: Vec<String> =
        own.skipped.iter().map(|(_, why)| format!("Left out of the student: {why}")).collect();
    let said = match said.transpose() {
        Ok(said) => said,
        Err(e) => {
            left_out.push(format!("The teacher's maps are left out: {}", sentence(&e)));
            None
        }
    };
    left_out
        .extend(said.iter().flat_map(|said| &said.skipped).map(|(_, why)| format!("Left out of the teacher: {why}")));
    page.text(&format!(
        "Test images {}, layer {}, the {}. A map is laid over the darkened image from its own lowest value (dark) up; a row has one \
         scale, from dark to bright the range that stands beside it.",
        images.index.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        config.loss.layer,
        if images.several { "class that the student names" } else { "label's class" },
    ));
    page.pictures(&captions(&images, &own, said.as_ref()), &rows(&images, &names, &own, said.as_ref())?)?;
    page.list(&left_out);
    Ok(())
}

/// The images and, under them, each method's maps.
fn rows(
    images: &Images,
    names: &[&str],
    own: &Explained,
    said: Option<&Explained>,
) -> Result<Vec<(String, Vec<RgbImage>)>> {
    let mut strips = Vec::new();
    for name in names {
        for (model, explained) in [("student", Some(own)), ("teacher", said)] {
            let outcome = explained.and_then(|e| e.outcomes.iter().find(|o| o.method == *name));
            strips.extend(outcome.map(|o| Strip {
                method: &o.method,
                model,
                estimator: o.estimator(),
                shape: o.shape,
                values: &o.values,
            }));
        }
    }
    let originals = gallery::originals(images)?;
    let mut rows = vec![("image".to_string(), originals.clone())];
    for strip in &strips {
        let heading = format!("{}, {} ({}), range {:.3}", strip.method, strip.model, strip.estimator, strip.span());
        rows.push((heading, strip.overlays(&originals)?));
    }
    Ok(rows)
}

/// The class and the probabilities that the models give it; of several classes an image these are no distribution.
fn captions(images: &Images, own: &Explained, said: Option<&Explained>) -> Vec<String> {
    let teacher = said.map(Explained::probabilities).unwrap_or_default();
    let caption = |(i, p): (usize, f32)| {
        let teacher = teacher.get(i).map_or(String::new(), |p| format!(", teacher {p:.0} %"));
        let probabilities = if images.several { String::new() } else { format!(", student {p:.0} %{teacher}") };
        format!("image {}: class {}{probabilities}", images.index[i], own.classes[i])
    };
    own.probabilities().into_iter().enumerate().map(caption).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        let shown = [59.4, 60.0, 3599.0, 3600.0, 7261.0].map(duration);
        assert_eq!(shown, ["59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "2 h 01 min"]);
    }

    /// 3 of 12 images are wrong; the bitmap has room for 16.
    #[test]
    fn an_interval_is_of_the_images_that_there_are() {
        let report = |error: f64, wrong: &str| -> Report {
            serde_json::from_value(serde_json::json!({
                "run": "", "test_error": error, "test_loss": 0.3, "train_error": 1.0, "train_loss": 0.1, "epochs": 1,
                "steps": 1, "seconds": 1.0, "images_per_second": 1.0, "parameters": 1, "flops_per_image": 1.0,
                "profile": "fast", "seed": 0, "commit": "abc", "machine": "m", "threads": 1, "device": "cpu",
                "test_wrong": wrong,
            }))
            .expect("a report")
        };
        assert_eq!(interval(&report(25.0, "c010")), Some(wilson(3, 12).map(|end| 100.0 * end)));
        assert_eq!(interval(&report(0.0, "0000")), Some(wilson(0, 9).map(|end| 100.0 * end)));
        assert_eq!(interval(&report(25.0, "")), None);
    }

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
