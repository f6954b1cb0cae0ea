//! Figures of single images, kept as they are measured: whatever has been measured is not measured again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// One method's figures of one image; a figure that is not defined is absent, and so is one that is not finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Position of the image in its data set.
    pub image: u64,
    /// The method's name.
    pub method: String,
    /// By name.
    pub values: BTreeMap<String, f64>,
    /// Figures of many points, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub curves: BTreeMap<String, Vec<f64>>,
    /// Why the method was left out from here on, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Seconds that the map took, its share of the pass included.
    pub seconds: f64,
}

impl Figures {
    /// Without what is not finite: JSON has no word for it.
    fn finite(mut self) -> Figures {
        self.values.retain(|_, value| value.is_finite());
        self.curves.retain(|_, points| points.iter().all(|point| point.is_finite()));
        self
    }
}

/// The figures in the lines behind a record's head. The last line may be what a killed process has left half-written:
/// it is dropped. A broken line before others is none of that, and what stands behind it must not be lost.
fn read<'t>(path: &Path, lines: impl Iterator<Item = &'t str>) -> Result<Vec<Figures>> {
    let mut lines = lines.zip(2..).peekable();
    let mut figures = vec![];
    while let Some((line, number)) = lines.next() {
        match serde_json::from_str(line) {
            Ok(of_image) => figures.push(of_image),
            Err(_) if lines.peek().is_none() => {}
            Err(error) => bail!(
                "{}, line {number}: expected the figures of an image ({error}); remove this line to have that image \
                 measured again, or delete the file to have all of them measured again",
                path.display()
            ),
        }
    }
    Ok(figures)
}

/// A file of figures, a line each, or none: then they are kept in memory alone.
pub struct Record {
    file: Option<File>,
    figures: Vec<Figures>,
}

impl Record {
    /// Reads what `path` holds of this very evaluation, which `key` names; what a killed process has left half-written
    /// is dropped.
    pub fn open(path: Option<&Path>, key: &str) -> Result<Record> {
        let Some(path) = path else { return Ok(Record { file: None, figures: vec![] }) };
        let mut figures = vec![];
        let head = format!("{{\"key\":\"{key}\"}}");
        if path.exists() {
            ensure!(path.is_file(), "{} is no file: a record is one", path.display());
            let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            let mut lines = text.lines();
            ensure!(
                lines.next() == Some(head.as_str()),
                "{} holds another evaluation (other settings, images or weights, or what figures meant in an earlier version): choose another file",
                path.display()
            );
            figures = read(path, lines)?;
        }
        let mut text = head + "\n";
        for line in &figures {
            text += &(serde_json::to_string(line)? + "\n");
        }
        crate::files::make_parent(path)?;
        crate::files::write_atomically(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Record { file: Some(file), figures })
    }

    /// Adds to the record at `path` what those in `parts` hold of the same evaluation, each figure once.
    pub fn merge(path: &Path, parts: &[PathBuf]) -> Result<()> {
        let mut lines: Vec<String> = vec![];
        let mut known = BTreeSet::new();
        for file in std::iter::once(path).chain(parts.iter().map(PathBuf::as_path)).filter(|file| file.exists()) {
            let text = fs::read_to_string(file)
                .with_context(|| format!("reading {}; if it is no record, remove it", file.display()))?;
            let mut of_file = text.lines();
            let Some(head) = of_file.next() else { continue };
            match lines.first() {
                None => lines.push(head.into()),
                Some(first) => {
                    ensure!(first == head, "{} holds another evaluation than {}", file.display(), path.display());
                }
            }
            for figures in read(file, of_file)? {
                if known.insert((figures.image, figures.method.clone())) {
                    lines.push(serde_json::to_string(&figures)?);
                }
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        crate::files::write_atomically(path, (lines.join("\n") + "\n").as_bytes())
    }

    /// The images of which every one of these methods has been measured.
    pub fn done(&self, methods: &[String]) -> BTreeSet<u64> {
        let mut of: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for f in &self.figures {
            of.entry(f.image).or_default().insert(&f.method);
        }
        of.into_iter()
            .filter(|(_, have)| methods.iter().all(|m| have.contains(m.as_str())))
            .map(|(image, _)| image)
            .collect()
    }

    /// Keeps the figures of some images, those that are finite.
    pub fn add(&mut self, figures: Vec<Figures>) -> Result<()> {
        let figures: Vec<Figures> = figures.into_iter().map(Figures::finite).collect();
        if let Some(file) = &mut self.file {
            let lines: Result<Vec<String>> = figures.iter().map(|f| Ok(serde_json::to_string(f)? + "\n")).collect();
            file.write_all(lines?.concat().as_bytes()).and_then(|()| file.sync_data()).context("writing figures")?;
        }
        self.figures.extend(figures);
        Ok(())
    }

    /// A method's figures by image, each once.
    pub fn of(&self, method: &str) -> BTreeMap<u64, &Figures> {
        let measured = self.figures.iter().filter(|f| f.method == method && f.left_out.is_none());
        measured.map(|f| (f.image, f)).collect()
    }

    /// The methods that were left out, and why.
    pub fn left_out(&self) -> BTreeMap<String, String> {
        self.figures.iter().filter_map(|f| Some((f.method.clone(), f.left_out.clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_there_again() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("figures.jsonl");
        let one = |image, method: &str| Figures {
            image,
            method: method.into(),
            values: BTreeMap::from([("drop".into(), 0.1 + image as f64)]),
            curves: BTreeMap::from([("insertion".into(), vec![0.5, image as f64 / 3.0])]),
            left_out: None,
            seconds: 0.5,
        };
        let mut record = Record::open(Some(&path), "k")?;
        record.add(vec![one(3, "a"), one(3, "b")])?;
        record.add(vec![one(5, "a")])?;
        assert_eq!(record.done(&["a".into(), "b".into()]), BTreeSet::from([3]));
        fs::write(&path, fs::read_to_string(&path)? + "{\"image\":5,\"meth")?;
        let mut again = Record::open(Some(&path), "k")?;
        assert_eq!(again.done(&["a".into()]), BTreeSet::from([3, 5]));
        again.add(vec![one(5, "b")])?;
        let whole = Record::open(Some(&path), "k")?;
        assert_eq!((whole.of("b").len(), whole.of("b")[&5].clone()), (2, one(5, "b")));
        assert!(Record::open(Some(&path), "other").is_err());
        again.add(vec![Figures { left_out: Some("no gradient".into()), ..one(3, "c") }])?;
        assert_eq!(again.left_out(), BTreeMap::from([("c".to_string(), "no gradient".to_string())]));
        assert!(again.of("c").is_empty());
        // Two processes' records become one: what both hold is there once, a torn line not at all.
        let part = dir.path().join("part.jsonl");
        let mut other = Record::open(Some(&part), "k")?;
        other.add(vec![one(3, "a"), one(7, "a")])?;
        fs::write(&part, fs::read_to_string(&part)? + "{\"image\":9,")?;
        let before = fs::read_to_string(&path)?;
        Record::merge(&path, &[part.clone(), dir.path().join("none")])?;
        let line = serde_json::to_string(&one(7, "a"))?;
        assert_eq!(fs::read_to_string(&path)?, format!("{before}{line}\n"));
        fs::remove_file(&part)?;
        Record::open(Some(&part), "other")?;
        assert!(Record::merge(&path, &[part]).is_err());
        Ok(())
    }

    /// A figure that is no number is absent, in the record as in memory, and costs no other line.
    #[test]
    fn what_is_not_finite_is_absent() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("figures.jsonl");
        let mut record = Record::open(Some(&path), "k")?;
        let one = |image, drop: f64| Figures {
            image,
            method: "a".into(),
            values: BTreeMap::from([("drop".into(), drop), ("hit".into(), 1.0)]),
            curves: BTreeMap::from([("insertion".into(), vec![0.5, drop]), ("deletion".into(), vec![0.5])]),
            ..Figures::default()
        };
        record.add(vec![one(0, f64::NAN), one(1, f64::INFINITY), one(2, 0.25)])?;
        let again = Record::open(Some(&path), "k")?;
        for record in [&record, &again] {
            let of = record.of("a");
            assert_eq!(of.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
            for image in [0u64, 1] {
                assert_eq!(of[&image].values, BTreeMap::from([("hit".to_string(), 1.0)]));
                assert_eq!(of[&image].curves, BTreeMap::from([("deletion".to_string(), vec![0.5])]));
            }
            assert_eq!(of[&2], &one(2, 0.25));
        }
        Ok(())
    }

    /// Only the last line can be what a crash has cut: any other that is broken is said, before anything is lost.
    #[test]
    fn a_broken_line_before_others_is_told() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("figures.jsonl");
        let line = |image| {
            serde_json::to_string(&Figures { image, method: "a".into(), ..Figures::default() }).expect("plain numbers")
        };
        let cut = "{\"image\":5,\"meth";
        let broken = format!("{{\"key\":\"k\"}}\n{}\n{cut}\n{}\n", line(3), line(7));
        fs::write(&path, &broken)?;
        let other = dir.path().join("other.jsonl");
        for error in [
            Record::open(Some(&path), "k").err().context("opened")?,
            Record::merge(&path, &[]).err().context("merged")?,
            Record::merge(&other, std::slice::from_ref(&path)).err().context("merged")?,
        ] {
            let error = format!("{error:#}");
            for part in ["figures.jsonl, line 3", "remove this line", "delete the file"] {
                assert!(error.contains(part), "{error}");
            }
        }
        assert_eq!(fs::read_to_string(&path)?, broken, "an error changes nothing");
        fs::write(&path, broken.replace(&format!("{cut}\n"), ""))?;
        assert_eq!(Record::open(Some(&path), "k")?.done(&["a".into()]), BTreeSet::from([3, 7]));
        Ok(())
    }
}
