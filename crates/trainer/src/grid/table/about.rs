//! What is said of a grid beside its runs: what has been published, what is compared with what, what is judged by which
//! images. It stands in the grid's file (`[table]`), which puts it into the grid's folder (`table.toml`), or in a
//! `table.toml` of one's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Table;

use super::choice::Rule;
use super::folders::id;
use crate::config::{document, typed};
use crate::error::nearest;
use crate::files::write_atomically;
use crate::run::JudgedBy;

/// Its file's name.
const FILE: &str = "table.toml";

/// The first line of a file that a grid has put there.
const WRITTEN: &str = "# [table] of the grid's file, written anew by trainer ablate: change it there. Without this line it is left alone.\n";

/// All of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::grid) struct About {
    /// Points within which two cells count as equal.
    pub(super) margin: f64,
    /// `block/cell` and the error that somebody has published for it.
    pub(super) published: BTreeMap<String, f64>,
    /// `block/cell`, or `block` for all its cells, and the cell that it is compared with, where that is not `...-none`: a cell
    /// of its block, or another's `block/cell`.
    pub(super) against: BTreeMap<String, String>,
    /// Blocks that settings are chosen by: their figure is the error of the images held out, and what their runs' reports say
    /// of the test images is not looked at.
    pub(super) held_out: BTreeSet<String>,
    /// Blocks of these that choose a value, and how.
    pub(super) choose: BTreeMap<String, Rule>,
}

impl Default for About {
    fn default() -> Self {
        About {
            margin: 0.2,
            published: BTreeMap::new(),
            against: BTreeMap::new(),
            held_out: BTreeSet::new(),
            choose: BTreeMap::new(),
        }
    }
}

impl About {
    /// Of a grid's folder; nothing is said where it holds no `table.toml`.
    pub(super) fn read(root: &Path) -> Result<About> {
        let path = root.join(FILE);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(About::default()),
            text => {
                let table = document(&text.with_context(|| format!("reading {}", path.display()))?, &path)?;
                let about: About = typed(table).with_context(|| path.display().to_string())?;
                about.check().with_context(|| path.display().to_string())?;
                Ok(about)
            }
        }
    }

    /// The `[table]` of a grid's file, which speaks of cells that the grid has, block by block.
    pub(in crate::grid) fn of_grid(table: &Table, cells: &BTreeMap<String, Vec<String>>) -> Result<About> {
        let about: About = typed(table.clone()).context("[table]")?;
        about.check().context("[table]")?;
        let blocks: Vec<String> = cells.keys().cloned().collect();
        let ids: Vec<String> =
            cells.iter().flat_map(|(block, cells)| cells.iter().map(move |c| id(block, c))).collect();
        let known = |key: &str, name: &str, accepted: &[&[String]]| {
            let mut accepted = accepted.iter().copied().flatten().map(String::as_str);
            if accepted.clone().any(|accepted| accepted == name) {
                return Ok(());
            }
            let hint = nearest(name, &mut accepted).map(|n| format!(" (did you mean \"{n}\"?)"));
            bail!("[table] {key}: the grid has no \"{name}\"{}", hint.unwrap_or_default())
        };
        for (key, named) in
            [("held_out", Vec::from_iter(&about.held_out)), ("choose", Vec::from_iter(about.choose.keys()))]
        {
            named.into_iter().try_for_each(|block| known(key, block, &[&blocks]))?;
        }
        for cell in about.published.keys() {
            known("published", cell, &[&ids])?;
        }
        for (name, other) in &about.against {
            known("against", name, &[&blocks, &ids])?;
            let block = name.split_once('/').map_or(name.as_str(), |(block, _)| block);
            if !cells[block].contains(other) {
                known("against", other, &[&ids])?;
            }
        }
        Ok(about)
    }

    /// Whether a block is judged by the images held out.
    pub(in crate::grid) fn holds_out(&self, block: &str) -> bool {
        self.held_out.contains(block)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.margin > 0.0 && self.margin.is_finite(),
            "margin is {}; it must be a positive number of points",
            self.margin
        );
        for (block, rule) in &self.choose {
            ensure!(
                self.holds_out(block),
                "something is chosen in the block {block}, which is judged by the test images: what is chosen by them looks better \
                 on them than it is. Hold images out (data.validation) and name the block in held_out"
            );
            rule.check().with_context(|| format!("choose.{block}"))?;
        }
        Ok(())
    }
}

/// Puts a grid's `[table]` into its folder; true where somebody's own file lies there, which stays.
pub(in crate::grid) fn put(table: &Table, dir: &Path) -> Result<bool> {
    let path = dir.join(FILE);
    let text = format!("{WRITTEN}{}", toml::to_string(table)?);
    match fs::read(&path) {
        Ok(there) if there == text.as_bytes() => return Ok(false),
        Ok(there) if !there.starts_with(WRITTEN.as_bytes()) => return Ok(!table.is_empty()),
        Ok(_) if table.is_empty() => {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            return Ok(false);
        }
        Ok(_) => {}
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("reading {}", path.display()));
        }
        Err(_) if table.is_empty() => return Ok(false),
        Err(_) => {}
    }
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    write_atomically(&path, text.as_bytes())?;
    Ok(false)
}

/// The folder of the grid that a folder (block, cell, seed) lies in, whose names it has and of which what is said holds; the
/// folder itself where it is in none. And the folder, written out: `.` has nothing above it.
pub(super) fn located(dir: &Path) -> (PathBuf, PathBuf) {
    let root = |dir: &Path| dir.ancestors().take(4).find(|d| d.join(FILE).is_file()).map(Path::to_path_buf);
    // By the names that were given, as a block may be a link to elsewhere; `..` has to be followed.
    let named = std::path::absolute(dir).ok().filter(|d| d.components().all(|part| part != Component::ParentDir));
    let real = || fs::canonicalize(dir).ok();
    let found =
        named.and_then(|dir| Some((root(&dir)?, dir))).or_else(|| real().and_then(|dir| Some((root(&dir)?, dir))));
    found.unwrap_or_else(|| (dir.to_path_buf(), dir.to_path_buf()))
}

/// The images that a run's folder may be judged by: those held out, where the grid that it lies in says so.
pub fn judged_by(run: &Path) -> Result<JudgedBy> {
    let (root, dir) = located(run);
    let held_out = About::read(&root)?.held_out;
    let within = dir.strip_prefix(&root).unwrap_or(&dir);
    // `block/cell/sN`; a block's name may have several parts.
    let of_block = |above: &Path| held_out.contains(above.to_string_lossy().as_ref());
    Ok(if within.ancestors().any(of_block) { JudgedBy::HeldOutImages } else { JudgedBy::TestImages })
}
