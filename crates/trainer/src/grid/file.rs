//! The file of a grid: its format, the seeds and cells that a block means.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::{Table, Value};

use crate::config::{merge, parse_set};

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub profile: Option<String>,
    #[serde(default)]
    pub config: Table,
    #[serde(default)]
    pub profiles: BTreeMap<String, Layer>,
    #[serde(default = "train_seed")]
    pub seed_keys: Vec<String>,
    #[serde(default)]
    pub stages: Vec<Stage>,
    #[serde(default)]
    pub table: Table,
    pub block: Vec<Block>,
}

fn train_seed() -> Vec<String> {
    vec!["train.seed".into()]
}

/// What a profile changes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    #[serde(default)]
    pub config: Table,
    pub seeds: Option<Seeds>,
}

/// A part of the grid in the order of work.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    pub block: String,
    pub seeds: Option<Seeds>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Block {
    pub name: String,
    #[serde(default)]
    pub seeds: Option<Seeds>,
    #[serde(default)]
    pub config: Table,
    #[serde(default)]
    pub axes: Table,
    #[serde(default)]
    pub cell: Vec<Single>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Single {
    pub name: String,
    #[serde(default)]
    pub config: Table,
}

/// `[0, 1, 2]` or `"0..3"`, which is the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of seeds as in [0, 1, 2], or a range as in \"0..3\"")]
pub(super) enum Seeds {
    /// Each by itself.
    List(Vec<u64>),
    /// From the first to the one before the last.
    Range(String),
}

impl Seeds {
    pub(super) fn list(&self) -> Result<Vec<u64>> {
        let seeds = match self {
            Seeds::List(list) => list.clone(),
            Seeds::Range(text) => parse_seeds(text)?,
        };
        let distinct: BTreeSet<_> = seeds.iter().collect();
        ensure!(!seeds.is_empty() && distinct.len() == seeds.len(), "seeds {seeds:?}: at least one, and each once");
        Ok(seeds)
    }
}

/// `A..B`, the seeds from A to B - 1.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>> {
    let ends = text.split_once("..").and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match ends {
        Some((a, b)) if a < b && b - a <= 10_000 => Ok((a..b).collect()),
        Some((a, b)) if a < b => bail!("seeds \"{text}\": that is {} seeds; at most 10,000 are run", b - a),
        _ => bail!("seeds \"{text}\": expected A..B with A below B, as in 0..3 for the seeds 0, 1 and 2"),
    }
}

impl Block {
    /// Names and settings of its cells.
    pub fn cells(&self) -> Result<Vec<(String, Table)>> {
        let mut cells = vec![(String::new(), Table::new())];
        for (axis, values) in &self.axes {
            let values = axis_values(axis, values).with_context(|| format!("block {}", self.name))?;
            ensure!(!values.is_empty(), "block {}: the axis {axis} has no values", self.name);
            let mut product = Vec::new();
            for (name, table) in &cells {
                for (value, over) in &values {
                    let mut table = table.clone();
                    merge(&mut table, over.clone());
                    product.push((if name.is_empty() { value.clone() } else { format!("{name}-{value}") }, table));
                }
            }
            cells = product;
        }
        if self.axes.is_empty() {
            cells.clear();
        }
        cells.extend(self.cell.iter().map(|c| (c.name.clone(), c.config.clone())));
        ensure!(!cells.is_empty(), "block {} has neither axes nor cells", self.name);
        for name in cells.iter().map(|(name, _)| name).chain([&self.name]) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.=+-".contains(c);
            ensure!(
                !name.is_empty() && name.chars().all(plain) && !name.starts_with('.'),
                "\"{name}\" is no name for a folder: letters, digits and _ . = + - are, with no dot in front"
            );
        }
        let distinct: BTreeSet<_> = cells.iter().map(|(name, _)| name).collect();
        ensure!(distinct.len() == cells.len(), "block {}: two cells have the same name", self.name);
        Ok(cells)
    }
}

/// The values of an axis, by name.
fn axis_values(axis: &str, values: &Value) -> Result<Vec<(String, Table)>> {
    match values {
        Value::Array(list) => {
            let last = axis.rsplit('.').next().unwrap_or(axis);
            let value = |value: &Value| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                Ok((format!("{last}={text}"), parse_set(&format!("{axis}={value}"))?))
            };
            list.iter().map(value).collect()
        }
        Value::Table(named) => {
            let value = |(name, value): (&String, &Value)| {
                let table = value.as_table().with_context(|| {
                    format!("axis {axis}, {name} = {value}: expected a table of configuration keys")
                })?;
                Ok((name.clone(), table.clone()))
            };
            named.iter().map(value).collect()
        }
        other => {
            bail!("axis {axis} = {other}: expected a list of values of that key, or named tables of configuration keys")
        }
    }
}
