//! Pictures of maps: overlays as PNG files and a page that shows them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use html_escape::encode_text;
use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

use crate::checkpoint::write_atomically;
use crate::data::Images;

/// Pictures are at least this wide.
const WIDTH: u32 = 160;

/// Writes `original-<i>.png`, `<method>-<i>.png` and `index.html`; maps are (method, (h, w), values of all images).
pub fn write(dir: &Path, images: &Images, captions: &[String], maps: &[(&str, [usize; 2], &[f32])]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut page = String::from(HEAD);
    page += "<tr><th>image</th><th>original</th>";
    for (method, ..) in maps {
        page += &format!("<th>{}</th>", encode_text(method));
    }
    page += "</tr>\n";
    for (i, caption) in captions.iter().enumerate() {
        let original = picture(images, i);
        save(&original, &dir.join(format!("original-{i}.png")))?;
        page += &format!("<tr><td>{}</td>", encode_text(caption));
        page += &format!("<td><img src=\"original-{i}.png\" alt=\"original\"></td>");
        for (method, [h, w], values) in maps {
            let file = format!("{method}-{i}.png");
            save(&overlay(&original, &values[i * h * w..][..h * w], [*h, *w])?, &dir.join(&file))?;
            page += &format!("<td><img src=\"{file}\" alt=\"{method}\"></td>");
        }
        page += "</tr>\n";
    }
    page += "</table></body></html>\n";
    write_atomically(&dir.join("index.html"), page.as_bytes())
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Explanation maps</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; } th, td { padding: 4px 6px; text-align: left; }
td:first-child { max-width: 14em; } img { display: block; width: 160px; image-rendering: pixelated; }
.scale { background: linear-gradient(90deg, #000004, #57106e, #bc3754, #f98e09, #fcffa4); width: 160px; height: 12px; }
</style></head><body>
<h1>Explanation maps</h1>
<p>Each map is resized bilinearly and scaled to its own range, from its lowest to its highest value:</p>
<div class=\"scale\"></div>
<table>
";

/// Image `i`, enlarged by whole pixels.
fn picture(images: &Images, i: usize) -> RgbImage {
    let [_, h, w] = images.shape;
    let pixels = images.image(i);
    let small = RgbImage::from_fn(w as u32, h as u32, |x, y| {
        Rgb(std::array::from_fn(|c| pixels[(c * h + y as usize) * w + x as usize]))
    });
    let factor = WIDTH.div_ceil(w as u32).max(1);
    resize(&small, w as u32 * factor, h as u32 * factor, FilterType::Nearest)
}

/// The map (h, w) over a darkened grey image, in the colours of "inferno".
pub fn overlay(original: &RgbImage, map: &[f32], [h, w]: [usize; 2]) -> Result<RgbImage> {
    let (width, height) = original.dimensions();
    let map = Tensor::from_slice(map, (1, h, w), &Device::Cpu)?;
    let large = cams::maps::minmax(&cams::maps::resize(&map, height as usize, width as usize)?)?;
    let values: Vec<f32> = large.flatten_all()?.to_vec1()?;
    let mut out = original.clone();
    for (pixel, value) in out.pixels_mut().zip(values) {
        let [r, g, b] = pixel.0.map(f32::from);
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        let colour = colorous::INFERNO.eval_continuous(f64::from(value.clamp(0.0, 1.0)));
        let mix = |c: u8| (0.6 * f32::from(c) + 0.4 * grey) as u8;
        *pixel = Rgb([mix(colour.r), mix(colour.g), mix(colour.b)]);
    }
    Ok(out)
}

/// A row of images and, under it, a row a network of its maps (count, h, w).
pub fn sheet(images: &Images, maps: &[Tensor]) -> Result<RgbImage> {
    let originals: Vec<RgbImage> = (0..images.len()).map(|i| picture(images, i)).collect();
    let (width, height) = originals.first().map_or((0, 0), RgbImage::dimensions);
    let mut sheet = RgbImage::new(width * originals.len() as u32, height * (maps.len() + 1) as u32);
    for (i, original) in originals.iter().enumerate() {
        let x = i64::from(width) * i as i64;
        replace(&mut sheet, original, x, 0);
        for (row, maps) in maps.iter().enumerate() {
            let (_, h, w) = maps.dims3()?;
            let values: Vec<f32> = maps.get(i)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
            replace(&mut sheet, &overlay(original, &values, [h, w])?, x, i64::from(height) * (row as i64 + 1));
        }
    }
    Ok(sheet)
}

fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    picture.save(path).with_context(|| format!("writing {}", path.display()))
}
