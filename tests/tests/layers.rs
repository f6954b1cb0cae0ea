//! The design is a direction: inside a crate no folder calls one that calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;
use testkit::program::root;

/// What each top-level module of a crate names of the others, tests left out.
fn uses(source: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    fn add(path: &Path, module: &str, all: &mut BTreeMap<String, BTreeSet<String>>) -> Result<()> {
        if path.is_dir() {
            return fs::read_dir(path)?.try_for_each(|entry| add(&entry?.path(), module, all));
        }
        let text = if path.extension().is_some_and(|e| e == "rs") { fs::read_to_string(path)? } else { String::new() };
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for named in code.split("crate::").skip(1) {
            let name: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name != module {
                all.entry(module.into()).or_default().insert(name);
            }
        }
        Ok(())
    }
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let module = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        if !["lib", "main"].contains(&module.as_str()) {
            all.entry(module.clone()).or_default();
            add(&path, &module, &mut all)?;
        }
    }
    let modules: BTreeSet<String> = all.keys().cloned().collect();
    all.values_mut().for_each(|named| named.retain(|name| modules.contains(name)));
    Ok(all)
}

/// Removes, again and again, what calls nothing that is left; what remains calls itself in a circle.
fn circle(mut uses: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    while let Some(bottom) = uses.iter().find(|(_, named)| named.is_empty()).map(|(name, _)| name.clone()) {
        uses.remove(&bottom);
        uses.values_mut().for_each(|named| {
            named.remove(&bottom);
        });
    }
    uses.into_keys().collect()
}

#[test]
fn nothing_calls_what_calls_it() -> Result<()> {
    for name in ["trainer", "kernels", "cams"] {
        let uses = uses(&root().join("crates").join(name).join("src"))?;
        assert!(uses.len() > 5, "{name}: {uses:?}");
        if name == "trainer" {
            assert!(uses["run"].contains("distill") && !uses["distill"].contains("run"), "{uses:?}");
            assert!(uses.values().all(|named| !named.contains("cli")), "the library knows the program");
        }
        let circle = circle(uses);
        assert!(circle.is_empty(), "{name}: {}", circle.join(", "));
    }
    Ok(())
}
