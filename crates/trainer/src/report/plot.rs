//! Pictures of tables, as SVG.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

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
    /// Runs that have no point, as they diverged: said at the top.
    pub diverged: usize,
}

/// Places on one axis.
pub struct Panel {
    /// Written above.
    pub title: String,
    /// Written beside the axis.
    pub axis: String,
    /// From left to right.
    pub places: Vec<Place>,
}

impl Panel {
    /// The lowest and the highest value that it shows; None if it shows none.
    fn span(&self) -> Option<(f64, f64)> {
        let values = self.places.iter().flat_map(|p| {
            let ends = p.interval.map(|(mean, half)| [mean - half, mean + half]);
            p.points.iter().copied().chain(ends.into_iter().flatten()).chain(p.published)
        });
        values.fold(None, |span, v| Some(span.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v)))))
    }
}

/// Points over places, the panels below each other, each with its own axis.
///
/// # Errors
/// If no panel shows a value.
pub fn panels(title: &str, panels: &[Panel]) -> Result<String> {
    panels.iter().filter_map(Panel::span).try_for_each(drawable)?;
    let mut svg = String::new();
    draw_panels(&mut svg, title, panels).map_err(|e| anyhow!("drawing: {e}"))?;
    Ok(svg)
}

/// Height of the title above all panels and of a panel, width of a place and of what stands beside the places.
const HEAD: u32 = 40;
const PANEL: u32 = 360;
const PLACE: u32 = 78;
const BESIDE: u32 = 92;

fn draw_panels(svg: &mut String, title: &str, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let panels: Vec<(&Panel, (f64, f64))> = panels.iter().filter_map(|p| Some((p, p.span()?))).collect();
    if panels.is_empty() {
        return Err("there is nothing to draw: no run is finished".into());
    }
    let wide = panels.iter().map(|(p, _)| p.places.len()).max().unwrap_or(0) as u32;
    let size = (BESIDE + PLACE * wide.max(6), HEAD + PANEL * panels.len() as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let published = panels.iter().any(|(p, _)| p.places.iter().any(|place| place.published.is_some()));
    let title = format!("{title}{}", if published { "; red: published" } else { "" });
    let (head, body) = root.split_vertically(HEAD);
    head.draw(&Text::new(title, (16, 14), ("sans-serif", 16).into_font()))?;
    let areas = body.split_evenly((panels.len(), 1));
    for ((panel, span), area) in panels.into_iter().zip(&areas) {
        draw_panel(area, panel, span)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    (low, high): (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let (blue, red) = (RGBColor(31, 88, 158), RGBColor(190, 60, 40));
    let room = (high - low).max(0.1) * 0.08;
    let words = if panel.places.iter().any(|p| p.diverged > 0) { room } else { 0.0 };
    let top_of_axis = high + room + words;
    let n = panel.places.len();
    let parts = panel.places.iter().map(|p| p.name.split(['/', '-']).count()).max().unwrap_or(1);
    let (area, _) = area.split_horizontally(BESIDE + PLACE * n as u32);
    let mut chart = ChartBuilder::on(&area)
        .caption(&panel.title, ("sans-serif", 14))
        .margin(12)
        .x_label_area_size(22 + 14 * parts as u32)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..n as f64 - 0.5, low - room..top_of_axis)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE.mix(0.0))
        .x_labels(0)
        .y_desc(&panel.axis)
        .label_style(("sans-serif", 12))
        .draw()?;
    let below = Pos::new(HPos::Center, VPos::Top);
    let style = TextStyle::from(("sans-serif", 12).into_font()).color(&BLACK).pos(below);
    let (left, top) = area.get_base_pixel();
    for (at, place) in panel.places.iter().enumerate() {
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
        let runs = place.points.len().max(1) as f64;
        let spot = |(i, v): (usize, &f64)| {
            Circle::new((x + ((i as f64 + 0.5) / runs - 0.5) * 0.4, *v), 3, blue.mix(0.6).filled())
        };
        chart.draw_series(place.points.iter().enumerate().map(spot))?;
        if place.diverged > 0 {
            let (px, py) = chart.backend_coord(&(x, top_of_axis));
            area.draw_text(&format!("{} diverged", place.diverged), &style.color(&red), (px - left, py - top + 4))?;
        }
        // A name's parts below each other, so that long names do not meet.
        let (px, py) = chart.backend_coord(&(x, low - room));
        for (line, part) in place.name.split(['/', '-']).enumerate() {
            area.draw_text(part, &style, (px - left, py - top + 8 + 14 * line as i32))?;
        }
    }
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

/// Curves with their 95 % bands; x runs from 0 to 1.
pub fn curves(axes: [&str; 2], curves: &[Curve]) -> Result<String> {
    let names: Vec<&str> = curves.iter().map(|c| c.name.as_str()).collect();
    let of = |c: &Curve| c.points.iter().flat_map(|(_, p)| ends(p)).collect::<Vec<_>>();
    let spans = [(0.0, 1.0), span(curves.iter().flat_map(of))];
    let series = curves.iter().map(|c| {
        let upper = c.points.iter().map(|(x, p)| (*x, ends(p)[1]));
        let lower = c.points.iter().rev().map(|(x, p)| (*x, ends(p)[0]));
        let line = c.points.iter().map(|(x, p)| (*x, p.mean)).collect();
        Series { area: upper.chain(lower).collect(), lines: vec![line], middle: None }
    });
    chart(axes, spans, &names, &series.collect::<Vec<_>>())
}

/// Spots with their 95 % intervals both ways.
pub fn spots(axes: [&str; 2], spots: &[Spot]) -> Result<String> {
    let names: Vec<&str> = spots.iter().map(|s| s.name.as_str()).collect();
    let spans = [span(spots.iter().flat_map(|s| ends(&s.x))), span(spots.iter().flat_map(|s| ends(&s.y)))];
    let series = spots.iter().map(|s| {
        let ([left, right], [low, high]) = (ends(&s.x), ends(&s.y));
        let lines = vec![vec![(left, s.y.mean), (right, s.y.mean)], vec![(s.x.mean, low), (s.x.mean, high)]];
        Series { area: vec![], lines, middle: Some((s.x.mean, s.y.mean)) }
    });
    chart(axes, spans, &names, &series.collect::<Vec<_>>())
}

/// A line for the legend and its points.
pub type Line = (String, Vec<(f64, f64)>);

/// Plain lines.
pub fn lines(axes: [&str; 2], lines: &[Line]) -> Result<String> {
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let spans = [span(points().map(|p| p.0)), span(points().map(|p| p.1))];
    let series = lines.iter().map(|(_, points)| Series { area: vec![], lines: vec![points.clone()], middle: None });
    chart(axes, spans, &names, &series.collect::<Vec<_>>())
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

/// Refuses an axis on which no steps can be counted: the library would look for them without end.
fn drawable((low, high): (f64, f64)) -> Result<()> {
    ensure!((high - low) < 1e300 && low.abs() < 1e300, "values from {low:e} to {high:e} cannot be drawn on one axis");
    Ok(())
}

/// The colours are told apart; what comes after the last of them has the same again, and a hollow mark or a thin line.
fn colour(at: usize) -> (RGBColor, bool) {
    let c = colorous::TABLEAU10[at % colorous::TABLEAU10.len()];
    (RGBColor(c.r, c.g, c.b), at < colorous::TABLEAU10.len())
}

fn chart(axes: [&str; 2], spans: [(f64, f64); 2], names: &[&str], series: &[Series]) -> Result<String> {
    spans.into_iter().try_for_each(drawable)?;
    let mut svg = String::new();
    draw_chart(&mut svg, axes, spans, names, series).map_err(|e| anyhow!("drawing: {e}"))?;
    Ok(svg)
}

fn draw_chart(
    svg: &mut String,
    [x, y]: [&str; 2],
    [across, up]: [(f64, f64); 2],
    names: &[&str],
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    const LINE: i32 = 18;
    let root = SVGBackend::with_string(svg, (780, 420.max(40 + LINE as u32 * names.len() as u32))).into_drawing_area();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_axis_is_refused() -> Result<()> {
        let of = |high: f64| lines(["x", "y"], &[("a".into(), vec![(0.0, -high), (1.0, high)])]);
        assert!(of(1e308).is_err() && of(f64::NAN).is_err());
        assert!(of(1e30)?.contains("<svg") && of(0.0)?.contains("<svg"));
        let place = |points| Place { name: "p".into(), points, interval: None, published: None, diverged: 0 };
        let of = |points| panels("t", &[Panel { title: "a".into(), axis: "%".into(), places: vec![place(points)] }]);
        assert!(of(vec![-1e308, 1e308]).is_err() && of(vec![]).is_err());
        let drawn = of(vec![5.0])?;
        assert!(drawn.contains("<svg") && !drawn.contains("diverged"));
        let mut lost = place(vec![]);
        lost.diverged = 2;
        let both = Panel { title: "a".into(), axis: "%".into(), places: vec![lost, place(vec![5.0])] };
        assert!(panels("t", &[both])?.contains("2 diverged"));
        Ok(())
    }
}
