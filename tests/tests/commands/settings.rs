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
    let mut accepted = BTreeSet::new();
    for table in ["data", "teacher", "loss", "train", "optim", "init"] {
        let told = typed::<Config>(format!("{table}.nonsense = 0").parse()?).err().context("nonsense is a setting")?;
        let told = told.to_string();
        let keys: Vec<&str> = told.split('`').skip(1).step_by(2).filter(|key| *key != "nonsense").collect();
        assert!(!keys.is_empty(), "{told}");
        accepted.extend(keys.into_iter().map(|key| format!("{table}.{key}")));
    }
    let told =
        Config::from_table("student = { arch = 'wrn-16-2', nonsense = 'x' }".parse()?).err().context("so it is")?;
    let keys = trainer::error::sentence(&told);
    let keys = keys.split_once("accepted: ").context("the student's settings are named")?.1;
    accepted.extend(keys.split(", ").map(|key| format!("student.{key}")));
    assert!(accepted.len() > 40, "{accepted:?}");
    let stands = |path: &String| path.split_once('.').is_some_and(|(table, key)| all[table].get(key).is_some());
    let terms = |path: &String| trainer::distill::terms::NAMES.iter().any(|term| path == &format!("loss.{term}"));
    let missing: Vec<_> = accepted.iter().filter(|path| !stands(path) && !terms(path)).collect();
    assert!(missing.is_empty(), "configs/settings.toml lacks {missing:?}");
    Ok(())
}
