//! Maps of a run's models.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cams::Interpreter;
use candle_core::Device;
use image::RgbImage;

use crate::checkpoint::File;
use crate::config::Config;
use crate::data::{Images, Split};
use crate::error::sentence;
use crate::explain::gallery::{self, Strip};
use crate::explain::{Class, Explained, explain};
use crate::files::sha256;
use crate::nn::Backend;
use crate::report::page::Page;
use crate::run::Report;
use crate::run::teacher::network_of;

/// Test images whose maps are shown.
const PICTURES: usize = 6;

/// Maps of a few test images by the loss's interpreter and by Grad-CAM, the student's and under them its teacher's.
pub(super) fn show(
    page: &mut Page,
    dir: &Path,
    config: &Config,
    report: Option<&Report>,
    device: &Device,
) -> Result<()> {
    let weights = dir.join("last.safetensors");
    ensure!(weights.is_file(), "the folder holds no last.safetensors");
    let layers = vec![config.loss.layer.clone()];
    let student = File::read(&weights)?.network(None, |_| layers.clone(), Backend::f32(device))?;
    let images = config.data.source().load(Split::Test)?.spread(PICTURES);
    let mut names = vec![config.loss.interpreter.as_str()];
    names.extend((names[0] != "grad_cam").then_some("grad_cam"));
    let methods: Vec<(&str, &dyn Interpreter)> =
        names.iter().filter_map(|name| Some((*name, config.interpreter.get(name)?))).collect();
    let class = if images.several { Class::Top1 } else { Class::Label };
    let own = explain(&methods, &student, &config.loss.layer, &images, &class)?;
    let said = config.teacher.as_ref().map(|teacher| -> Result<Explained> {
        let path = &teacher.checkpoint;
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let used = report.and_then(|r| r.inputs.get("teacher"));
        let same = used.is_none_or(|used| sha256(&bytes) == *used);
        ensure!(same, "{} is not the file that the run used", path.display());
        let file = File::parse(path.display().to_string(), bytes)?;
        let network = network_of(teacher, &file, |_| layers.clone(), Backend::f32(device))?;
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
