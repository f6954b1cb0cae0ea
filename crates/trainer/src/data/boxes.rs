//! PASCAL VOC's XML annotations, which ImageNet uses too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::decode::dimensions;

/// How a file counts pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// From 1, ends included: PASCAL VOC.
    FromOne,
    /// From 0, ends excluded: ImageNet, in which an end may be a pixel too far.
    FromZero,
}

/// An object as a file states it.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotated {
    /// The class's name.
    pub class: String,
    /// (x0, y0, x1, y1) in the image's pixels, from 0, x0 <= x < x1.
    pub bounds: [f64; 4],
    /// Whether the annotators call it difficult.
    pub difficult: bool,
}

/// An image's annotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Width and height.
    pub size: [u32; 2],
    /// In the order of the file.
    pub objects: Vec<Annotated>,
}

impl Annotation {
    /// Whether it is about this image, by its size: boxes of another would be drawn at another scale.
    pub fn check(&self, image: &Path) -> Result<()> {
        let [w, h] = dimensions(image)?;
        let [said_w, said_h] = self.size;
        ensure!(
            self.size == [w, h],
            "its annotation is of an image of {said_w} x {said_h}, and it has {w} x {h} pixels"
        );
        Ok(())
    }
}

/// Reads a file.
pub fn read(path: &Path, counting: Counting) -> Result<Annotation> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text, counting).with_context(|| format!("{} is no annotation in PASCAL VOC's form", path.display()))
}

/// The same of its text.
pub fn parse(text: &str, counting: Counting) -> Result<Annotation> {
    let document = roxmltree::Document::parse(text)?;
    let root = document.root_element();
    let child = |node: roxmltree::Node, name: &str| -> Result<String> {
        let found = node.children().find(|c| c.has_tag_name(name)).and_then(|c| c.text());
        Ok(found.with_context(|| format!("<{name}> is missing"))?.trim().to_string())
    };
    let number = |node: roxmltree::Node, name: &str| -> Result<f64> {
        let text = child(node, name)?;
        let value: f64 = text.parse().with_context(|| format!("<{name}> is \"{text}\", not a number"))?;
        ensure!((0.0..=1e6).contains(&value), "<{name}> is {text}; positions are 0 to 1,000,000");
        Ok(value)
    };
    let size = root.children().find(|c| c.has_tag_name("size")).context("<size> is missing")?;
    let size = [number(size, "width")? as u32, number(size, "height")? as u32];
    ensure!(size[0] > 0 && size[1] > 0, "the image is said to be {} x {} pixels", size[0], size[1]);
    let object = |node: roxmltree::Node| -> Result<Annotated> {
        let class = child(node, "name")?;
        let bounds = node.children().find(|c| c.has_tag_name("bndbox"));
        let bounds = bounds.with_context(|| format!("the {class} has no <bndbox>"))?;
        let at = |name| number(bounds, name);
        let (first, beyond) = if counting == Counting::FromOne { (1.0, 0.0) } else { (0.0, 1.0) };
        let [x0, y0, x1, y1] = [at("xmin")? - first, at("ymin")? - first, at("xmax")?, at("ymax")?];
        let [w, h] = size.map(f64::from);
        ensure!(
            x0 < x1.min(w) && y0 < y1.min(h) && x1 <= w + beyond && y1 <= h + beyond,
            "the {class} is said to lie at {}..{x1}, {}..{y1} of an image of {w} x {h}",
            x0 + first,
            y0 + first
        );
        let difficult = node.children().any(|c| c.has_tag_name("difficult") && c.text().map(str::trim) == Some("1"));
        Ok(Annotated { class, bounds: [x0.max(0.0), y0.max(0.0), x1.min(w), y1.min(h)], difficult })
    };
    let objects = root.children().filter(|c| c.has_tag_name("object")).map(object).collect::<Result<_>>()?;
    Ok(Annotation { size, objects })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(bounds: &str) -> String {
        format!(
            "<annotation><size><width>500</width><height>375</height><depth>3</depth></size>\
             <object><name>cat</name><difficult>1</difficult><bndbox>{bounds}</bndbox></object></annotation>"
        )
    }

    #[test]
    fn objects_count_from_one() -> Result<()> {
        let found = parse(&with("<xmin>1</xmin><ymin>11</ymin><xmax>500</xmax><ymax>20</ymax>"), Counting::FromOne)?;
        let cat = Annotated { class: "cat".into(), bounds: [0.0, 10.0, 500.0, 20.0], difficult: true };
        assert_eq!(found, Annotation { size: [500, 375], objects: vec![cat] });
        Ok(())
    }

    #[test]
    fn objects_count_from_zero() -> Result<()> {
        let found = parse(&with("<xmin>0</xmin><ymin>11</ymin><xmax>501</xmax><ymax>20</ymax>"), Counting::FromZero)?;
        assert_eq!(found.objects[0].bounds, [0.0, 11.0, 500.0, 20.0]);
        let beyond = with("<xmin>0</xmin><ymin>11</ymin><xmax>502</xmax><ymax>20</ymax>");
        assert!(parse(&beyond, Counting::FromZero).is_err());
        Ok(())
    }

    #[test]
    fn impossible_annotations_are_named() {
        for (text, part) in [
            (with("<xmin>1</xmin><ymin>11</ymin><xmax>501</xmax><ymax>20</ymax>"), "of an image of 500 x 375"),
            (with("<xmin>9</xmin><ymin>11</ymin><xmax>8</xmax><ymax>20</ymax>"), "said to lie at 9..8"),
            (with("<xmin>a</xmin><ymin>11</ymin><xmax>8</xmax><ymax>20</ymax>"), "not a number"),
            (with("<xmin>nan</xmin><ymin>11</ymin><xmax>8</xmax><ymax>20</ymax>"), "positions are 0 to"),
            (with("<xmin>1</xmin>"), "<ymin> is missing"),
            ("<annotation/>".into(), "<size> is missing"),
            ("<annotation>".into(), ""),
        ] {
            let error = format!("{:#}", parse(&text, Counting::FromOne).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
