//! `cifar10-mini`: the first 500 training and 100 test images of each class of CIFAR-10, inside the program.
//!
//! Stored as one PNG per split, 50 or 10 images wide: lossless, and small enough for a repository. The images
//! are CIFAR-10's (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), in the order
//! in which they stand in the official files, sorted by class.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::{ImageFormat, RgbImage};

use super::cifar::CIFAR10_STATISTICS;
use super::{DataSet, Images, Source, Split};
use crate::files::write_atomically;

const TRAIN: &[u8] = include_bytes!("cifar10-mini-train.png");
const TEST: &[u8] = include_bytes!("cifar10-mini-test.png");
const CLASSES: usize = 10;
const SIDE: usize = 32;
/// Images a row of the sheet.
const COLUMNS: usize = 50;

pub(super) const MINI: DataSet = DataSet {
    name: "cifar10-mini",
    about: "6,000 images of CIFAR-10, inside the program",
    load,
    statistics: Some(CIFAR10_STATISTICS),
    part_of: Some("cifar10"),
    fetch: None,
    make: Some(make),
};

/// Reads the embedded sheet.
pub fn load(source: &Source, split: Split) -> Result<Images> {
    source.has_no_files()?;
    let bytes = if split == Split::Train { TRAIN } else { TEST };
    let sheet = image::load_from_memory_with_format(bytes, ImageFormat::Png)?.to_rgb8();
    let count = sheet.width() as usize / SIDE * (sheet.height() as usize / SIDE);
    let mut pixels = Vec::with_capacity(count * 3 * SIDE * SIDE);
    for i in 0..count {
        let (x0, y0) = (i % COLUMNS * SIDE, i / COLUMNS * SIDE);
        for c in 0..3 {
            for y in 0..SIDE {
                pixels.extend((0..SIDE).map(|x| sheet.get_pixel((x0 + x) as u32, (y0 + y) as u32)[c]));
            }
        }
    }
    let labels = (0..count).map(|i| (i / (count / CLASSES)) as u32).collect();
    Images::new(pixels, labels, [3, SIDE, SIDE], CLASSES)
}

/// Writes the two sheets from the full CIFAR-10, wherever it is fetched to: how the embedded files were made.
fn make(out: &Path) -> Result<Vec<PathBuf>> {
    let cifar10 = Source::parse("cifar10")?;
    let mut files = vec![];
    for (split, per_class, name) in [(Split::Train, 500, "train"), (Split::Test, 100, "test")] {
        let images = cifar10.load(split)?;
        let mut positions = Vec::new();
        for class in 0..CLASSES as u32 {
            positions.extend((0..images.len()).filter(|i| images.labels[*i] == class).take(per_class));
        }
        ensure!(positions.len() == CLASSES * per_class, "CIFAR-10 has fewer than {per_class} images of a class");
        let rows = positions.len() / COLUMNS;
        let mut sheet = RgbImage::new((COLUMNS * SIDE) as u32, (rows * SIDE) as u32);
        for (i, &p) in positions.iter().enumerate() {
            let image = images.image(p)?;
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let rgb = std::array::from_fn(|c| image[(c * SIDE + y) * SIDE + x]);
                    let (px, py) = (i % COLUMNS * SIDE + x, i / COLUMNS * SIDE + y);
                    sheet.put_pixel(px as u32, py as u32, image::Rgb(rgb));
                }
            }
        }
        let file = out.join(format!("cifar10-mini-{name}.png"));
        let mut bytes = vec![];
        let encoder = image::codecs::png::PngEncoder::new_with_quality(
            &mut bytes,
            image::codecs::png::CompressionType::Best,
            image::codecs::png::FilterType::Adaptive,
        );
        sheet.write_with_encoder(encoder).with_context(|| format!("encoding {}", file.display()))?;
        write_atomically(&file, &bytes)?;
        files.push(file);
    }
    Ok(files)
}
