//! The images of `trainer explain`: files, a folder, a slice of a data set, tensors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::File;
use crate::data::prepare::Prepare;
use crate::data::{Found, Images, Source, kinds, read_image};
use crate::error::sentence;
use crate::nn::Network;

/// The images of a call, and what is known of each.
pub struct Input {
    /// The images.
    pub images: Images,
    /// Whether their labels are known.
    pub labelled: bool,
    /// What each is called.
    pub names: Vec<String>,
    /// Files that could not be read, and why.
    pub bad: Vec<String>,
}

/// The files that `--images` names: of a folder its images.
pub fn files_of(given: &[String]) -> Result<Vec<PathBuf>> {
    let of = |given: &String| {
        let path = PathBuf::from(given);
        if path.is_dir() { Ok(Found::walk(&path)?.images) } else { Ok(vec![path]) }
    };
    Ok(given.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
}

/// Reads everything `--images` names.
pub fn read(given: &[String], network: &Network) -> Result<Input> {
    let input = network.architecture.graph.shapes[0];
    let shape = [input.channels, input.h, input.w];
    let classes = network.architecture.classes;
    let [first] = given else {
        let paths: Vec<PathBuf> = given.iter().map(PathBuf::from).collect();
        for path in &paths {
            ensure!(
                path.is_file() && path.extension().is_none_or(|e| e != "safetensors"),
                "--images {}: {}; of several, each must be an image file (a folder, a slice of a data set or a safetensors file stands alone)",
                path.display(),
                if path.exists() { "no image file" } else { "no such file" }
            );
        }
        return files(paths, shape, classes);
    };
    let path = Path::new(first);
    if path.is_dir() {
        let found = Found::walk(path)?;
        ensure!(
            !found.images.is_empty(),
            "the folder {} holds no image ({}); read are {}",
            path.display(),
            found.note().unwrap_or_else(|| "nothing".into()),
            kinds()
        );
        let note = found.note().map(|note| format!("{}: {note}", path.display()));
        let mut input = files(found.images, shape, classes)?;
        input.images.notes.extend(note);
        return Ok(input);
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return tensors(path, shape, classes);
    }
    if path.is_file() {
        return files(vec![path.to_path_buf()], shape, classes);
    }
    match Source::slice(first) {
        Some((source, split, range)) => {
            let all = source?.of_size(shape[1]).load(split)?;
            let end = range.end.min(all.len());
            ensure!(range.start < end, "{first}: the slice is empty, the set has {} images", all.len());
            ensure!(all.shape == shape, "{first}: images are {:?}, the model takes {shape:?}", all.shape);
            let mut images = all.select(&(range.start..end).collect::<Vec<_>>());
            let names = images.index.iter().map(|i| format!("image {i}")).collect();
            let labelled = images.classes == classes;
            if !labelled {
                // Numbers of other classes than the model's say nothing of it.
                images.notes.push(format!("{first}: its {} classes are not the model's {classes}", images.classes));
                images.classes = classes;
                images.labels.fill(0);
            }
            Ok(Input { images, labelled, names, bad: vec![] })
        }
        None => bail!("--images {first}: no such file or folder, and not a slice like cifar10:test[0..16]"),
    }
}

fn files(paths: Vec<PathBuf>, shape: [usize; 3], classes: usize) -> Result<Input> {
    let [_, h, w] = shape;
    ensure!(h == w, "the model takes {h} x {w} images; files are read for square models only");
    let (mut pixels, mut names, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        match read_image(&path, Some(Prepare::stretched(h))) {
            Ok((image, _)) => {
                pixels.extend(image);
                names.push(path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()));
            }
            Err(e) => bad.push(sentence(&e)),
        }
    }
    let images = Images::new(pixels, vec![0; names.len()], shape, classes)?;
    Ok(Input { images, labelled: false, names, bad })
}

fn tensors(path: &Path, shape: [usize; 3], classes: usize) -> Result<Input> {
    let file = File::read(path)?;
    let found = file.shapes()?;
    let dims =
        found.get("images_u8").with_context(|| format!("{} holds no tensor images_u8 (n, 3, h, w)", path.display()))?;
    ensure!(
        dims.len() == 4 && dims[1..] == shape,
        "{}: images_u8 is {dims:?}, the model takes (n, {}, {}, {})",
        path.display(),
        shape[0],
        shape[1],
        shape[2]
    );
    ensure!(dims[0] > 0, "{}: images_u8 holds no image", path.display());
    let pixels = file.integers("images_u8", 255)?.into_iter().map(|p| p as u8).collect();
    let labelled = found.contains_key("labels");
    let labels = if labelled { file.integers("labels", classes as u32 - 1)? } else { vec![0; dims[0]] };
    ensure!(labels.len() == dims[0], "{}: {} images, but {} labels", path.display(), dims[0], labels.len());
    let names = (0..dims[0]).map(|i| format!("image {i}")).collect();
    Ok(Input { images: Images::new(pixels, labels, shape, classes)?, labelled, names, bad: vec![] })
}

/// Whether another model can look at these images.
pub fn check(input: &Input, other: &Network) -> Result<()> {
    let shape = other.architecture.graph.shapes[0];
    let takes = [shape.channels, shape.h, shape.w];
    ensure!(input.images.shape == takes, "the images are {:?}, this model takes {takes:?}", input.images.shape);
    let (classes, own) = (input.images.classes, other.architecture.classes);
    ensure!(classes == own, "the model explained has {classes} classes, this one {own}");
    Ok(())
}
