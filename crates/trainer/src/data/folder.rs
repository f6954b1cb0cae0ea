//! An image folder: `train/` and `test/`, in each of them a folder per class, in it image files, in sub-folders too.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::decode::{is_image, kinds};
use super::files::Files;
use super::{DataSet, Images, Source, Split};

pub(super) const FOLDER: DataSet = DataSet {
    name: "folder",
    about: "train/ and test/, in each a folder a class; PNG, JPEG, BMP, WebP, GIF",
    load,
    statistics: None,
    part_of: None,
    fetch: None,
    make: None,
};

/// Sub-folders in sub-folders: more is a loop of links.
const DEPTH: usize = 32;

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Image files, in the order of their names.
    pub images: Vec<PathBuf>,
    /// Other files, by the endings of their names.
    others: BTreeMap<String, usize>,
    /// Files and folders whose names begin with a dot.
    hidden: usize,
}

impl Found {
    /// Walks a folder and its sub-folders.
    pub fn walk(dir: &Path) -> Result<Found> {
        let mut found = Found::default();
        found.add(dir, DEPTH)?;
        Ok(found)
    }

    fn add(&mut self, dir: &Path, depth: usize) -> Result<()> {
        ensure!(depth > 0, "{}: folders in folders, {DEPTH} deep; is there a loop of links?", dir.display());
        let (entries, hidden) = entries(dir)?;
        self.hidden += hidden;
        for path in entries {
            if path.is_dir() {
                self.add(&path, depth - 1)?;
            } else if is_image(&path) {
                self.images.push(path);
            } else {
                let ending = path.extension().map_or("no ending".into(), |e| format!(".{}", e.to_string_lossy()));
                *self.others.entry(ending).or_default() += 1;
            }
        }
        Ok(())
    }

    fn merge(&mut self, other: &Found) {
        self.hidden += other.hidden;
        other.others.iter().for_each(|(ending, n)| *self.others.entry(ending.clone()).or_default() += n);
    }

    /// Other kinds of file in words: `3 .heic, 1 .txt`.
    fn other_kinds(&self) -> String {
        self.others.iter().map(|(ending, n)| format!("{n} {ending}")).collect::<Vec<_>>().join(", ")
    }

    /// What was passed over, in words.
    pub fn note(&self) -> Option<String> {
        let mut parts = vec![];
        if !self.others.is_empty() {
            parts.push(format!("files that are not read as images ({})", self.other_kinds()));
        }
        if self.hidden > 0 {
            parts.push(format!("{} hidden names (.*)", self.hidden));
        }
        (!parts.is_empty()).then(|| format!("passed over: {}", parts.join(" and ")))
    }
}

/// What lies in a folder, in the order of the names, and how many names that begin with a dot.
fn entries(dir: &Path) -> Result<(Vec<PathBuf>, usize)> {
    let context = || format!("reading the folder {}", dir.display());
    let all = fs::read_dir(dir).with_context(context)?;
    let all = all.map(|e| Ok(e.with_context(context)?.path())).collect::<Result<Vec<_>>>()?;
    let is_hidden = |p: &PathBuf| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    let (hidden, mut shown): (Vec<_>, Vec<_>) = all.into_iter().partition(is_hidden);
    shown.sort();
    Ok((shown, hidden.len()))
}

/// A name as text, for messages.
fn shown(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

/// Reads one split; classes are numbered in the order of their names in `train/`.
pub fn load(source: &Source, split: Split) -> Result<Images> {
    let root = source.folder();
    let mut files = Files::new(source.prepare(32)?);
    let mut passed = Found::default();
    let names = |split: &str, passed: &mut Found| -> Result<Vec<OsString>> {
        let (all, hidden) = entries(&root.join(split))?;
        passed.hidden += hidden;
        let (folders, files): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| p.is_dir());
        if !files.is_empty() {
            *passed.others.entry("beside the class folders".into()).or_default() += files.len();
        }
        Ok(folders.iter().filter_map(|p| p.file_name().map(OsStr::to_os_string)).collect())
    };
    let classes = names("train", &mut Found::default())?;
    ensure!(!classes.is_empty(), "{} has no class folders", root.join("train").display());
    let split = if split == Split::Train { "train" } else { "test" };
    if let Some(extra) = names(split, &mut passed)?.into_iter().find(|n| !classes.contains(n)) {
        let known: Vec<_> = classes.iter().map(|c| shown(c)).collect();
        bail!("{split}/{} has no counterpart among the classes of train/: {}", shown(&extra), known.join(", "));
    }
    let mut absent = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let dir = root.join(split).join(class);
        if !dir.is_dir() {
            absent.push(shown(class));
            continue;
        }
        let found = Found::walk(&dir)?;
        ensure!(
            !found.images.is_empty(),
            "the class {} has no image in {}{}; read are {}",
            shown(class),
            dir.display(),
            if found.others.is_empty() { String::new() } else { format!(", but {}", found.other_kinds()) },
            kinds()
        );
        passed.merge(&found);
        found.images.into_iter().for_each(|path| files.push(path, label as u32));
    }
    let mut images = files.images(classes.len())?;
    ensure!(!images.is_empty(), "no class folder in {}", root.join(split).display());
    images.notes.extend(passed.note().map(|note| format!("{}: {note}", root.join(split).display())));
    if !absent.is_empty() {
        images.notes.push(format!("{} has no images of {}", root.join(split).display(), absent.join(", ")));
    }
    Ok(images)
}
