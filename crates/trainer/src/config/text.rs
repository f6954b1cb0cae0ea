//! From files and `--set` to one TOML table, and errors that teach.

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use crate::error::nearest;

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

/// `a.b.c=v` as a table; v is read as a TOML value, else as a string.
pub fn parse_set(text: &str) -> Result<Table> {
    let (path, value) = text.split_once('=').with_context(|| format!("--set \"{text}\": expected a.b=value"))?;
    let parsed = format!("x = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("x"));
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

/// Adds "did you mean" to serde's list of accepted names.
pub fn explain(error: &toml::de::Error) -> String {
    let message = error.message().to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((given, accepted)) if message.starts_with("unknown") => {
            let hint = nearest(given, accepted.iter().copied()).map(|n| format!(" (did you mean `{n}`?)"));
            format!("{message}{}", hint.unwrap_or_default())
        }
        _ => message,
    }
}

/// The table in which an unknown key stands, if it can be found among the given ones.
pub fn place(given: &Table, error: &toml::de::Error) -> String {
    fn find(table: &Table, key: &str, path: &str) -> Option<String> {
        if table.contains_key(key) && !path.is_empty() {
            return Some(format!("[{path}]: "));
        }
        table.iter().find_map(|(k, v)| {
            let inner = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
            v.as_table().and_then(|t| find(t, key, &inner))
        })
    }
    let Some(key) = error.message().strip_prefix("unknown field `").and_then(|m| m.split('`').next()) else {
        return String::new();
    };
    find(given, key, "").unwrap_or_default()
}
