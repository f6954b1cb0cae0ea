//! A run as a page: what it came to, its curves, its maps, its settings; whatever of that there is yet.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cams::Interpreter;
use candle_core::Device;
use image::RgbImage;
use serde_json::Value;

use super::report::{Report, bits};
use super::{Divergence, folder};
use crate::checkpoint::File;
use crate::config::Config;
use crate::data::{Images, Split};
use crate::error::sentence;
use crate::explain::gallery::{self, Strip};
use crate::explain::{Class, Explained, explain};
use crate::nn::{Backend, Network};
use crate::report::page::Page;
use crate::report::plot::{self, Line};
use crate::report::statistics::wilson;
use crate::report::table::{Table, column};

/// Test images whose maps are shown.
const PICTURES: usize = 6;

/// Whether a folder is that of a run.
pub fn is_run(dir: &Path) -> bool {
    dir.join("config.toml").is_file()
}

/// The page of the run in `dir`. Its maps are made anew from its weights, on `device`; where weights or images are not there, the
/// page says so.
pub fn page(dir: &Path, device: &Device) -> Result<String> {
    let path = dir.join("config.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let diverged: Option<Divergence> = folder::read(&dir.join("diverged.json"))?;
    // A run that is being made longer has the report of a shorter one.
    let report: Option<Report> = folder::read(&dir.join("report.json"))?;
    let report = report.filter(|r| r.epochs == config.train.epochs);
    let measured = Measured::read(dir)?;

    let name = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let name = name.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned());
    let mut page = Page::new(&name, &about(&config));
    match (&report, &diverged) {
        (Some(report), _) => {
            page.figures(&figures(report));
            page.text(&origin(report));
        }
        (None, Some(d)) => page.text(&format!("Diverged at step {}: {} (commit {}).", d.step, d.what, d.commit)),
        (None, None) => page.text(&format!(
            "Not finished: {} of {} epochs are measured. What follows is what there is.",
            measured.epochs.len(),
            config.train.epochs
        )),
    }
    curves(&mut page, &config, report.as_ref(), &measured)?;
    if let Some(agreement) = report.as_ref().and_then(|r| r.agreement.as_ref()) {
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
    page.heading("Maps");
    if let Err(e) = maps(&mut page, dir, &config, device) {
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
        let name = t.checkpoint.file_name().unwrap_or_default().to_string_lossy();
        format!(", teacher {name}")
    });
    format!(
        "{student} on {}{teacher}; loss: {}; profile {}, {} epochs, seed {}",
        config.data.name,
        terms.join(" + "),
        config.train.profile,
        config.train.epochs,
        config.train.seed
    )
}

fn figures(report: &Report) -> Vec<(&'static str, String)> {
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
    add("test loss (NLL)", Some(format!("{:.4}", report.test_loss)));
    add("training error, last epoch", Some(percent(report.train_error)));
    add("epochs", Some(report.epochs.to_string()));
    add("time", Some(duration(report.seconds)));
    add("images per second", Some(format!("{:.0}", report.images_per_second)));
    add("parameters", Some(format!("{:.3} M", report.parameters as f64 / 1e6)));
    add("GFLOP per image and step", Some(format!("{:.3}", report.flops_per_image / 1e9)));
    figures
}

/// The test error's, in percent, where the report says which images are wrong.
fn interval(report: &Report) -> Option<[f64; 2]> {
    let wrong = bits(&report.test_wrong)?.into_iter().filter(|wrong| *wrong).count();
    // The bitmap is filled up to whole bytes: how many images there are follows from the error.
    let images = (wrong > 0).then(|| (wrong as f64 / (report.test_error / 100.0)).round() as usize)?;
    Some(wilson(wrong, images).map(|end| 100.0 * end))
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
    let terms: Vec<(&str, f64)> = config.loss.weights.each().into_iter().filter(|(_, w)| *w > 0.0).collect();

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
    let drawn = [
        (
            errors,
            "error, %",
            "Errors after each epoch; those of training images are measured while the weights change.",
        ),
        (
            values,
            "weight times value",
            "The terms of the loss, each times its weight in the settings; means over an epoch.",
        ),
        (norms, "weight times norm", "Lengths of the terms' gradients on the logged steps: what each pulls with."),
        (rate, "learning rate", "The learning rate."),
    ];
    let mut any = false;
    for (lines, axis, caption) in drawn.iter().filter(|(lines, ..)| !lines.is_empty()) {
        page.drawing(&plot::lines(["epoch", axis], lines)?, caption);
        any = true;
    }
    if !any {
        page.text("There are none before the second epoch is measured.");
    }
    Ok(())
}

/// Maps of a few test images by the loss's interpreter and by Grad-CAM, the student's and under them its teacher's.
fn maps(page: &mut Page, dir: &Path, config: &Config, device: &Device) -> Result<()> {
    let weights = dir.join("last.safetensors");
    ensure!(weights.is_file(), "the folder holds no last.safetensors");
    let layers = vec![config.loss.layer.clone()];
    let network = |path: &Path, arch: Option<&str>| -> Result<Network> {
        File::read(path)?.network(arch, |_| layers.clone(), Backend::f32(device))
    };
    let student = network(&weights, None)?;
    let teacher = config.teacher.as_ref().map(|t| network(&t.checkpoint, t.arch.as_deref()).context("the teacher"));
    let teacher = teacher.transpose()?;
    let all = config.data.source().load(Split::Test)?;
    let count = PICTURES.min(all.len());
    let images = all.select(&(0..count).map(|i| i * all.len() / count).collect::<Vec<_>>());
    let mut names = vec![config.loss.interpreter.as_str()];
    names.extend((names[0] != "grad_cam").then_some("grad_cam"));
    let methods: Vec<(&str, &dyn Interpreter)> =
        names.iter().filter_map(|name| Some((*name, config.interpreter.get(name)?))).collect();
    let class = if images.several { Class::Top1 } else { Class::Label };
    let own = explain(&methods, &student, &config.loss.layer, &images, &class)?;
    let classes = Class::Given(own.classes.clone());
    let said = teacher.map(|teacher| explain(&methods, &teacher, &config.loss.layer, &images, &classes)).transpose()?;
    page.text(&format!(
        "Test images {}, layer {}, the {}. A map is laid over the darkened image from its own lowest value (dark) up (bright); a \
         row has one scale.",
        images.index.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        config.loss.layer,
        if images.several { "class that the student names" } else { "label's class" },
    ));
    page.pictures(&captions(&images, &own, said.as_ref()), &rows(&images, &names, &own, said.as_ref())?)?;
    for (_, why) in own.skipped.iter().chain(said.iter().flat_map(|said| &said.skipped)) {
        page.text(&format!("Left out: {why}"));
    }
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
        let heading = format!("{}, {} ({})", strip.method, strip.model, strip.estimator);
        rows.push((heading, strip.overlays(&originals)?));
    }
    Ok(rows)
}

/// The class and what the models give it.
fn captions(images: &Images, own: &Explained, said: Option<&Explained>) -> Vec<String> {
    let teacher = said.map(Explained::probabilities).unwrap_or_default();
    let caption = |(i, p): (usize, f32)| {
        let teacher = teacher.get(i).map_or(String::new(), |p| format!(", teacher {p:.0} %"));
        format!("image {}: class {}, student {p:.0} %{teacher}", images.index[i], own.classes[i])
    };
    own.probabilities().into_iter().enumerate().map(caption).collect()
}
