//! A grid of runs: cells made of axes, every cell an ordinary run for every seed.
//!
//! ```toml
//! profile = "fast"                       # of every run, where --profile names no other
//! config = { data = { name = "cifar10" }, student = { arch = "wrn-16-2" } }   # what all runs share
//!
//! [profiles.fast]                        # on top of it in that profile
//! config = { train = { epochs = 60 } }
//!
//! [[block]]
//! name = "published"
//! seeds = [0, 1, 2]                      # or "0..3"
//! [block.axes.loss]                      # an axis of named tables; every combination of the axes is a cell: "ce", "kd"
//! ce = { loss = { weights = { ce = 1.0, kd = 0.0 } } }
//! kd = { loss = { weights = { ce = 0.1, kd = 0.9 } } }
//! [block.axes]                           # or of a key's values: "ce-lr=0.1", ...
//! "optim.lr" = [0.1, 0.2]
//! [[block.cell]]                         # or a cell by itself
//! name = "attention"
//! config = { loss = { weights = { attention = 1000.0 } } }
//!
//! [[stages]]                             # what is run, in this order; without any, every block in its own
//! block = "published"
//! seeds = [0]                            # instead of the block's
//!
//! [table]                                # what `trainer table` is told, put into the grid's folder as table.toml
//! published = { "published/ce" = 6.78 }
//! ```

pub mod cost;
mod file;
pub mod ledger;
pub mod page;
mod progress;
pub mod runner;
pub mod slurm;
pub mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
pub use file::parse_seeds;
use file::{Block, File, Stage};
use table::about::{self, About};
use toml::{Table, Value};

use crate::config::{Config, apply, document, merge, parse_set, profiles, typed};
use crate::error::{nearest, unknown};

/// One run of the grid.
#[derive(Clone, Debug)]
pub struct GridRun {
    /// Name of its block.
    pub block: String,
    /// Its cell's name, the same for every seed.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// Its configuration as given.
    pub table: Table,
}

impl GridRun {
    /// `block/name/sN`: its folder in the grid's, and what it is called in the ledger.
    pub fn id(&self) -> String {
        format!("{}/{}/s{}", self.block, self.name, self.seed)
    }

    /// `block/name`: the same for every seed.
    pub fn cell(&self) -> String {
        format!("{}/{}", self.block, self.name)
    }

    /// Its configuration, checked.
    pub fn config(&self) -> Result<Config> {
        Config::from_table(self.table.clone())
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Another profile than the file's.
    pub profile: Option<String>,
    /// Other seeds than the file's.
    pub seeds: Option<Vec<u64>>,
    /// These blocks only.
    pub blocks: Vec<String>,
    /// These runs only, by their ids (`block/name/sN`).
    pub runs: Vec<String>,
    /// Settings on top of every cell.
    pub set: Vec<String>,
}

/// A grid's runs in the order of work.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The file's name without its ending.
    pub name: String,
    /// The profile of all runs.
    pub profile: String,
    /// Every run.
    pub runs: Vec<GridRun>,
    /// What `trainer table` is told of them.
    pub about: Table,
}

impl Grid {
    /// Reads a file.
    pub fn read(path: &Path, selection: &Selection) -> Result<Grid> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading the grid {}", path.display()))?;
        let name = path.file_stem().map_or("grid".into(), |s| s.to_string_lossy().into_owned());
        Grid::from_table(document(&text, path)?, name, selection)
            .with_context(|| format!("the grid {}", path.display()))
    }

    fn from_table(table: Table, name: String, selection: &Selection) -> Result<Grid> {
        let file: File = typed(table)?;
        let profile = selection.profile.clone().or(file.profile.clone()).unwrap_or_else(|| profiles::DEFAULT.into());
        // One of the grid's own says which of the program's it begins with.
        let begins = |name: &str| file.profiles.get(name).is_some_and(|layer| holds(&layer.config, "train.profile"));
        for name in file.profiles.keys().chain([&profile]) {
            if !profiles::NAMES.contains(&name.as_str()) && !begins(name) {
                return Err(unknown("profile", name, &profiles::NAMES));
            }
        }
        let layer = file.profiles.get(&profile).cloned().unwrap_or_default();
        sections(&file.config, "config")?;
        sections(&layer.config, &format!("profiles.{profile}"))?;
        for set in &selection.set {
            sections(&parse_set(set)?, "--set")?;
        }
        let mut base = file.config.clone();
        apply(&mut base, &format!("train.profile=\"{profile}\""))?;
        merge(&mut base, layer.config.clone());
        let names: Vec<&str> = file.block.iter().map(|b| b.name.as_str()).collect();
        for wanted in selection.blocks.iter().chain(file.stages.iter().map(|s| &s.block)) {
            if !names.contains(&wanted.as_str()) {
                return Err(unknown("block", wanted, &names));
            }
        }
        let distinct: BTreeSet<_> = names.iter().collect();
        ensure!(distinct.len() == names.len(), "two blocks have the same name: {}", names.join(", "));
        let cells =
            |block: &Block| Ok((block.name.clone(), block.cells()?.into_iter().map(|(name, _)| name).collect()));
        let about = About::of_grid(&file.table, &file.block.iter().map(cells).collect::<Result<_>>()?)?;
        for key in &file.seed_keys {
            // Runs of one cell differ in their seeds alone, or no table could put them together.
            ensure!(key.ends_with(".seed"), "seed_keys: \"{key}\" is no seed: expected keys like \"train.seed\"");
            let set = selection.set.iter().find(|set| set.split_once('=').is_some_and(|(k, _)| k.trim() == key));
            ensure!(set.is_none(), "--set {key}: the grid gives every run its seed; choose them with --seeds A..B");
        }
        let everything = || file.block.iter().map(|b| Stage { block: b.name.clone(), seeds: None }).collect();
        let stages = if file.stages.is_empty() { everything() } else { file.stages.clone() };
        let (mut runs, mut seen) = (Vec::new(), BTreeSet::new());
        for stage in stages.iter().filter(|s| selection.blocks.is_empty() || selection.blocks.contains(&s.block)) {
            for block in file.block.iter().filter(|b| b.name == stage.block) {
                let given = stage.seeds.as_ref().or(layer.seeds.as_ref()).or(block.seeds.as_ref());
                let seeds = match (&selection.seeds, given) {
                    (Some(seeds), _) => seeds.clone(),
                    (None, Some(seeds)) => seeds.list()?,
                    (None, None) => vec![0],
                };
                sections(&block.config, &format!("block {}", block.name))?;
                for seed in seeds {
                    for (cell, over) in block.cells()? {
                        let mut table = base.clone();
                        merge(&mut table, block.config.clone());
                        merge(&mut table, over);
                        if let Some(key) = file.seed_keys.iter().find(|key| holds(&table, key)) {
                            bail!(
                                "{}/{cell} sets {key}, which the grid gives every run: say seeds = [...] of the block, or --seeds A..B",
                                block.name
                            );
                        }
                        for set in &selection.set {
                            apply(&mut table, set)?;
                        }
                        ensure!(
                            !about.holds_out(&block.name) || number(&table, "data.validation").is_some_and(|n| n > 0),
                            "[table] held_out: {}/{cell} holds no images out (data.validation)",
                            block.name
                        );
                        for key in &file.seed_keys {
                            if has_room(&table, key) {
                                apply(&mut table, &format!("{key}={seed}"))?;
                            }
                        }
                        let run = GridRun { block: block.name.clone(), name: cell, seed, table };
                        if seen.insert(run.id()) {
                            runs.push(run);
                        }
                    }
                }
            }
        }
        if !selection.runs.is_empty() {
            let ids: Vec<String> = runs.iter().map(GridRun::id).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            ensure!(!ids.is_empty(), "there are no cells in it");
            if let Some(wanted) = selection.runs.iter().find(|run| !ids.contains(&run.as_str())) {
                let hint = nearest(wanted, ids.iter().copied()).map(|id| format!(" (did you mean \"{id}\"?)"));
                bail!(
                    "there is no run \"{wanted}\"{}: expected block/cell/sN, as in \"{}\"",
                    hint.unwrap_or_default(),
                    ids[0]
                );
            }
            runs.retain(|run| selection.runs.contains(&run.id()));
        }
        ensure!(!runs.is_empty(), "there are no cells in it");
        Ok(Grid { name, profile, runs, about: file.table })
    }

    /// Puts what is said of the runs into the grid's folder; true where a `table.toml` of somebody's own lies there, which stays.
    pub fn put_about(&self, dir: &Path) -> Result<bool> {
        about::put(&self.about, dir)
    }

    /// The default folder.
    pub fn folder(&self) -> PathBuf {
        Path::new("runs").join(if self.profile == profiles::DEFAULT {
            self.name.clone()
        } else {
            format!("{}-{}", self.name, self.profile)
        })
    }
}

/// Refuses a section that is no table: whatever is put on top of it would make one of it, and nobody would see what is gone.
fn sections(config: &Table, whose: &str) -> Result<()> {
    match config.iter().find(|(_, section)| !section.is_table()) {
        Some((section, value)) => bail!("{whose}: {section} = {value}, expected a table of settings"),
        None => Ok(()),
    }
}

/// What a configuration says of `a.b`.
fn get<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    let mut keys = key.split('.');
    let first = keys.next().and_then(|first| table.get(first));
    keys.fold(first, |value, key| value?.get(key))
}

fn holds(table: &Table, key: &str) -> bool {
    get(table, key).is_some()
}

fn number(table: &Table, key: &str) -> Option<i64> {
    get(table, key).and_then(Value::as_integer)
}

/// Whether all that `a.b.c` lies in is a table, or not there yet: elsewhere a cell's mistake stays to be seen.
fn has_room(table: &Table, key: &str) -> bool {
    let above = key.match_indices('.').map(|(at, _)| &key[..at]);
    above.into_iter().all(|above| get(table, above).is_none_or(Value::is_table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str, selection: &Selection) -> Result<Grid> {
        Grid::from_table(text.parse()?, "g".into(), selection)
    }

    const TEXT: &str = "
        config = { student = { arch = 'resnet8' }, train = { batch = 7 } }
        stages = [{ block = 'b', seeds = '0..2' }, { block = 'a' }, { block = 'b' }]
        [profiles.fast.config.train]
        epochs = 60
        [[block]]
        name = 'a'
        seeds = [4]
        [[block.cell]]
        name = 'only'
        config = { optim = { lr = 0.5 } }
        [[block]]
        name = 'b'
        seeds = [0, 1, 2]
        [block.axes]
        loss.ce = { loss = { label_smoothing = 0.1 } }
        loss.none = {}
        'train.batch' = [8, 16]
    ";

    #[test]
    fn axes_make_cells_in_the_order_of_the_stages() -> Result<()> {
        let grid = grid(TEXT, &Selection::default())?;
        let ids: Vec<_> = grid.runs.iter().map(GridRun::id).collect();
        let of =
            |seed| ["ce-batch=8", "ce-batch=16", "none-batch=8", "none-batch=16"].map(|c| format!("b/{c}/s{seed}"));
        let expected: Vec<String> =
            of(0).into_iter().chain(of(1)).chain(["a/only/s4".to_string()]).chain(of(2)).collect();
        assert_eq!(ids, expected);
        let config = grid.runs[1].config()?;
        assert_eq!((config.train.batch, config.train.epochs, config.train.seed), (16, 60, 0));
        assert_eq!((config.loss.label_smoothing, config.optim.lr), (0.1, 0.2));
        assert_eq!(grid.runs[8].config()?.train.seed, 4);
        Ok(())
    }

    #[test]
    fn the_command_line_chooses() -> Result<()> {
        let selection = Selection {
            profile: Some("smoke".into()),
            seeds: Some(vec![9]),
            runs: vec![],
            blocks: vec!["a".into()],
            set: vec!["optim.lr=0.25".into()],
        };
        let grid = grid(TEXT, &selection)?;
        assert_eq!(grid.runs.iter().map(GridRun::id).collect::<Vec<_>>(), ["a/only/s9"]);
        let config = grid.runs[0].config()?;
        assert_eq!((config.train.epochs, config.optim.lr, config.data.limit), (2, 0.25, 512));
        assert_eq!(grid.folder(), Path::new("runs/g-smoke"));
        Ok(())
    }

    /// A cell's mistake is the cell's, whatever stands in the place of a table; a profile of one's own begins with another.
    #[test]
    fn a_mistake_is_the_cells_and_a_profile_may_be_new() -> Result<()> {
        let text = "profile = 'mine'
            profiles.mine.config.train = { profile = 'smoke', batch = 4 }
            [[block]]
            name = 'a'
            [[block.cell]]
            name = 'flat'
            config = { train = 3 }
            [[block.cell]]
            name = 'good'
            config = { student = { arch = 'resnet8' } }";
        let grid = grid(text, &Selection::default())?;
        assert!(format!("{:#}", grid.runs[0].config().unwrap_err()).contains("train: invalid type: integer `3`"));
        assert_eq!((grid.runs[1].config()?.train.epochs, grid.runs[1].config()?.train.batch), (2, 4));
        Ok(())
    }

    #[test]
    fn bad_grids_are_refused_with_what_would_do() {
        for (text, part) in [
            ("block = []", "no cells"),
            ("blocks = []", "unknown field `blocks`"),
            ("[[block]]\nname = 'a'", "neither axes nor cells"),
            ("[[block]]\nname = 'a'\nseeds = '3..1'\n[[block.cell]]\nname = 'x'", "as in 0..3"),
            ("[[block]]\nname = 'a'\nseeds = [1, 1]\n[[block.cell]]\nname = 'x'", "each once"),
            ("[[block]]\nname = 'a'\n[[block.cell]]\nname = '../x'", "no name for a folder"),
            ("[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'\n[[block.cell]]\nname = 'x'", "the same name"),
            ("[[block]]\nname = 'a'\naxes = { x = 1 }", "expected a list of values"),
            ("[[block]]\nname = 'a'\naxes = { x = { y = 1 } }", "expected a table of configuration keys"),
            (
                "[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "two blocks have the same name",
            ),
            (
                "seed_keys = ['data.limit']\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "\"data.limit\" is no seed",
            ),
            ("[[block]]\nname = 'a'\naxes = { 'train.seed' = [1, 2] }", "a/seed=1 sets train.seed"),
            ("config.train.seed = 3\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "a/x sets train.seed"),
            ("profiles.smok = {}\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "did you mean \"smoke\""),
            ("[[block]]\nname = 'a'\nseeds = 3\n[[block.cell]]\nname = 'x'", "a list of seeds as in [0, 1, 2]"),
            (
                "profile = 'mine'\nprofiles.mine.config.train.epochs = 2\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "unknown profile \"mine\"",
            ),
            (
                "config.train = 3\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "config: train = 3, expected a table",
            ),
            (
                "table.choose.a = {}\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "the block a, which is judged by the test images",
            ),
            (
                "table = { held_out = ['a'], choose.a.within = -1.0 }\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "choose.a: within must be a number of at least 0",
            ),
            ("table.held_out = ['a']\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "a/x holds no images out"),
            ("table.margin = 0.0\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "[table]: margin is 0"),
            ("table.held_out = ['b']\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "the grid has no \"b\""),
            (
                "table.published = { 'a/y' = 1.0 }\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'",
                "no \"a/y\" (did you mean \"a/x\"?)",
            ),
            ("table.against = { a = 'y' }\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "the grid has no \"y\""),
            ("stages = [{ block = 'c' }]\n[[block]]\nname = 'a'\n[[block.cell]]\nname = 'x'", "unknown block \"c\""),
        ] {
            let error = format!("{:#}", grid(text, &Selection::default()).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
