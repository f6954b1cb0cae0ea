//! PASCAL VOC (Everingham et al. 2010) as it is distributed: `JPEGImages`, `Annotations`, `ImageSets/Main`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::boxes::Counting;
use super::files::Files;
use super::images::Object;
use super::{DataSet, Images, Source, Split, boxes};

pub(super) const VOC: DataSet = DataSet {
    name: "voc2007",
    about: "PASCAL VOC 2007: several objects an image, 20 classes; JPEGImages, Annotations, ImageSets",
    load,
    statistics: Some(super::imagenet::STATISTICS),
    part_of: None,
    fetch: None,
    make: None,
};

/// The classes, in the order of their numbers.
pub const CLASSES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// The list of a split's images. The official archives share none between `trainval` and `test`, and none between `train` and
/// `val`, but `trainval` is these two together: where there is no `test`, `val` takes its place, and `train` alone is trained on.
fn list(root: &Path, split: Split) -> Result<PathBuf> {
    let of = |name: &str| root.join("ImageSets/Main").join(format!("{name}.txt"));
    let is_there = |name: &str| of(name).is_file();
    let names: &[&str] = match split {
        Split::Test => &["test", "val"],
        Split::Train if is_there("test") || !is_there("val") => &["trainval", "train"],
        Split::Train => &["train"],
    };
    let Some(name) = names.iter().find(|name| is_there(name)) else {
        let tried: Vec<_> = names.iter().map(|name| of(name).display().to_string()).collect();
        bail!("none of {} is there: give the folder that holds VOC2007, or that folder itself", tried.join(", "));
    };
    Ok(of(name))
}

/// An image's label is the class of its largest object that is not difficult; all objects are kept.
pub fn load(source: &Source, split: Split) -> Result<Images> {
    let root = source.folder();
    let root = if root.join("VOC2007").is_dir() { root.join("VOC2007") } else { root };
    let list = list(&root, split)?;
    let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let prepare = source.prepare(224)?;
    let mut files = Files::new(prepare);
    for name in text.lines().filter_map(|line| line.split_whitespace().next()) {
        let path = root.join("JPEGImages").join(format!("{name}.jpg"));
        files.add(path.clone(), || {
            let annotation = boxes::read(&root.join("Annotations").join(format!("{name}.xml")), Counting::FromOne)?;
            annotation.check(&path)?;
            let mut found = Vec::new();
            let mut largest: Option<(f64, u32)> = None;
            for object in &annotation.objects {
                let class = CLASSES.iter().position(|c| *c == object.class);
                let class = class.with_context(|| format!("\"{}\" is no class of VOC", object.class))? as u32;
                let [x0, y0, x1, y1] = object.bounds;
                let area = (x1 - x0) * (y1 - y0);
                if !object.difficult && largest.is_none_or(|(other, _)| area > other) {
                    largest = Some((area, class));
                }
                let bounds = prepare.bounds(annotation.size, object.bounds);
                found.extend(bounds.map(|bounds| Object { class, bounds, difficult: object.difficult }));
            }
            Ok((largest.context("it has no object that is not difficult")?.1, found))
        });
    }
    let (mut images, objects) = files.readable(CLASSES.len(), &list)?;
    images.objects = Some(objects);
    images.several = true;
    Ok(images)
}
