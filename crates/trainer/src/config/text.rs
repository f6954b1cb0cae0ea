//! From files and `--set` to one TOML table, and errors that teach.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::nearest;

/// A file's text as a table; an error names file and line.
pub fn document(text: &str, path: &Path) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().and_then(|span| Some(1 + text.get(..span.start)?.matches('\n').count()));
        let line = line.map_or(String::new(), |line| format!(" line {line}:"));
        anyhow!("{} is not TOML:{line} {}", path.display(), e.message())
    })
}

/// Puts `over` on top of `base`; tables are merged, everything else is replaced.
pub fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Puts a setting `a.b.c=v` on top of `table`: v is read as a TOML value, else as a string; a table is merged with what
/// is there.
pub fn apply(table: &mut Table, set: &str) -> Result<()> {
    merge(table, parse_set(set)?);
    Ok(())
}

/// `a.b.c=v` as a table.
pub fn parse_set(text: &str) -> Result<Table> {
    let (path, value) = text.split_once('=').with_context(|| format!("--set \"{text}\": expected a.b=value"))?;
    // A line break would begin another setting, which nobody would see.
    let parsed = format!("x = {value}").parse::<Table>().ok().filter(|t| t.len() == 1).and_then(|mut t| t.remove("x"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.trim().to_string()));
    for key in path.split('.').rev() {
        let key = key.trim();
        ensure!(!key.is_empty(), "--set \"{text}\": an empty name in \"{path}\"");
        value = Value::Table(Table::from_iter([(key.to_string(), value)]));
    }
    match value {
        Value::Table(t) => Ok(t),
        _ => bail!("--set \"{text}\": expected a.b=value"),
    }
}

/// A table as a typed value; an error names the place, and the nearest accepted word.
pub fn typed<T: DeserializeOwned>(table: Table) -> Result<T> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
        let path = e.path().to_string();
        let message = e.inner().message();
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let hint = match quoted.split_first() {
            Some((given, accepted)) if message.starts_with("unknown") => nearest(given, accepted.iter().copied()),
            _ => None,
        };
        let hint = hint.map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default();
        anyhow!("configuration, {path}: {}{hint}", plain(message))
    })
}

/// What was expected, in words instead of Rust's types.
fn plain(message: &str) -> String {
    if let Some(found) = message.strip_prefix("wanted exactly 1 element, ") {
        return format!("{found}, expected exactly one KEY = VALUE");
    }
    let Some((given, expected)) = message.rsplit_once(", expected ") else { return message.into() };
    let expected = match expected {
        "usize" | "u64" => "a whole number of at least 0",
        "u32" => "a whole number from 0 to 4294967295",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "a table of settings",
        other => other,
    };
    format!("{given}, expected {expected}")
}
