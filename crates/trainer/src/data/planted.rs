//! `planted`: one small object on a textured background, with its class and its box: the truth about where
//! a classifier should look is known.

use anyhow::{Result, ensure};
use rand::RngExt;

use super::{DataSet, Images, Object, Source, Split};
use crate::random::{Purpose, stream};

pub(super) const PLANTED: DataSet = DataSet {
    name: "planted",
    about: "procedural: small objects on textured backgrounds, with labels and boxes",
    load,
    statistics: None,
    part_of: None,
    fetch: None,
    make: None,
};

/// Shapes: the classes.
const CLASSES: usize = 6;
const TRAIN: usize = 4000;
const TEST: usize = 1000;

/// Whether a point of the unit square, centre (0, 0), belongs to the shape.
fn inside(class: usize, y: f64, x: f64) -> bool {
    let r = (y * y + x * x).sqrt();
    match class {
        0 => r < 1.0,                                          // disc
        1 => y.abs() < 0.85 && x.abs() < 0.85,                 // square
        2 => y > -0.9 && y < 0.9 && x.abs() < (y + 0.9) / 1.8, // triangle
        3 => y.abs() < 0.3 || x.abs() < 0.3,                   // cross
        4 => r < 1.0 && r > 0.55,                              // ring
        _ => (y - x).abs() < 0.35 || (y + x).abs() < 0.35,     // saltire
    }
}

/// Draws a split: image i is a function of (seed, split, i).
pub fn load(source: &Source, split: Split) -> Result<Images> {
    source.has_no_files()?;
    let side = source.size.unwrap_or(32);
    ensure!((16..=512).contains(&side), "data.size is {side}; planted images are 16 to 512 pixels wide");
    let (count, first) = if split == Split::Train { (TRAIN, 0) } else { (TEST, TRAIN) };
    let mut pixels = vec![0; count * 3 * side * side];
    let mut labels = Vec::with_capacity(count);
    let mut objects = Vec::with_capacity(count);
    for (i, image) in pixels.chunks_exact_mut(3 * side * side).enumerate() {
        let mut rng = stream(source.seed, Purpose::Planted, (first + i) as u64);
        let class = rng.random_range(0..CLASSES);
        // Two crossing waves of random direction and colour, and noise.
        let waves: Vec<[f64; 6]> = (0..2)
            .map(|_| {
                std::array::from_fn(|k| if k < 2 { rng.random_range(-0.9..0.9) } else { rng.random_range(0.0..1.0) })
            })
            .collect();
        let colour: [f64; 3] = std::array::from_fn(|_| rng.random_range(0.0..1.0));
        let radius = side as f64 * rng.random_range(0.12..0.22);
        let margin = radius.ceil();
        let centre: [f64; 2] = std::array::from_fn(|_| rng.random_range(margin..side as f64 - margin));
        let mut bounds = [side as u32, side as u32, 0, 0];
        for y in 0..side {
            for x in 0..side {
                let (v, u) = ((y as f64 + 0.5 - centre[0]) / radius, (x as f64 + 0.5 - centre[1]) / radius);
                let object = v.abs() <= 1.0 && u.abs() <= 1.0 && inside(class, v, u);
                if object {
                    let (x, y) = (x as u32, y as u32);
                    bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
                }
                for c in 0..3 {
                    let mut value = 0.5;
                    for w in &waves {
                        value += 0.18 * w[3 + c % 3] * (w[0] * y as f64 + w[1] * x as f64 + 6.3 * w[2]).sin();
                    }
                    if object {
                        // Away from the background's mean grey, whatever the colour.
                        value = if colour[c] < 0.5 { 0.1 + 0.3 * colour[c] } else { 0.75 + 0.25 * colour[c] };
                    }
                    value += rng.random_range(-0.06..0.06);
                    image[(c * side + y) * side + x] = (value * 255.0).clamp(0.0, 255.0) as u8;
                }
            }
        }
        labels.push(class as u32);
        objects.push(vec![Object { class: class as u32, bounds, difficult: false }]);
    }
    let mut images = Images::new(pixels, labels, [3, side, side], CLASSES)?;
    images.index.iter_mut().for_each(|i| *i += first as u64);
    images.objects = Some(objects);
    Ok(images)
}
