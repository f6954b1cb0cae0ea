//! An image folder: `train/` and `test/`, in each of them a folder a class, in it PNG and JPEG files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::imageops::FilterType;

use super::{Images, Source, Split};

/// Decodes an image file and resizes it to `side` x `side` (None: as it is): channels first, and its height and width.
///
/// Grey images become RGB. The aspect ratio is ignored, as in the Shap-CAM and Score-CAM papers.
pub fn read_image(path: &Path, side: Option<usize>) -> Result<(Vec<u8>, [usize; 3])> {
    let image = image::ImageReader::open(path)
        .with_context(|| format!("opening {}", path.display()))?
        .with_guessed_format()?
        .decode()
        .with_context(|| format!("{} cannot be decoded (PNG and JPEG are read)", path.display()))?;
    let image = match side {
        Some(s) if (image.width(), image.height()) != (s as u32, s as u32) => {
            image.resize_exact(s as u32, s as u32, FilterType::Triangle)
        }
        _ => image,
    }
    .to_rgb8();
    let (w, h) = (image.width() as usize, image.height() as usize);
    let raw = image.as_raw();
    let pixels = (0..3 * h * w).map(|i| raw[i % (h * w) * 3 + i / (h * w)]).collect();
    Ok((pixels, [3, h, w]))
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading the folder {}", dir.display()))?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether the file's name says PNG or JPEG.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    matches!(extension.as_str(), "png" | "jpg" | "jpeg")
}

/// Reads one split; classes are numbered in the order of their names in `train/`.
pub fn load(source: &Source, split: Split) -> Result<Images> {
    let root = source.folder();
    let side = source.size.unwrap_or(32);
    let names = |split: &str| -> Result<Vec<String>> {
        let folders = sorted(&root.join(split))?.into_iter().filter(|p| p.is_dir());
        Ok(folders.filter_map(|p| Some(p.file_name()?.to_str()?.to_string())).collect())
    };
    let classes = names("train")?;
    ensure!(!classes.is_empty(), "{} has no class folders", root.join("train").display());
    let split = if split == Split::Train { "train" } else { "test" };
    if let Some(extra) = names(split)?.into_iter().find(|n| !classes.contains(n)) {
        bail!("{split}/{extra} has no counterpart among the classes of train/: {}", classes.join(", "));
    }
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (label, class) in classes.iter().enumerate() {
        let dir = root.join(split).join(class);
        if !dir.is_dir() {
            continue;
        }
        for path in sorted(&dir)?.into_iter().filter(|p| is_image(p)) {
            pixels.extend(read_image(&path, Some(side))?.0);
            labels.push(label as u32);
        }
    }
    ensure!(!labels.is_empty(), "no PNG or JPEG file in the class folders of {}", root.join(split).display());
    Images::new(pixels, labels, [3, side, side], classes.len())
}
