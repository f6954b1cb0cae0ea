//! The table of what a record holds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Found, LIKENESS};
use crate::evaluate::record::{Figures, Record};
use crate::report::statistics::{Interval, bootstrap, mean};

/// A method's figures over all images.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub method: String,
    /// Images of which it was measured.
    pub n: usize,
    /// Means, standard errors and 95 % intervals, by figure.
    pub figures: BTreeMap<String, Interval>,
    /// The same of its figures less the first method's, on the images of which both have them.
    pub differences: BTreeMap<String, Interval>,
    /// The same of every point of a curve.
    pub curves: BTreeMap<String, Vec<Interval>>,
    /// Mean seconds of a map.
    pub seconds: f64,
}

/// The table of what a record holds of these methods, the first of which the others are compared with.
pub(super) fn found(record: &Record, methods: &[String], seed: u64, mut notes: Vec<String>) -> Found {
    let of: Vec<BTreeMap<u64, &Figures>> = methods.iter().map(|method| record.of(method)).collect();
    let rows = methods.iter().zip(&of).enumerate();
    let rows: Vec<Row> =
        rows.map(|(at, (method, of_method))| row(method, of_method, (at > 0).then(|| &of[0]), seed)).collect();
    // A map that is nothing, or the same everywhere, points nowhere; one that is not finite has no figure at all.
    for row in &rows {
        if row.n > 0 && row.figures.is_empty() {
            notes.push(format!(
                "{}: none of {} images has a figure, as none has a map that is finite",
                row.method, row.n
            ));
        }
        let mut fewer: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (figure, interval) in row.figures.iter().filter(|(_, interval)| interval.n < row.n) {
            fewer.entry(interval.n).or_default().push(figure);
        }
        notes.extend(fewer.iter().map(|(n, figures)| {
            format!("{}: {n} of {} images have a value of {}", row.method, row.n, figures.join(", "))
        }));
    }
    let mut likeness: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (image, figures) in of.iter().flatten() {
        likeness.entry(*image).or_default().extend(figures.values.get(LIKENESS));
    }
    let mut disputed: Vec<(f64, u64)> =
        likeness.into_iter().filter(|(_, of)| !of.is_empty()).map(|(image, of)| (mean(&of), image)).collect();
    disputed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Found { rows, disputed: disputed.into_iter().map(|(_, image)| image).collect(), notes }
}

fn row(method: &str, of: &BTreeMap<u64, &Figures>, reference: Option<&BTreeMap<u64, &Figures>>, seed: u64) -> Row {
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut differences: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut curves: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for (image, f) in of {
        let other = reference.and_then(|of| of.get(image));
        for (name, value) in &f.values {
            figures.entry(name.clone()).or_default().push(*value);
            if let Some(other) = other.and_then(|other| other.values.get(name)) {
                differences.entry(name.clone()).or_default().push(value - other);
            }
        }
        for (name, points) in &f.curves {
            let all = curves.entry(name.clone()).or_insert_with(|| vec![vec![]; points.len()]);
            all.iter_mut().zip(points).for_each(|(all, point)| all.push(*point));
        }
    }
    let seconds = of.values().map(|f| f.seconds).sum::<f64>() / of.len().max(1) as f64;
    let each = |all: BTreeMap<String, Vec<f64>>| -> BTreeMap<String, Interval> {
        all.into_iter().map(|(name, values)| (name, bootstrap(&values, seed))).collect()
    };
    let curve = |points: Vec<Vec<f64>>| points.iter().map(|values| bootstrap(values, seed)).collect();
    Row {
        method: method.into(),
        n: of.len(),
        figures: each(figures),
        differences: each(differences),
        curves: curves.into_iter().map(|(name, points)| (name, curve(points))).collect(),
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    /// A row's n is that of its images; a figure that some of them do not have says of how many it is.
    #[test]
    fn a_figure_of_fewer_images_is_named() -> Result<()> {
        let mut record = Record::open(None, "k")?;
        let one = |image: u64, method: &str, figures: &[(&str, f64)]| Figures {
            image,
            method: method.into(),
            values: figures.iter().map(|(name, value)| (name.to_string(), *value)).collect(),
            ..Figures::default()
        };
        record.add(vec![one(0, "a", &[("drop", 0.5), ("hit", 1.0)]), one(0, "b", &[("drop", 0.25), ("hit", 0.0)])])?;
        record.add(vec![one(1, "a", &[("drop", 0.75)]), one(1, "b", &[])])?;
        let found = found(&record, &["a".into(), "b".into()], 0, vec!["before".into()]);
        assert_eq!(
            found.notes,
            ["before", "a: 1 of 2 images have a value of hit", "b: 1 of 2 images have a value of drop, hit"]
        );
        assert_eq!((found.rows[1].n, found.rows[1].figures["drop"].n), (2, 1));
        Ok(())
    }
}
