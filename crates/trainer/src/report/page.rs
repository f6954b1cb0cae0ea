//! A page that needs nothing but itself: figures, tables, drawings and pictures in one HTML text, without scripts.

use std::fmt::Write;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use html_escape::{encode_double_quoted_attribute, encode_text};
use image::{ImageFormat, RgbImage};

use super::table::Table;

/// See the module.
pub struct Page {
    title: String,
    body: String,
}

/// What a folder is called: its name, and of a grid's run the two above it, `block/cell/sN`.
pub fn name_of(dir: &Path) -> String {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let parts: Vec<String> = whole.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let of_seed = parts.last().is_some_and(|name| name.strip_prefix('s').is_some_and(|n| n.parse::<u64>().is_ok()));
    parts[parts.len().saturating_sub(if of_seed { 3 } else { 1 })..].join("/")
}

impl Page {
    /// Under a heading and a line that says what it is of.
    pub fn new(title: &str, about: &str) -> Page {
        let body = format!("<h1>{}</h1>\n<p class=\"about\">{}</p>\n", encode_text(title), encode_text(about));
        Page { title: title.into(), body }
    }

    /// A section begins.
    pub fn heading(&mut self, text: &str) {
        self.add(format_args!("<h2>{}</h2>\n", encode_text(text)));
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        self.add(format_args!("<p>{}</p>\n", encode_text(text)));
    }

    /// A list of sentences.
    pub fn list(&mut self, lines: &[String]) {
        let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", encode_text(line))).collect();
        self.add(format_args!("<ul>\n{items}</ul>\n"));
    }

    /// What one looks for first: names with their values in large letters.
    pub fn figures(&mut self, figures: &[(&str, String)]) {
        let figure = |(name, value): &(&str, String)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>\n", encode_text(name), encode_text(value))
        };
        self.add(format_args!("<dl>\n{}</dl>\n", figures.iter().map(figure).collect::<String>()));
    }

    /// A table; a wide one scrolls by itself.
    pub fn table(&mut self, table: &Table) {
        self.add(format_args!("<div class=\"wide\">{}</div>\n", table.html()));
    }

    /// An SVG and what it shows.
    pub fn drawing(&mut self, svg: &str, caption: &str) {
        let svg = svg.trim_start().replacen("<svg", "<svg role=\"img\"", 1);
        self.add(format_args!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", encode_text(caption)));
    }

    /// A row of pictures a heading, all rows with the same number, and captions under the first row.
    pub fn pictures(&mut self, captions: &[String], rows: &[(String, Vec<RgbImage>)]) -> Result<()> {
        let mut body = String::new();
        for (at, (heading, pictures)) in rows.iter().enumerate() {
            write!(body, "<tr><th>{}</th>", encode_text(heading))?;
            for (i, picture) in pictures.iter().enumerate() {
                let caption = captions.get(i).filter(|_| at == 0).map_or(String::new(), |c| encode_text(c).into());
                let alt = encode_double_quoted_attribute(heading);
                let source = data_uri(picture)?;
                write!(body, "<td><img src=\"{source}\" alt=\"{alt}, image {}\"><p>{caption}</p></td>", i + 1)?;
            }
            body += "</tr>\n";
        }
        self.add(format_args!("<div class=\"wide\"><table class=\"pictures\">\n{body}</table></div>\n"));
        Ok(())
    }

    /// A text as it is, behind a line that opens it.
    pub fn folded(&mut self, line: &str, text: &str) {
        let (line, text) = (encode_text(line), encode_text(text));
        self.add(format_args!("<details><summary>{line}</summary><pre>{text}</pre></details>\n"));
    }

    /// The whole.
    pub fn finish(self) -> String {
        let title = encode_text(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n<style>{STYLE}</style></head><body>\n{}</body></html>\n",
            self.body
        )
    }

    fn add(&mut self, what: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(what);
    }
}

/// The picture itself in place of its address.
fn data_uri(picture: &RgbImage) -> Result<String> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).context("writing a picture")?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())))
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8886; --faint: #777; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; } .about { margin-top: 0.2rem; color: var(--faint); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 0.7rem; }
dl div { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.7rem; }
dt { color: var(--faint); font-size: 0.85rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
.number { text-align: right; }
.pictures td, .pictures th { border: 0; padding: 3px; white-space: normal; } .pictures th { min-width: 7rem; font-weight: normal; }
.pictures img { display: block; width: 128px; image-rendering: pixelated; } .pictures p { margin: 2px 0; font-size: 0.75rem; max-width: 128px; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; background: white; border-radius: 6px; }
figcaption { color: var(--faint); font-size: 0.9rem; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem; font-size: 0.85rem; }
summary { cursor: pointer; } details { margin: 0.6rem 0; }
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::column;

    #[test]
    fn what_is_given_is_escaped_and_a_picture_is_inside() -> Result<()> {
        let mut page = Page::new("a <run>", "of & from");
        page.figures(&[("x < y", "1 & 2".into())]);
        page.list(&["<b>".to_string()]);
        assert_eq!(name_of(Path::new("/a/b/c/s12")), "b/c/s12");
        assert_eq!([name_of(Path::new("/a/b/stop")), name_of(Path::new("/a/b/"))], ["stop", "b"]);
        let mut table = Table::new(vec![column("a", "<a>", 0), column("n", "n", 2)]);
        table.rows.push(vec!["</table>".into(), 0.125.into()]);
        page.table(&table);
        page.folded("settings", "name = \"<script>\"");
        page.pictures(&["<i>".into()], &[("the \"images\"".into(), vec![RgbImage::new(2, 2)])])?;
        let text = page.finish();
        for part in [
            "<title>a &lt;run&gt;</title>",
            "of &amp; from",
            "x &lt; y",
            "<li>&lt;b&gt;</li>",
            "<td>&lt;/table&gt;</td><td class=\"number\">0.12</td>",
            "name = \"&lt;script&gt;\"",
            "alt=\"the &quot;images&quot;, image 1\"",
            "<p>&lt;i&gt;</p>",
            "src=\"data:image/png;base64,iVBORw0KGgo",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("<script"));
        Ok(())
    }
}
