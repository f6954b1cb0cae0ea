//! Pictures of tables.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// A place on the axis: its name, a point per run, mean and half of its interval, and the value that somebody has
/// published.
pub struct Place {
    /// Written below.
    pub name: String,
    /// A point each.
    pub points: Vec<f64>,
    /// Mean and half width, where there is an interval.
    pub interval: Option<(f64, f64)>,
    /// Drawn as a line.
    pub published: Option<f64>,
}

/// Writes an SVG of points over places.
pub fn places(path: &Path, title: &str, axis: &str, places: &[Place]) -> Result<()> {
    draw(path, title, axis, places).map_err(|e| anyhow!("drawing {}: {e}", path.display()))
}

fn draw(path: &Path, title: &str, axis: &str, places: &[Place]) -> Result<(), Box<dyn std::error::Error>> {
    let (blue, red) = (RGBColor(31, 88, 158), RGBColor(190, 60, 40));
    let all = places.iter().flat_map(|p| {
        let ends = p.interval.map(|(m, h)| [m - h, m + h]);
        p.points.iter().copied().chain(ends.into_iter().flatten()).chain(p.published)
    });
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return Err("there is nothing to draw: no run is finished".into());
    }
    let room = (high - low).max(0.1) * 0.08;
    let width = 120 + 78 * places.len() as u32;
    let root = SVGBackend::new(path, (width, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(70)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..places.len() as f64 - 0.5, low - room..high + room)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE.mix(0.0))
        .x_labels(places.len() * 2 + 1)
        .x_label_formatter(&|_| String::new())
        .y_desc(axis)
        .label_style(("sans-serif", 12))
        .draw()?;
    for (at, place) in places.iter().enumerate() {
        let x = at as f64;
        if let Some(published) = place.published {
            let line = vec![(x - 0.36, published), (x + 0.36, published)];
            chart.draw_series(std::iter::once(PathElement::new(line, red.stroke_width(2))))?;
        }
        if let Some((mean, half)) = place.interval {
            let lines = [vec![(x, mean - half), (x, mean + half)], vec![(x - 0.12, mean), (x + 0.12, mean)]];
            chart.draw_series(lines.into_iter().map(|l| PathElement::new(l, blue.stroke_width(2))))?;
        }
        // Runs side by side, in the order of their seeds.
        let n = place.points.len().max(1) as f64;
        let spot = |(i, v): (usize, &f64)| {
            Circle::new((x + ((i as f64 + 0.5) / n - 0.5) * 0.4, *v), 3, blue.mix(0.6).filled())
        };
        chart.draw_series(place.points.iter().enumerate().map(spot))?;
        // A name's parts below each other, so that long names do not meet.
        let (px, py) = chart.backend_coord(&(x, low - room));
        let style = TextStyle::from(("sans-serif", 12).into_font()).color(&BLACK);
        for (line, part) in place.name.split(['/', '-']).enumerate() {
            root.draw_text(
                part,
                &style.pos(plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Center,
                    plotters::style::text_anchor::VPos::Top,
                )),
                (px, py + 8 + 14 * line as i32),
            )?;
        }
    }
    root.present()?;
    Ok(())
}
