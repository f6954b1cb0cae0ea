//! PASCAL VOC's XML annotations, which ImageNet uses too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

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

/// Reads a file.
pub fn read(path: &Path) -> Result<Annotation> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no annotation in PASCAL VOC's form", path.display()))
}

/// The same of its text. Positions count from 1 and include their ends.
pub fn parse(text: &str) -> Result<Annotation> {
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
        let [x0, y0, x1, y1] = [at("xmin")? - 1.0, at("ymin")? - 1.0, at("xmax")?, at("ymax")?];
        let [w, h] = size.map(f64::from);
        ensure!(
            x0 < x1 && y0 < y1 && x1 <= w && y1 <= h,
            "the {class} is said to lie at {}..{x1}, {}..{y1} of an image of {w} x {h}",
            x0 + 1.0,
            y0 + 1.0
        );
        let difficult = node.children().any(|c| c.has_tag_name("difficult") && c.text().map(str::trim) == Some("1"));
        Ok(Annotated { class, bounds: [x0.max(0.0), y0.max(0.0), x1, y1], difficult })
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
        let found = parse(&with("<xmin>1</xmin><ymin>11</ymin><xmax>500</xmax><ymax>20</ymax>"))?;
        let cat = Annotated { class: "cat".into(), bounds: [0.0, 10.0, 500.0, 20.0], difficult: true };
        assert_eq!(found, Annotation { size: [500, 375], objects: vec![cat] });
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
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
