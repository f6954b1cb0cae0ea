//! Pictures of maps: overlays as PNG files and a page that shows them.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use html_escape::{encode_double_quoted_attribute, encode_text};
use image::imageops::{FilterType, replace, resize};
use image::{ImageFormat, Rgb, RgbImage};

use crate::data::Images;
use crate::files::write_atomically;

/// Pictures are at least this wide.
const WIDTH: u32 = 160;

/// One method's maps of all images.
pub struct Strip<'a> {
    /// Its name.
    pub method: &'a str,
    /// Which model's, where there are two.
    pub model: &'a str,
    /// How they were computed.
    pub estimator: String,
    /// Height and width of a map.
    pub shape: [usize; 2],
    /// (images, h, w).
    pub values: &'a [f32],
}

impl Strip<'_> {
    /// The largest range of one of its maps: the scale that all of them are drawn on.
    pub fn span(&self) -> f32 {
        let maps = self.values.chunks_exact((self.shape[0] * self.shape[1]).max(1)).map(range);
        maps.map(|(low, high)| high - low).fold(0.0, f32::max)
    }

    /// Its maps over the images.
    pub fn overlays(&self, originals: &[RgbImage]) -> Result<Vec<RgbImage>> {
        let (span, maps) = (self.span(), self.values.chunks_exact((self.shape[0] * self.shape[1]).max(1)));
        originals.iter().zip(maps).map(|(original, map)| overlay(original, map, self.shape, span)).collect()
    }
}

/// The images, enlarged by whole pixels.
pub fn originals(images: &Images) -> Result<Vec<RgbImage>> {
    (0..images.len()).map(|i| picture(images, i)).collect()
}

/// Lowest and highest value.
fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// Writes `original-<i>.png`, `[<model>-]<method>-<i>.png` and `index.html`: a row per method and model under a row of
/// the images. A row has one scale.
pub fn write(dir: &Path, images: &Images, captions: &[String], strips: &[Strip]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let originals = originals(images)?;
    let mut page = String::from(HEAD);
    page += "<tr><th></th>";
    for (i, (original, caption)) in originals.iter().zip(captions).enumerate() {
        save(original, &dir.join(format!("original-{i}.png")))?;
        let caption = encode_text(caption);
        page += &format!("<td><img src=\"original-{i}.png\" alt=\"the image\"><p>{caption}</p></td>");
    }
    page += "</tr>\n";
    for strip in strips {
        let Strip { method, model, estimator, .. } = strip;
        let span = strip.span();
        let whose = if model.is_empty() { String::new() } else { format!(", {model}") };
        page += &format!("<tr><th>{}{whose}<p>{estimator}</p>", encode_text(method));
        page += &format!(
            "<div class=\"scale\"></div><p class=\"ends\"><span>lowest</span><span>+{span:.3}</span></p></th>"
        );
        for (i, picture) in strip.overlays(&originals)?.iter().enumerate() {
            let prefix = if model.is_empty() { String::new() } else { format!("{model}-") };
            let file = format!("{prefix}{}-{i}.png", plain(method));
            save(picture, &dir.join(&file))?;
            page += &format!("<td><img src=\"{file}\" alt=\"{}\"></td>", encode_double_quoted_attribute(method));
        }
        page += "</tr>\n";
    }
    page += "</table></body></html>\n";
    write_atomically(&dir.join("index.html"), page.as_bytes())
}

/// A name as part of a file's.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '-' }).collect()
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>Explanation maps</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; } th, td { padding: 4px 6px; text-align: left; vertical-align: top; }
p { margin: 2px 0; font-weight: normal; font-size: 12px; } td p { max-width: 160px; } th { min-width: 9em; }
th p { color: #666; } img { display: block; width: 160px; image-rendering: pixelated; }
.scale { background: linear-gradient(90deg, #000004, #57106e, #bc3754, #f98e09, #fcffa4); height: 10px; }
.ends { display: flex; justify-content: space-between; }
</style></head><body>
<h1>Explanation maps</h1>
<p>Each map is resized bilinearly and laid over the darkened image, from its own lowest value up. A row has one scale, the largest range of its
maps, so that these can be compared; the units of methods and models differ.</p>
<table>
";

/// Image `i`, enlarged by whole pixels.
fn picture(images: &Images, i: usize) -> Result<RgbImage> {
    let [_, h, w] = images.shape;
    let pixels = images.image(i)?;
    let small = RgbImage::from_fn(w as u32, h as u32, |x, y| {
        Rgb(std::array::from_fn(|c| pixels[(c * h + y as usize) * w + x as usize]))
    });
    let factor = WIDTH.div_ceil(w as u32).max(1);
    Ok(resize(&small, w as u32 * factor, h as u32 * factor, FilterType::Nearest))
}

/// The map (h, w) over a darkened grey image, in the colours of "inferno" from its lowest value to
/// `span` above it.
pub fn overlay(original: &RgbImage, map: &[f32], [h, w]: [usize; 2], span: f32) -> Result<RgbImage> {
    let (width, height) = original.dimensions();
    let small = Tensor::from_slice(map, (1, h, w), &Device::Cpu)?;
    let large = cams::maps::resize(&small, height as usize, width as usize)?;
    let (low, span) = (range(map).0, if span > 0.0 { span } else { 1.0 });
    let values: Vec<f32> = large.flatten_all()?.to_vec1()?;
    let mut out = original.clone();
    for (pixel, value) in out.pixels_mut().zip(values) {
        let [r, g, b] = pixel.0.map(f32::from);
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        let colour = colorous::INFERNO.eval_continuous(f64::from(((value - low) / span).clamp(0.0, 1.0)));
        let mix = |c: u8| (0.6 * f32::from(c) + 0.4 * grey) as u8;
        *pixel = Rgb([mix(colour.r), mix(colour.g), mix(colour.b)]);
    }
    Ok(out)
}

/// A row of images and, under it, a row a network of its maps (count, h, w).
pub fn sheet(images: &Images, maps: &[Tensor]) -> Result<RgbImage> {
    let originals = originals(images)?;
    let (width, height) = originals.first().map_or((0, 0), RgbImage::dimensions);
    let mut sheet = RgbImage::new(width * originals.len() as u32, height * (maps.len() + 1) as u32);
    for (i, original) in originals.iter().enumerate() {
        let x = i64::from(width) * i as i64;
        replace(&mut sheet, original, x, 0);
        for (row, maps) in maps.iter().enumerate() {
            let (_, h, w) = maps.dims3()?;
            let values: Vec<f32> = maps.get(i)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
            let (low, high) = range(&values);
            let picture = overlay(original, &values, [h, w], high - low)?;
            replace(&mut sheet, &picture, x, i64::from(height) * (row as i64 + 1));
        }
    }
    Ok(sheet)
}

fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Cursor::new(vec![]);
    picture.write_to(&mut bytes, ImageFormat::Png).with_context(|| format!("encoding {}", path.display()))?;
    write_atomically(path, &bytes.into_inner())
}
