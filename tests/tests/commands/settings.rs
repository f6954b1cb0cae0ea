//! The file of all settings, `configs/settings.toml`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use testkit::program::root;
use toml::{Table, Value};
use trainer::config::{Config, typed};

/// The paths of all values, `data.name`.
fn paths(table: &Table, above: &str, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = format!("{above}{key}");
        match value {
            Value::Table(inner) => paths(inner, &format!("{path}."), found),
            _ => drop(found.insert(path)),
        }
    }
}

/// As it stands it is what is used where nothing is given; with what has no default every setting is there, and known.
#[test]
fn every_setting_stands_in_the_reference() -> Result<()> {
    let text = std::fs::read_to_string(root().join("configs/settings.toml"))?;
    assert_eq!(Config::from_table(text.parse()?)?, Config::from_table("student.arch = 'wrn-16-2'".parse()?)?);
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => {
            rest.to_string()
        }
        _ => line.to_string(),
    };
    let all: Table = text.lines().map(uncomment).collect::<Vec<_>>().join("\n").parse()?;
    let config: Config = typed(all.clone())?;
    let (mut given, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&all, "", &mut given);
    paths(&Table::try_from(&config)?, "", &mut known);
    // What `trainer list` shows.
    let listed = |path: &String| {
        let terms = trainer::distill::terms::NAMES;
        let inner = path.strip_prefix("loss.").and_then(|rest| rest.split_once('.'));
        path.starts_with("interpreter.")
            || inner.is_some_and(|(table, _)| ["weights", "schedule"].contains(&table) || terms.contains(&table))
    };
    let missing: Vec<_> = known.difference(&given).filter(|path| !listed(path)).collect();
    assert!(missing.is_empty(), "configs/settings.toml lacks {missing:?}");
    // A setting without a default is known by the error that names all of a table's.
    for table in ["data", "teacher"] {
        let asked = format!("{table}.nonsense = 0").parse()?;
        let told = typed::<Config>(asked).err().context("nonsense is a setting")?.to_string();
        let accepted: Vec<&str> = told.split('`').skip(1).step_by(2).filter(|key| *key != "nonsense").collect();
        assert!(accepted.len() > 4, "{told}");
        for key in accepted {
            assert!(all[table].get(key).is_some(), "configs/settings.toml lacks {table}.{key}: {told}");
        }
    }
    Ok(())
}
