//! Every number of a configuration against its range, in one place.

use anyhow::{Result, bail};
use cams::methods::Methods;
use cams::ranges::{Range, Ranges};
use serde::Serialize;
use toml::Value;

use super::{Config, Data, Loss, Optim, Teacher, Train};

/// The ranges by section.
const SECTIONS: [(&str, Ranges); 5] = [
    ("data", Data::RANGES),
    ("teacher", Teacher::RANGES),
    ("loss", Loss::RANGES),
    ("train", Train::RANGES),
    ("optim", Optim::RANGES),
];

/// The range of the number at `path`, if it states one.
fn range(path: &str) -> Option<Range> {
    let methods = Methods::RANGES.iter().map(|(method, ranges)| (format!("interpreter.{method}"), *ranges));
    let tables = Loss::TABLES.iter().map(|(term, ranges)| (format!("loss.{term}"), *ranges));
    let sections = SECTIONS.iter().map(|(section, ranges)| (section.to_string(), *ranges)).chain(methods).chain(tables);
    for (section, ranges) in sections {
        let Some(rest) = path.strip_prefix(&section).and_then(|rest| rest.strip_prefix('.')) else { continue };
        // A field, or what stands in it: an element of a list, the end of a schedule.
        let found = ranges
            .iter()
            .find(|(field, _)| rest == *field || rest.strip_prefix(field).is_some_and(|more| more.starts_with('.')));
        if let Some((_, range)) = found {
            return Some(*range);
        }
    }
    None
}

/// Refuses a number outside its range.
pub fn numbers(config: &Config) -> Result<()> {
    walk(&Value::try_from(config)?, "", &mut in_range)
}

fn in_range(path: &str, value: f64) -> Result<()> {
    match range(path) {
        Some(range) if !range.holds(value) => bail!("{path} is {}; it must be {range}", shown(value)),
        _ => Ok(()),
    }
}

/// A number without hundreds of digits.
fn shown(value: f64) -> String {
    let plain = value == 0.0 || !value.is_finite() || (1e-6..1e21).contains(&value.abs());
    if plain { value.to_string() } else { format!("{value:e}") }
}

/// The same of a table whose ranges are given: `[faithfulness]`, say.
pub fn table(name: &str, settings: &impl Serialize, ranges: Ranges) -> Result<()> {
    walk(&Value::try_from(settings)?, name, &mut |path, value| {
        let field = path.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).unwrap_or(path);
        match ranges.iter().find(|(known, _)| *known == field) {
            Some((_, range)) if !range.holds(value) => bail!("{path} is {}; it must be {range}", shown(value)),
            _ => Ok(()),
        }
    })
}

/// The same of the methods alone.
pub fn methods(methods: &Methods) -> Result<()> {
    walk(&Value::try_from(methods)?, "interpreter", &mut in_range)
}

/// Visits every number.
fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&str, f64) -> Result<()>) -> Result<()> {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Table(table) => table.iter().try_for_each(|(key, value)| walk(value, &below(key), visit)),
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(i, value)| walk(value, &below(&i.to_string()), visit))
        }
        Value::Integer(n) => visit(path, *n as f64),
        Value::Float(x) => visit(path, *x),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever adds a number says what it may be.
    #[test]
    fn every_number_states_its_range() -> Result<()> {
        let text = "student.arch = 'resnet8'\ndata.size = 32\ndata.resize = 40\noptim.drops = [3]\nteacher.checkpoint = 'x'\n\
                    loss.schedule = { ce = { ramp = 1.0 }, kd = { cut_off = 2.0 }, explanation = { ramp = 1.0 }, attention = { ramp = 1.0 } }\n\
                    loss.weights.kd = 1.0";
        let config = Config::from_table(text.parse()?)?;
        let mut seen = 0;
        walk(&Value::try_from(&config)?, "", &mut |path, _| {
            seen += 1;
            assert!(range(path).is_some(), "{path} states no range beside its default");
            Ok(())
        })?;
        assert!(seen > 50, "{seen}");
        Ok(())
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        for set in [
            "interpreter.rise.masks = 9000000000000000000",
            "interpreter.mask.iterations = 4294967296",
            "interpreter.mask.lr = nan",
            "interpreter.mask.lr = 0.0",
            "interpreter.rise.tolerance = -1.0",
            "interpreter.rise.memory_mb = 0.0",
            "interpreter.shap_cam.memory_mb = inf",
            "interpreter.shap_cam.tolerance = nan",
            "interpreter.ablation_cam.memory_mb = -5.0",
            "train.epochs = 1000000000000",
            "train.max_minutes = nan",
            "loss.temperature = 0.01",
            "loss.temperature = 1e7",
            "loss.weights.ce = -1.0",
            "loss.schedule.ce.ramp = nan",
            "optim.lr = 0.0",
            "optim.drops = [0]",
            "data.augment.pad = 100000",
        ] {
            let key = set.split(" =").next().unwrap_or_default();
            let error = format!("student.arch = 'resnet8'\n{set}").parse().map_err(anyhow::Error::from);
            let error = format!("{:#}", error.and_then(Config::from_table).unwrap_err());
            assert!(error.contains(key) && error.contains("it must be"), "{set}: {error}");
        }
    }
}
