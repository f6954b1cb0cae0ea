//! The run's folder: whose it is, and what may be written there.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Options, Report};
use crate::checkpoint::write_atomically;
use crate::config::Config;

/// Refuses a folder that holds another run; the report of this run if it is finished already.
pub fn check(config: &Config, options: &Options) -> Result<Option<Report>> {
    let dir = &options.run;
    let saved = dir.join("config.toml");
    if !saved.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&saved).with_context(|| format!("reading {}", saved.display()))?;
    let old: Config = toml::from_str(&text).with_context(|| format!("{} is damaged", saved.display()))?;
    let same = old.identity() == config.identity();
    ensure!(
        options.resume,
        "{} already holds {} run: go on with --resume, or choose another folder with --run",
        dir.display(),
        if same { "this" } else { "a different" }
    );
    ensure!(
        same,
        "{} holds a run with another configuration ({}): choose another folder with --run",
        dir.display(),
        difference(&old, config)?
    );
    let report = dir.join("report.json");
    if !report.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
    Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged", report.display()))?))
}

/// Makes the folder and writes the resolved configuration; called when everything else has been checked, so that
/// a run that cannot start leaves nothing behind.
pub fn create(config: &Config, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    write_atomically(&dir.join("config.toml"), config.to_toml()?.as_bytes())
}

/// The first key in which two configurations differ.
fn difference(old: &Config, new: &Config) -> Result<String> {
    fn first(a: &Value, b: &Value, path: &str) -> Option<String> {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let keys: BTreeSet<_> = x.keys().chain(y.keys()).collect();
                keys.into_iter().find_map(|k| {
                    first(x.get(k).unwrap_or(&Value::Null), y.get(k).unwrap_or(&Value::Null), &format!("{path}.{k}"))
                })
            }
            _ if a != b => Some(format!("{}: {a} there, {b} here", path.trim_start_matches('.'))),
            _ => None,
        }
    }
    let (a, b) = (serde_json::to_value(old.identity())?, serde_json::to_value(new.identity())?);
    Ok(first(&a, &b, "").unwrap_or_default())
}
