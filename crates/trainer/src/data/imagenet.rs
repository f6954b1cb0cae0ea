//! ImageNet's validation set (Russakovsky et al. 2015) as it is distributed: classes and boxes from
//! `LOC_val_solution.csv`; or classes from folders named by synsets, and boxes from XML files; or both from those.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::boxes::{self, Counting};
use super::decode::dimensions;
use super::files::Files;
use super::images::Object;
use super::prepare::Prepare;
use super::{DataSet, Found, Images, Source, Split};

/// The mean and standard deviation that everybody uses.
pub const STATISTICS: [[f64; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

pub(super) const IMAGENET: DataSet = DataSet {
    name: "imagenet",
    about: "ImageNet's validation images, with boxes: LOC_val_solution.csv, or a folder a class and XML files",
    load,
    statistics: Some(STATISTICS),
    part_of: None,
    fetch: None,
    make: None,
};

/// Classes by synset: of `LOC_synset_mapping.txt`, whose line i is class i (its order may be another than the sorted
/// one, as the development kit's is); without it those that occur, sorted.
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
    if solution.is_file() { of_solution(source, &root, &solution) } else { of_files(source, &root) }
}

/// Where the images lie in a folder, unless they lie in it at once: as on Kaggle, or by hand.
const FOLDERS: [&str; 4] = ["ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "val", "images"];

/// Where the XML files lie: as on Kaggle, or by hand. They may lie beside their images, too.
const ANNOTATIONS: [&str; 4] =
    ["ILSVRC/Annotations/CLS-LOC/val", "Annotations/CLS-LOC/val", "Annotations", "annotations"];

/// Those of them that are there, or the folder itself.
fn folders(root: &Path) -> Vec<PathBuf> {
    let there: Vec<PathBuf> = FOLDERS.iter().map(|dir| root.join(dir)).filter(|dir| dir.is_dir()).collect();
    if there.is_empty() { vec![root.to_path_buf()] } else { there }
}

/// Boxes, in the pixels of an image of this size, as objects of the prepared one.
fn objects(prepare: Prepare, size: [u32; 2], boxes: &[(u32, [f64; 4])]) -> Vec<Object> {
    let prepared = |(class, bounds): &(u32, [f64; 4])| {
        Some(Object { class: *class, bounds: prepare.bounds(size, *bounds)?, difficult: false })
    };
    boxes.iter().filter_map(prepared).collect()
}

fn of_solution(source: &Source, root: &Path, solution: &Path) -> Result<Images> {
    let mut reader = csv::Reader::from_path(solution).with_context(|| format!("reading {}", solution.display()))?;
    let prepare = source.prepare(224)?;
    let (mut files, mut rows) = (Files::new(prepare), Vec::<(String, String)>::new());
    for row in reader.deserialize() {
        match row {
            Ok(row) => rows.push(row),
            Err(error) => files.leave_out(format!("{}: {error}", solution.display())),
        }
    }
    let synset = |text: &str| text.split_whitespace().next().map(String::from);
    let classes = classes(root, rows.iter().filter_map(|(_, text)| synset(text)))?;
    let mut there: HashMap<String, PathBuf> = folders(root)
        .iter()
        .map(|dir| Found::walk(dir))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flat_map(|found| found.images)
        .filter_map(|path| Some((path.file_stem()?.to_string_lossy().into_owned(), path)))
        .collect();
    let (all, mut absent) = (rows.len(), 0);
    for (name, text) in rows {
        // A part of the set is a set.
        let Some(path) = there.remove(&name) else {
            absent += 1;
            continue;
        };
        files.add(path.clone(), || {
            let size = dimensions(&path)?;
            let words: Vec<&str> = text.split_whitespace().collect();
            ensure!(
                !words.is_empty() && words.len().is_multiple_of(5),
                "\"{text}\": expected groups of synset x1 y1 x2 y2"
            );
            let mut found = Vec::new();
            for group in words.chunks_exact(5) {
                let class = *classes.get(group[0]).with_context(|| format!("unknown synset {}", group[0]))?;
                let at = |i: usize| group[i].parse::<f64>().with_context(|| format!("\"{}\" is no position", group[i]));
                let [x0, y0, x1, y1] = [at(1)?, at(2)?, at(3)?, at(4)?];
                let [w, h] = size.map(f64::from);
                ensure!(
                    0.0 <= x0 && x0 < x1 && 0.0 <= y0 && y0 < y1 && x1 <= w + 1.0 && y1 <= h + 1.0,
                    "a box at {x0} {y0} {x1} {y1} does not lie in an image of {w} x {h}"
                );
                found.push((class, [x0, y0, x1.min(w), y1.min(h)]));
            }
            Ok((found.first().context("no class")?.0, objects(prepare, size, &found)))
        });
    }
    ensure!(
        all == 0 || absent < all,
        "{}: none of its {all} images lies in {}",
        solution.display(),
        folders(root)[0].display()
    );
    let (mut images, objects) = files.readable(classes.len(), solution)?;
    images.objects = Some(objects);
    if let Some(stranger) = there.keys().min() {
        let what = format!("have no row in {} ({stranger}, ...)", solution.display());
        images.notes.push(format!("{} image files are passed over, which {what}", there.len()));
    }
    if absent > 0 {
        images.notes.push(format!("{absent} of {all} images in {} are not here", solution.display()));
    }
    Ok(images)
}

/// An image, the folder named by a synset that it lies in, and what its XML file says.
struct Lying {
    path: PathBuf,
    synset: Option<String>,
    annotation: Option<Result<boxes::Annotation>>,
}

impl Lying {
    /// Where an image below `dir` lies, and its annotation in one of the folders or beside it. None of an image in a
    /// folder that is no class's.
    fn new(path: PathBuf, dir: &Path, annotations: &[PathBuf]) -> Option<Lying> {
        let below = path.strip_prefix(dir).ok()?;
        let mut folders = below.parent()?.iter();
        let synset = folders.next().map(|name| name.to_string_lossy().into_owned());
        if synset.as_deref().is_some_and(|name| !is_synset(name)) {
            return None;
        }
        let name = path.with_extension("xml");
        let file = name.file_name().unwrap_or_default();
        let by_class = synset.iter().flat_map(|synset| annotations.iter().map(move |dir| dir.join(synset)));
        let all = annotations.iter().cloned().chain(by_class).map(|dir| dir.join(file));
        let file = all.chain([name.clone()]).find(|path| path.is_file());
        Some(Lying { path, synset, annotation: file.map(|file| boxes::read(&file, Counting::FromZero)) })
    }

    /// The synset of its folder, else of the first object in it.
    fn class(&self) -> Option<&str> {
        let objects = self.annotation.iter().flatten().flat_map(|annotation| &annotation.objects);
        self.synset.as_deref().or_else(|| Some(objects.into_iter().next()?.class.as_str()))
    }
}

/// Whether a folder's name is a synset, as n01440764 is.
fn is_synset(name: &str) -> bool {
    name.strip_prefix('n').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Images whose class is their folder's name, or stands in their annotation.
fn of_files(source: &Source, root: &Path) -> Result<Images> {
    let dir = folders(root).swap_remove(0);
    let folders: Vec<PathBuf> = ANNOTATIONS.iter().map(|dir| root.join(dir)).filter(|dir| dir.is_dir()).collect();
    let found = Found::walk(&dir)?.images.into_iter();
    let lying: Vec<Lying> = found.filter_map(|path| Lying::new(path, &dir, &folders)).collect();
    let synsets: Vec<_> = lying.iter().filter_map(|lying| lying.class().map(String::from)).collect();
    ensure!(
        !synsets.is_empty(),
        "{} holds neither LOC_val_solution.csv nor folders named by synsets (n01440764, ...), nor annotations (XML) of \
         the images",
        root.display()
    );
    let classes = classes(root, synsets.into_iter())?;
    let boxed = lying.iter().any(|lying| lying.annotation.is_some());
    let prepare = source.prepare(224)?;
    let mut files = Files::new(prepare);
    for Lying { path, synset, annotation } in lying {
        files.add(path.clone(), || {
            let class = |synset: &str| {
                classes
                    .get(synset)
                    .copied()
                    .with_context(|| format!("{synset} is none of the {} classes", classes.len()))
            };
            let of_folder = synset.as_deref().map(class).transpose()?;
            let Some(annotation) = annotation.transpose()? else {
                ensure!(!boxed, "it has no annotation, as others have");
                return Ok((of_folder.context("it lies in no folder named by a synset")?, vec![]));
            };
            annotation.check(&path)?;
            let found = annotation.objects.iter().map(|object| Ok((class(&object.class)?, object.bounds)));
            let found = found.collect::<Result<Vec<_>>>()?;
            let first = found.first().map(|(class, _)| *class);
            let label = of_folder.or(first).context("its annotation holds no object")?;
            Ok((label, objects(prepare, annotation.size, &found)))
        });
    }
    let (mut images, objects) = files.readable(classes.len(), &dir)?;
    images.objects = boxed.then_some(objects);
    Ok(images)
}
