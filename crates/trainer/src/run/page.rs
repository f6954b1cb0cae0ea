//! A run as a page: what it came to, its curves, its maps, its settings; whatever of that there is yet.

mod curves;
mod maps;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;

use self::curves::Measured;
use super::report::{JudgedBy, Report, bits};
use super::{Divergence, folder};
use crate::config::{Config, WeightSchedule, typed};
use crate::error::sentence;
use crate::report::page::{Page, name_of};
use crate::report::statistics::wilson;
use crate::report::table::{Table, column};

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
            "Not finished: {} of {} epochs are done. What follows is what there is.",
            measured.epochs.len(),
            config.train.epochs
        )),
    }
    measured.show(&mut page, &config, report.as_ref())?;
    page.heading("Maps");
    if judged_by == JudgedBy::HeldOutImages {
        page.text("Settings are chosen by this run: nothing of the test images is shown.");
    } else if let Err(e) = maps::show(&mut page, dir, &config, report.as_ref(), device) {
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
}
