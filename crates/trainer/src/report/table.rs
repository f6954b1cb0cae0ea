//! A table: columns with a unit and digits, as text, Markdown, CSV and JSON.

use anyhow::{Context, Result};
use html_escape::encode_text;
use serde_json::{Map, Value, json};

/// Characters in a line of text, and between two columns.
const WIDTH: usize = 80;
const GAP: usize = 2;

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its key in JSON and CSV.
    pub key: String,
    /// Its heading, with the unit.
    pub heading: String,
    /// Digits behind the point.
    pub digits: usize,
}

/// A column of this key, heading and number of digits.
pub fn column(key: impl Into<String>, heading: impl Into<String>, digits: usize) -> Column {
    Column { key: key.into(), heading: heading.into(), digits }
}

/// What stands in a place of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Words.
    Text(String),
    /// A number, shown with its column's digits.
    Number(f64),
    /// A number with another behind a plus-minus sign.
    Spread(f64, f64),
    /// A probability: one below the last digit is shown as that, `< 0.001`.
    Probability(f64),
    /// A whole number.
    Count(u64),
    /// Nothing is known.
    Nothing,
}

impl From<&str> for Entry {
    fn from(text: &str) -> Entry {
        Entry::Text(text.into())
    }
}
impl From<String> for Entry {
    fn from(text: String) -> Entry {
        Entry::Text(text)
    }
}
impl From<f64> for Entry {
    fn from(number: f64) -> Entry {
        if number.is_finite() { Entry::Number(number) } else { Entry::Nothing }
    }
}
impl From<Option<f64>> for Entry {
    fn from(number: Option<f64>) -> Entry {
        number.map_or(Entry::Nothing, Entry::from)
    }
}
impl From<usize> for Entry {
    fn from(count: usize) -> Entry {
        Entry::Count(count as u64)
    }
}

/// Rows of entries under columns.
#[derive(Clone, Debug)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// An entry a column each.
    pub rows: Vec<Vec<Entry>>,
}

impl Table {
    /// Without rows.
    pub fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: vec![] }
    }

    /// Every place as text, the headings first.
    fn texts(&self) -> Vec<Vec<String>> {
        let headings = self.columns.iter().map(|c| c.heading.clone()).collect();
        let row = |row: &Vec<Entry>| row.iter().zip(&self.columns).map(|(entry, c)| entry.text(c.digits)).collect();
        std::iter::once(headings).chain(self.rows.iter().map(row)).collect()
    }

    /// In columns of their width; numbers to the right. What does not fit into a terminal's line stands below, under
    /// the first column again.
    pub fn text(&self) -> String {
        let texts = self.texts();
        let wide = |at: usize| texts.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(wide).collect();
        let mut parts: Vec<Vec<usize>> = vec![vec![]];
        for at in 0..self.columns.len() {
            let taken: usize = parts.last().map_or(0, |part| part.iter().map(|at| widths[*at] + GAP).sum());
            match parts.last_mut() {
                Some(part) if part.len() < 2 || taken + widths[at] <= WIDTH => part.push(at),
                _ => parts.push(vec![0, at]),
            }
        }
        let place = |at: usize, text: &String| {
            let fill = " ".repeat(widths[at] - text.chars().count());
            if self.is_of_words(at) { format!("{text}{fill}") } else { format!("{fill}{text}") }
        };
        let line = |row: &Vec<String>, part: &Vec<usize>| {
            let line = part.iter().map(|at| place(*at, &row[*at])).collect::<Vec<_>>().join(&" ".repeat(GAP));
            line.trim_end().to_string() + "\n"
        };
        let block = |part: &Vec<usize>| texts.iter().map(|row| line(row, part)).collect::<String>();
        parts.iter().map(block).collect::<Vec<_>>().join("\n")
    }

    /// For a README.
    pub fn markdown(&self) -> String {
        let line = |row: &Vec<String>| {
            let escaped: Vec<_> = row.iter().map(|text| text.replace('|', "\\|")).collect();
            format!("| {} |\n", escaped.join(" | "))
        };
        let texts = self.texts();
        let rule: Vec<String> =
            (0..self.columns.len()).map(|at| if self.is_of_words(at) { "---".into() } else { "---:".into() }).collect();
        let body: String = texts[1..].iter().map(line).collect();
        line(&texts[0]) + &line(&rule) + &body
    }

    /// For a page: a `<table>`.
    pub fn html(&self) -> String {
        let texts = self.texts();
        let side = |at: usize| if self.is_of_words(at) { "" } else { " class=\"number\"" };
        let line = |row: &Vec<String>, kind: &str| {
            let places = row.iter().enumerate();
            let places = places.map(|(at, text)| format!("<{kind}{}>{}</{kind}>", side(at), encode_text(text)));
            format!("<tr>{}</tr>\n", places.collect::<String>())
        };
        let body: String = texts[1..].iter().map(|row| line(row, "td")).collect();
        format!("<table>\n<thead>{}</thead>\n<tbody>{body}</tbody></table>\n", line(&texts[0], "th"))
    }

    /// With the columns' keys as its first line and numbers in full; a spread is two columns.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(vec![]);
        let spread: Vec<bool> = (0..self.columns.len())
            .map(|at| self.rows.iter().any(|row| matches!(row[at], Entry::Spread(..))))
            .collect();
        let keys =
            self.columns.iter().zip(&spread).flat_map(|(c, two)| {
                std::iter::once(c.key.clone()).chain(two.then(|| format!("{}_half_width", c.key)))
            });
        writer.write_record(keys)?;
        for row in &self.rows {
            let fields = row.iter().zip(&spread).flat_map(|(entry, two)| {
                let (first, second) = match entry {
                    Entry::Text(text) => (text.clone(), String::new()),
                    Entry::Number(x) | Entry::Probability(x) => (x.to_string(), String::new()),
                    Entry::Spread(x, half) => (x.to_string(), half.to_string()),
                    Entry::Count(n) => (n.to_string(), String::new()),
                    Entry::Nothing => (String::new(), String::new()),
                };
                std::iter::once(first).chain(two.then_some(second))
            });
            writer.write_record(fields)?;
        }
        Ok(String::from_utf8(writer.into_inner().context("writing CSV")?)?)
    }

    /// An object per row; a spread is `[value, half width]`.
    pub fn json(&self) -> Value {
        let entry = |entry: &Entry| match entry {
            Entry::Text(text) => json!(text),
            Entry::Number(x) | Entry::Probability(x) => json!(x),
            Entry::Spread(x, half) => json!([x, half]),
            Entry::Count(n) => json!(n),
            Entry::Nothing => Value::Null,
        };
        let row = |row: &Vec<Entry>| {
            let pairs = self.columns.iter().zip(row).map(|(c, e)| (c.key.clone(), entry(e)));
            Value::Object(Map::from_iter(pairs))
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    fn is_of_words(&self, at: usize) -> bool {
        self.rows.iter().any(|row| matches!(row[at], Entry::Text(_)))
    }
}

impl Entry {
    fn text(&self, digits: usize) -> String {
        match self {
            Entry::Text(text) => text.clone(),
            Entry::Number(x) => rounded(*x, digits),
            Entry::Probability(p) => probability(*p, digits),
            Entry::Spread(x, half) => format!("{} ± {}", rounded(*x, digits), rounded(*half, digits)),
            Entry::Count(n) => n.to_string(),
            Entry::Nothing => "-".into(),
        }
    }
}

/// A probability to so many digits; below the last of them `< 0.001`, never zero.
pub fn probability(p: f64, digits: usize) -> String {
    let least = 1.0 / 10f64.powi(digits as i32);
    if p < least { format!("< {least:.digits$}") } else { format!("{p:.digits$}") }
}

/// A number to so many digits; what rounds to zero has no sign.
fn rounded(x: f64, digits: usize) -> String {
    let text = format!("{x:.digits$}");
    match text.strip_prefix('-') {
        Some(zero) if zero.bytes().all(|c| matches!(c, b'0' | b'.')) => zero.into(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_table_in_four_forms() -> Result<()> {
        let mut table = Table::new(vec![column("cell", "cell", 0), column("error", "error %", 2), column("n", "n", 0)]);
        table.rows.push(vec!["ce|x".into(), Entry::Spread(6.789, 0.12), 3usize.into()]);
        table.rows.push(vec!["kd".into(), 5.5.into(), Entry::Nothing]);
        assert_eq!(table.text(), "cell      error %  n\nce|x  6.79 ± 0.12  3\nkd           5.50  -\n");
        assert_eq!(
            table.markdown(),
            "| cell | error % | n |\n| --- | ---: | ---: |\n| ce\\|x | 6.79 ± 0.12 | 3 |\n| kd | 5.50 | - |\n"
        );
        assert_eq!(table.csv()?, "cell,error,error_half_width,n\nce|x,6.789,0.12,3\nkd,5.5,,\n");
        assert_eq!(table.json()[0], json!({ "cell": "ce|x", "error": [6.789, 0.12], "n": 3 }));
        assert_eq!(table.json()[1]["n"], Value::Null);
        Ok(())
    }

    #[test]
    fn what_rounds_to_zero_has_no_sign() {
        assert_eq!(Entry::Spread(-0.004, 0.002).text(2), "0.00 ± 0.00");
        assert_eq!((Entry::Number(-0.4).text(0).as_str(), Entry::Number(-0.006).text(2).as_str()), ("0", "-0.01"));
    }

    #[test]
    fn no_probability_is_zero() {
        let shown = [1e-9, 0.000_999, 0.001, 0.0214, 1.0].map(|p| Entry::Probability(p).text(3));
        assert_eq!(shown, ["< 0.001", "< 0.001", "0.001", "0.021", "1.000"]);
    }

    #[test]
    fn no_line_is_longer_than_a_terminal_s() {
        let mut table = Table::new((0..9).map(|_| column("k", "a heading of some length", 0)).collect());
        table.rows.push((0..9).map(|at| Entry::Text(format!("entry {at}"))).collect());
        let text = table.text();
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(text.matches("entry 0").count(), 4);
        assert!((1..9).all(|at| text.matches(&format!("entry {at}")).count() == 1), "{text}");
    }
}
