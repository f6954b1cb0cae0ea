//! Pictures of tables.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::statistics::Interval;

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

/// A line with its band.
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// (x, the mean there and its interval).
    pub points: Vec<(f64, Interval)>,
}

/// A spot with its intervals.
pub struct Spot {
    /// In the legend.
    pub name: String,
    /// To the right.
    pub x: Interval,
    /// Up.
    pub y: Interval,
}

/// Writes an SVG of curves with their 95 % bands; x runs from 0 to 1.
pub fn curves(path: &Path, axes: [&str; 2], curves: &[Curve]) -> Result<()> {
    let names: Vec<&str> = curves.iter().map(|c| c.name.as_str()).collect();
    let of = |c: &Curve| c.points.iter().flat_map(|(_, p)| ends(p)).collect::<Vec<_>>();
    let spans = [(0.0, 1.0), span(curves.iter().flat_map(of))];
    let series = curves.iter().map(|c| {
        let upper = c.points.iter().map(|(x, p)| (*x, ends(p)[1]));
        let lower = c.points.iter().rev().map(|(x, p)| (*x, ends(p)[0]));
        let line = c.points.iter().map(|(x, p)| (*x, p.mean)).collect();
        Series { area: upper.chain(lower).collect(), lines: vec![line], middle: None }
    });
    chart(path, axes, spans, &names, &series.collect::<Vec<_>>())
}

/// Writes an SVG of spots with their 95 % intervals both ways.
pub fn spots(path: &Path, axes: [&str; 2], spots: &[Spot]) -> Result<()> {
    let names: Vec<&str> = spots.iter().map(|s| s.name.as_str()).collect();
    let spans = [span(spots.iter().flat_map(|s| ends(&s.x))), span(spots.iter().flat_map(|s| ends(&s.y)))];
    let series = spots.iter().map(|s| {
        let ([left, right], [low, high]) = (ends(&s.x), ends(&s.y));
        let lines = vec![vec![(left, s.y.mean), (right, s.y.mean)], vec![(s.x.mean, low), (s.x.mean, high)]];
        Series { area: vec![], lines, middle: Some((s.x.mean, s.y.mean)) }
    });
    chart(path, axes, spans, &names, &series.collect::<Vec<_>>())
}

/// What is drawn in one colour.
struct Series {
    /// The corners of a pale area.
    area: Vec<(f64, f64)>,
    lines: Vec<Vec<(f64, f64)>>,
    /// A mark.
    middle: Option<(f64, f64)>,
}

/// Ends of an interval; the mean itself where there is none.
fn ends(of: &Interval) -> [f64; 2] {
    if of.low.is_finite() { [of.low, of.high] } else { [of.mean, of.mean] }
}

/// From a little below the lowest to a little above the highest.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let room = (high - low).max(1e-3) * 0.05;
    (low - room, high + room)
}

/// The colours are told apart; what comes after the last of them has the same again, and a hollow mark or a thin line.
fn colour(at: usize) -> (RGBColor, bool) {
    let c = colorous::TABLEAU10[at % colorous::TABLEAU10.len()];
    (RGBColor(c.r, c.g, c.b), at < colorous::TABLEAU10.len())
}

fn chart(path: &Path, axes: [&str; 2], spans: [(f64, f64); 2], names: &[&str], series: &[Series]) -> Result<()> {
    draw_chart(path, axes, spans, names, series).map_err(|e| anyhow!("drawing {}: {e}", path.display()))
}

fn draw_chart(
    path: &Path,
    [x, y]: [&str; 2],
    [across, up]: [(f64, f64); 2],
    names: &[&str],
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    const LINE: i32 = 18;
    let root = SVGBackend::new(path, (780, 420.max(40 + LINE as u32 * names.len() as u32))).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(560);
    let mut chart = ChartBuilder::on(&left)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(across.0..across.1, up.0..up.1)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(WHITE.mix(0.0)).x_desc(x).y_desc(y).label_style(("sans-serif", 12)).draw()?;
    for (at, Series { area, lines, middle }) in series.iter().enumerate() {
        let (colour, first) = colour(at);
        let width = if first { 2 } else { 1 };
        chart.draw_series(std::iter::once(Polygon::new(area.clone(), colour.mix(0.12))))?;
        chart.draw_series(lines.iter().map(|line| PathElement::new(line.clone(), colour.stroke_width(width))))?;
        let style = if first { colour.filled() } else { colour.stroke_width(2) };
        chart.draw_series(middle.iter().map(|middle| Circle::new(*middle, 4, style)))?;
        let height = 24 + LINE * at as i32;
        right.draw(&PathElement::new(vec![(8, height), (30, height)], colour.stroke_width(width + 1)))?;
        if middle.is_some() {
            right.draw(&Circle::new((19, height), 4, style))?;
        }
        right.draw(&Text::new(names[at].to_string(), (38, height - 6), ("sans-serif", 13).into_font()))?;
    }
    root.present()?;
    Ok(())
}
