//! Pictures of a table of maps: its curves, what a low drop costs, and the images over which methods quarrel.

use std::path::Path;

use anyhow::{Context, Result};

use super::judge::{Found, ONES};
use super::subject::{Named, Subject};
use crate::explain::gallery::{self, Strip};
use crate::explain::{Class, explain};
use crate::files::write_atomically;
use crate::report::plot::{self, Curve, Spot};
use crate::report::statistics::Interval;

/// Images whose maps are shown.
const DISPUTED: usize = 8;

/// `insertion.svg`, `deletion.svg`: the mean curves with their 95 % bands. `drop-complexity.svg`: a method a spot.
pub fn faithfulness(dir: &Path, found: &Found) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for (name, axis) in [("insertion", "part of the pixels put in"), ("deletion", "part of the pixels taken out")] {
        let of = |row: &super::judge::Row| {
            let points = row.curves.get(name).filter(|_| row.method != ONES)?;
            let last = points.len().saturating_sub(1).max(1) as f64;
            let points = points.iter().enumerate().map(|(at, point)| (at as f64 / last, *point)).collect();
            Some(Curve { name: row.method.clone(), points })
        };
        let curves: Vec<Curve> = found.rows.iter().filter_map(of).collect();
        if !curves.is_empty() {
            let svg = plot::curves([axis, "mean probability of the class"], &curves)?;
            write_atomically(&dir.join(format!("{name}.svg")), svg.as_bytes())?;
        }
    }
    let spots = found.rows.iter().filter_map(|row| {
        let figure = |name: &str| -> Option<Interval> { row.figures.get(name).copied() };
        Some(Spot { name: row.method.clone(), x: figure("complexity")?, y: figure("average_drop")? })
    });
    let axes = ["complexity: mean of the mask", "Average Drop, %"];
    let spots: Vec<Spot> = spots.collect();
    if !spots.is_empty() {
        write_atomically(&dir.join("drop-complexity.svg"), plot::spots(axes, &spots)?.as_bytes())?;
    }
    Ok(())
}

/// `index.html` with the images whose maps are least alike, and every method's maps of them.
pub fn disputed(dir: &Path, found: &Found, subject: &Subject, named: &Named, layer: &str, class: &Class) -> Result<()> {
    let at = |image: &u64| subject.images.index.iter().position(|index| index == image);
    let positions: Vec<usize> = found.disputed.iter().filter_map(at).take(DISPUTED).collect();
    if positions.is_empty() {
        return Ok(());
    }
    let few = subject.images.select(&positions);
    let explained = explain(&named.each(), &subject.network, layer, &few, class)?;
    let words = few.index.iter().zip(&few.labels).zip(&explained.classes).zip(explained.probabilities());
    let caption = |(((image, label), class), p): (((&u64, &u32), &u32), f32)| {
        format!("image {image}, label {label}; explained: {class} at {p:.1} %")
    };
    let strips = explained.outcomes.iter().map(|outcome| Strip {
        method: &outcome.method,
        model: "",
        estimator: outcome.estimator(),
        shape: outcome.shape,
        values: &outcome.values,
    });
    gallery::write(dir, &few, &words.map(caption).collect::<Vec<_>>(), &strips.collect::<Vec<_>>())
}
