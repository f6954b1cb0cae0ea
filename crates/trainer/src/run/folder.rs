//! The run's folder: whose it is, and what may be written there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::{Inputs, State};
use super::{COMMIT, Options, Report};
use crate::config::{Config, LrSchedule, document, typed};
use crate::error::Diverged;
use crate::files::write_atomically;

/// What is left of a run that diverged: `diverged.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Divergence {
    /// The step at which it happened.
    pub step: usize,
    /// The terms of the loss at that step.
    #[serde(default)]
    pub terms: Vec<(String, f64)>,
    /// What happened.
    pub what: String,
    /// The commit of the program.
    pub commit: String,
    /// Hashes of what the run read.
    pub inputs: Inputs,
}

/// Refuses a folder that holds a run of another configuration, or one that is not to be resumed.
pub fn check_config(config: &Config, dir: &Path, resume: bool) -> Result<()> {
    let saved = dir.join("config.toml");
    if !saved.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&saved).with_context(|| format!("reading {}", saved.display()))?;
    // By way of a table, as every configuration is read: another way would compile all of its types once more.
    let old: Result<Config> = document(&text, &saved).and_then(typed);
    let old = old.with_context(|| format!("{} is damaged", saved.display()))?;
    let same = comparable(&old, config) == comparable(config, config);
    ensure!(
        resume,
        "{} already holds {}, or choose another folder with --run",
        dir.display(),
        if same {
            "this run: go on with --resume"
        } else {
            "a different run (settings given with --set do not change the folder's name): go on with its own settings and --resume"
        }
    );
    let longer = !same
        && old.train.epochs < config.train.epochs
        && comparable(&with_epochs_of(&old, config), config) == comparable(config, config);
    ensure!(
        !longer || measures_the_last(&old, config),
        "{} holds a run of {} epochs, whose best may be the last of them. A longer one with train.evaluate_every = {} does not measure \
         that epoch: choose another folder with --run",
        dir.display(),
        old.train.epochs,
        config.train.evaluate_every
    );
    ensure!(
        !longer,
        "{} holds a run of {} epochs. With optim.schedule = \"{}\" more of them change the rate of those that are done; there are two \
         ways on: a new run from its weights (--set student.checkpoint={} --run NEW), or a schedule that does not depend on the \
         length (constant, multi_step), whose runs can be made longer",
        dir.display(),
        old.train.epochs,
        toml::Value::try_from(config.optim.schedule)?.as_str().unwrap_or_default(),
        dir.join("last.safetensors").display()
    );
    ensure!(
        same,
        "{} holds a run with another configuration ({}): choose another folder with --run",
        dir.display(),
        difference(&old, config)?
    );
    Ok(())
}

fn with_epochs_of(old: &Config, new: &Config) -> Config {
    let mut old = old.clone();
    old.train.epochs = new.train.epochs;
    old
}

/// What this run has come to already, if it has: its report, or the divergence that ended it. What it read then must be
/// what it would read now.
pub fn outcome(config: &Config, inputs: &Inputs, dir: &Path) -> Result<Option<Report>> {
    if let Some(old) = read::<Divergence>(&dir.join("diverged.json"))? {
        check_inputs(&old.inputs, inputs, dir)?;
        bail!(Diverged { step: old.step, terms: old.terms, what: old.what });
    }
    let report = read::<Report>(&dir.join("report.json"))?;
    if let Some(report) = &report {
        check_inputs(&report.inputs, inputs, dir)?;
    }
    // A run that is to be made longer has a report, but not its own. The folder may have been moved.
    let own = report.filter(|r| r.epochs == config.train.epochs);
    Ok(own.map(|r| Report { run: dir.to_path_buf(), ..r }))
}

pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
}

/// The saved state of this run, if there is one to go on from.
pub fn state(inputs: &Inputs, options: &Options) -> Result<Option<State>> {
    let path = options.run.join("state.safetensors");
    if !options.resume || !path.exists() {
        return Ok(None);
    }
    let state = State::load(&path)?;
    check_inputs(&state.inputs, inputs, &options.run)?;
    Ok(Some(state))
}

/// Refuses to take a result, or to go on, where something that the run reads is not what it was.
fn check_inputs(old: &Inputs, new: &Inputs, dir: &Path) -> Result<()> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let Some(what) = names.into_iter().find(|name| old.get(*name) != new.get(*name)) else { return Ok(()) };
    let dir = dir.display();
    Err(match (old.get(what), new.get(what)) {
        (None, _) => anyhow!(
            "the run in {dir} was not made with a known {what} (by an older version, perhaps): it cannot be told whether it is this \
             run; choose another folder with --run"
        ),
        (Some(a), b) => anyhow!(
            "the {what} is not what the run in {dir} has been using (sha256 {} there, {} here): choose another folder with --run",
            &a[..a.len().min(12)],
            b.map_or("none", |b| &b[..b.len().min(12)])
        ),
    })
}

/// Makes the folder ready and writes the resolved configuration; called when everything else has been checked, so that
/// a run that cannot start leaves nothing behind.
pub fn create(config: &Config, dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.flatten() {
        // What a killed process was writing; the folder is ours alone.
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".partial") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    write_atomically(&dir.join("config.toml"), config.to_toml()?.as_bytes())
}

/// Keeps a divergence, so that the run's end is known.
pub fn diverged(error: &Diverged, inputs: &Inputs, dir: &Path) -> Result<()> {
    let kept = Divergence {
        step: error.step,
        // JSON has no word for what is not finite.
        terms: error.terms.iter().filter(|(_, value)| value.is_finite()).cloned().collect(),
        what: error.what.clone(),
        commit: COMMIT.into(),
        inputs: inputs.clone(),
    };
    write_atomically(&dir.join("diverged.json"), &serde_json::to_vec_pretty(&kept)?)
}

/// What of a configuration must be the same for `new` to go on with it: names of files are not (their contents are
/// compared), nor what is written how often, nor a smaller number of epochs where neither the rate of those that are done
/// nor the choice of the best of them depends on it.
fn comparable(config: &Config, new: &Config) -> Config {
    let mut c = config.identity();
    c.student.checkpoint = c.student.checkpoint.map(|_| PathBuf::new());
    if let Some(t) = &mut c.teacher {
        t.checkpoint = PathBuf::new();
    }
    c.train.log_every = 0;
    let (schedule, warmup) = (new.optim.schedule, config.optim.warmup <= config.train.epochs as f64);
    let free =
        matches!(schedule, LrSchedule::Constant | LrSchedule::MultiStep) && warmup && measures_the_last(config, new);
    if free && c.train.epochs < new.train.epochs {
        c.train.epochs = new.train.epochs;
    }
    c
}

/// Whether `new` measures the last epoch of `old`, which `old` did whatever its `evaluate_every`; asked where the best epoch is chosen.
fn measures_the_last(old: &Config, new: &Config) -> bool {
    old.data.validation == 0 || new.train.measures(old.train.epochs - 1)
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
    let (a, b) = (serde_json::to_value(comparable(old, new))?, serde_json::to_value(comparable(new, new))?);
    Ok(first(&a, &b, "").unwrap_or_default())
}
