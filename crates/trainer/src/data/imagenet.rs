//! ImageNet's validation set (Russakovsky et al. 2015): the images as distributed, their classes and boxes from
//! `LOC_val_solution.csv`, or a folder for each class.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::decode::dimensions;
use super::images::{Files, Object};
use super::{DataSet, Found, Images, Source, Split};

/// The mean and standard deviation that everybody uses.
pub const STATISTICS: [[f64; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

pub(super) const IMAGENET: DataSet = DataSet {
    name: "imagenet",
    about: "ImageNet's validation images, with boxes; LOC_val_solution.csv beside them, or a folder a class",
    load,
    statistics: Some(STATISTICS),
    part_of: None,
    fetch: None,
    make: None,
};

/// Classes by synset: of `LOC_synset_mapping.txt`, whose line i is class i; without it, sorted.
fn classes(root: &Path, named: impl Iterator<Item = String>) -> Result<HashMap<String, u32>> {
    let file = root.join("LOC_synset_mapping.txt");
    let mut synsets: Vec<String> = if file.is_file() {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        text.lines().filter_map(|line| line.split_whitespace().next().map(String::from)).collect()
    } else {
        let mut named: Vec<String> = named.collect();
        named.sort();
        named.dedup();
        named
    };
    synsets.iter_mut().for_each(|s| *s = s.trim().to_string());
    Ok(synsets.into_iter().enumerate().map(|(i, synset)| (synset, i as u32)).collect())
}

/// The test split is the validation set; there is no other.
pub fn load(source: &Source, split: Split) -> Result<Images> {
    ensure!(split == Split::Test, "the data set imagenet has its validation images only, as its test split");
    let root = source.folder();
    let solution = root.join("LOC_val_solution.csv");
    if solution.is_file() { of_solution(source, &root, &solution) } else { of_folders(source, &root) }
}

fn of_solution(source: &Source, root: &Path, solution: &Path) -> Result<Images> {
    let mut reader = csv::Reader::from_path(solution).with_context(|| format!("reading {}", solution.display()))?;
    let rows: Vec<(String, String)> = reader
        .deserialize()
        .collect::<std::result::Result<_, _>>()
        .with_context(|| format!("{} is damaged", solution.display()))?;
    let synset = |text: &str| text.split_whitespace().next().map(String::from);
    let classes = classes(root, rows.iter().filter_map(|(_, text)| synset(text)))?;
    let known: HashMap<String, PathBuf> = ["images", "val", "."]
        .iter()
        .map(|dir| root.join(dir))
        .filter(|dir| dir.is_dir())
        .map(|dir| Found::walk(&dir))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flat_map(|found| found.images)
        .filter_map(|path| Some((path.file_stem()?.to_string_lossy().into_owned(), path)))
        .collect();
    let prepare = source.prepare(224);
    let (mut files, mut objects, mut left_out, mut absent) = (Files::new(prepare), vec![], vec![], 0);
    for (name, text) in &rows {
        // A part of the set is a set.
        let Some(path) = known.get(name) else {
            absent += 1;
            continue;
        };
        let read = || -> Result<(u32, Vec<Object>)> {
            let size = dimensions(path)?;
            let words: Vec<&str> = text.split_whitespace().collect();
            ensure!(
                !words.is_empty() && words.len().is_multiple_of(5),
                "\"{text}\": expected groups of synset x1 y1 x2 y2"
            );
            let mut found = Vec::new();
            let mut label = None;
            for group in words.chunks_exact(5) {
                let class = *classes.get(group[0]).with_context(|| format!("unknown synset {}", group[0]))?;
                let at = |i: usize| group[i].parse::<f64>().with_context(|| format!("\"{}\" is no position", group[i]));
                let [x0, y0, x1, y1] = [at(1)?, at(2)?, at(3)?, at(4)?];
                let [w, h] = size.map(f64::from);
                ensure!(
                    0.0 <= x0 && x0 < x1 && 0.0 <= y0 && y0 < y1 && x1 <= w + 1.0 && y1 <= h + 1.0,
                    "a box at {x0} {y0} {x1} {y1} does not lie in an image of {w} x {h}"
                );
                label.get_or_insert(class);
                let bounds = prepare.bounds(size, [x0, y0, x1.min(w), y1.min(h)]);
                found.extend(bounds.map(|bounds| Object { class, bounds, difficult: false }));
            }
            Ok((label.context("no class")?, found))
        };
        match files.check(path).and_then(|()| read()) {
            Ok((label, found)) => {
                files.push(path.clone(), label);
                objects.push(found);
            }
            Err(error) => left_out.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(
        !files.is_empty(),
        "{}: none of its {} images lies in {} or could be used{}",
        solution.display(),
        rows.len(),
        root.join("images").display(),
        left_out.first().map(|first| format!(" ({first})")).unwrap_or_default()
    );
    let mut images = files.images(classes.len())?;
    images.objects = Some(objects);
    if absent > 0 {
        images.notes.push(format!("{absent} of {} images in {} are not here", rows.len(), solution.display()));
    }
    images.note_left_out(left_out);
    Ok(images)
}

/// A folder for each class, named by its synset.
fn of_folders(source: &Source, root: &Path) -> Result<Images> {
    let root = if root.join("val").is_dir() { root.join("val") } else { root.to_path_buf() };
    let entries = fs::read_dir(&root).with_context(|| format!("reading the folder {}", root.display()))?;
    let mut folders: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading the folder {}", root.display()))?.path();
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        if path.is_dir() && name.starts_with('n') {
            folders.insert(name, path);
        }
    }
    if folders.is_empty() {
        bail!(
            "{} holds neither LOC_val_solution.csv nor folders named by synsets (n01440764, ...)",
            source.folder().display()
        );
    }
    let classes = classes(&source.folder(), folders.keys().cloned())?;
    let (mut files, mut left_out) = (Files::new(source.prepare(224)), vec![]);
    for (synset, folder) in &folders {
        let class = *classes.get(synset).with_context(|| format!("{synset} is not in LOC_synset_mapping.txt"))?;
        for path in Found::walk(folder)?.images {
            match files.check(&path) {
                Ok(()) => files.push(path, class),
                Err(error) => left_out.push(format!("{error:#}")),
            }
        }
    }
    ensure!(!files.is_empty(), "no image in {} could be used: {}", root.display(), left_out.join("; "));
    let mut images = files.images(classes.len())?;
    images.note_left_out(left_out);
    Ok(images)
}
