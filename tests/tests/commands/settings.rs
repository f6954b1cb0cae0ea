//! The files of all settings, `configs/settings.toml` and `configs/settings-evaluate.toml`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use testkit::program::root;
use toml::{Table, Value};
use trainer::config::{Config, typed};
use trainer::evaluate::{faithfulness, localization, sanity, seeds};

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

/// A file with its settings that have no default, too: the lines `# key = value` and `# [table]`.
fn uncommented(text: &str) -> Result<Table> {
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => {
            rest.to_string()
        }
        _ => line.to_string(),
    };
    Ok(text.lines().map(line).collect::<Vec<_>>().join("\n").parse()?)
}

/// The settings that the error about one that there is not names.
fn accepted<T: DeserializeOwned>(table: &str) -> Result<Vec<String>> {
    let told = typed::<T>(format!("{table}.nonsense = 0").parse()?).err().context("nonsense is a setting")?.to_string();
    let keys: Vec<String> =
        told.split('`').skip(1).step_by(2).filter(|key| *key != "nonsense").map(str::to_string).collect();
    assert!(!keys.is_empty(), "{told}");
    Ok(keys)
}

/// As it stands it is what is used where nothing is given; with what has no default every setting is there, and known.
#[test]
fn every_setting_stands_in_the_reference() -> Result<()> {
    let text = std::fs::read_to_string(root().join("configs/settings.toml"))?;
    assert_eq!(Config::from_table(text.parse()?)?, Config::from_table("student.arch = 'wrn-16-2'".parse()?)?);
    let all = uncommented(&text)?;
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
    let mut known = BTreeSet::new();
    for table in ["data", "teacher", "loss", "train", "optim", "init"] {
        known.extend(accepted::<Config>(table)?.into_iter().map(|key| format!("{table}.{key}")));
    }
    let told =
        Config::from_table("student = { arch = 'wrn-16-2', nonsense = 'x' }".parse()?).err().context("so it is")?;
    let keys = trainer::error::sentence(&told);
    let keys = keys.split_once("accepted: ").context("the student's settings are named")?.1;
    known.extend(keys.split(", ").map(|key| format!("student.{key}")));
    assert!(known.len() > 40, "{known:?}");
    let stands = |path: &String| path.split_once('.').is_some_and(|(table, key)| all[table].get(key).is_some());
    let terms = |path: &String| trainer::distill::terms::NAMES.iter().any(|term| path == &format!("loss.{term}"));
    let missing: Vec<_> = known.iter().filter(|path| !stands(path) && !terms(path)).collect();
    assert!(missing.is_empty(), "configs/settings.toml lacks {missing:?}");
    Ok(())
}

/// The same of `trainer evaluate`, section by section.
#[test]
fn every_setting_of_an_evaluation_stands_in_its_reference() -> Result<()> {
    fn section<T: DeserializeOwned>(all: &Table, given: &Table, name: &str, more: &[&str]) -> Result<T> {
        for table in ["model", name].iter().chain(more) {
            for key in accepted::<T>(table)? {
                assert!(all[*table].get(&key).is_some(), "settings-evaluate.toml lacks {table}.{key}");
            }
        }
        let own = |table: &Table| {
            let sections = ["model", name].into_iter().chain(more.iter().copied());
            Table::from_iter(sections.filter_map(|s| Some((s.to_string(), table.get(s)?.clone()))))
        };
        typed::<T>(own(all))?;
        typed(own(given))
    }
    let text = std::fs::read_to_string(root().join("configs/settings-evaluate.toml"))?;
    let (given, all): (Table, Table) = (text.parse()?, uncommented(&text)?);
    assert_eq!(given.keys().collect::<Vec<_>>(), ["model", "faithfulness", "localization", "sanity", "seeds"]);
    let with = &["published"];
    let found: faithfulness::Settings = section(&all, &given, "faithfulness", with)?;
    assert_eq!(found.faithfulness, faithfulness::Options::default());
    let found: localization::Settings = section(&all, &given, "localization", with)?;
    assert_eq!(found.localization, localization::Options::default());
    let found: sanity::Settings = section(&all, &given, "sanity", &[])?;
    assert_eq!(found.sanity, sanity::Options::default());
    let found: seeds::Seeds = section(&all, &given, "seeds", &[])?;
    assert_eq!(found.seeds, seeds::Comparison::default());
    Ok(())
}
