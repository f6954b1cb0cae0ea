//! A run's configuration: layered TOML files and `--set a.b=v`, later wins; a profile fills what is left.

mod check;
pub mod profiles;
mod sections;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cams::methods::Methods;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{self, unknown};
pub use check::{methods as check_methods, table as check_table};
pub use sections::{BnGamma, Dtype, InitConfig, Student, Teacher, Train, Trained};
pub use text::{apply, document, merge, parse_set, typed};

pub use crate::data::Data;
use crate::distill::Objective;
pub use crate::distill::optimizers::{self, Optim};
pub use crate::distill::schedule::LrSchedule;
pub use crate::distill::terms::{Class, Control, Distance, Loss, MapGradient, WeightSchedule, Weights};

/// What a run does. Written out in full into the run's folder, it repeats the run alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Images.
    #[serde(default)]
    pub data: Data,
    /// The model that is trained.
    #[serde(default)]
    pub student: Student,
    /// The model it learns from; without one the student is trained by its labels alone.
    pub teacher: Option<Teacher>,
    /// Terms of the loss.
    #[serde(default)]
    pub loss: Loss,
    /// Hyper-parameters of the interpreters.
    #[serde(default)]
    pub interpreter: Methods,
    /// Length and seed.
    #[serde(default)]
    pub train: Train,
    /// Optimiser.
    #[serde(default)]
    pub optim: Optim,
    /// Initial weights.
    #[serde(default)]
    pub init: InitConfig,
}

/// Files and settings as one table, later ones on top.
pub fn table(files: &[PathBuf], sets: &[String]) -> Result<Table> {
    let mut table = Table::new();
    for file in files {
        let content =
            fs::read_to_string(file).with_context(|| format!("reading the configuration {}", file.display()))?;
        text::merge(&mut table, document(&content, file)?);
    }
    sets.iter().try_for_each(|set| text::apply(&mut table, set))?;
    Ok(table)
}

impl Config {
    /// Reads and merges files and settings.
    pub fn read(files: &[PathBuf], sets: &[String]) -> Result<Config> {
        Config::from_table(table(files, sets)?)
    }

    /// Fills a profile's and the loss's defaults and checks everything that can be checked without data.
    pub fn from_table(given: Table) -> Result<Config> {
        Config::settled(given).context(error::Config)
    }

    fn settled(given: Table) -> Result<Config> {
        let path = |table: &str, key: &str| given.get(table).and_then(|t| t.get(key)).cloned();
        let profile = match path("train", "profile") {
            None => profiles::DEFAULT.to_string(),
            Some(name) => {
                name.as_str().with_context(|| format!("train.profile is {name}: expected a name"))?.to_string()
            }
        };
        let mut table = profiles::defaults(&profile)?;
        text::merge(&mut table, given.clone());
        if let Some(Value::Table(student)) = table.get("student") {
            Student::check_keys(student)?;
        }
        let mut config: Config = text::typed(table)?;
        config
            .interpreter
            .settle_in_loss(&|method, field| path("interpreter", method).is_some_and(|m| m.get(field).is_some()));
        // A rate that rises by itself has no warm-up of its own.
        let optim = &mut config.optim;
        if optim.schedule == LrSchedule::OneCycle {
            let asked = path("optim", "warmup").and_then(|w| w.as_float().or(w.as_integer().map(|i| i as f64)));
            ensure!(
                asked.unwrap_or(0.0) == 0.0,
                "optim.warmup is {}, but optim.schedule = \"one_cycle\" rises over the first 30 % of the run by itself: leave \
                 optim.warmup out, or use \"linear\" or \"cosine\"",
                asked.unwrap_or(0.0)
            );
            optim.warmup = 0.0;
        }
        config.student.settle()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (t, l) = (&self.train, &self.loss);
        check::numbers(self)?;
        if self.interpreter.get(&l.interpreter).is_none() {
            return Err(unknown("interpreter", &l.interpreter, Methods::NAMES));
        }
        optimizers::entry(&self.optim.name)?;
        let objective = Objective::new(l, &self.interpreter)?;
        ensure!(
            !objective.needs_teacher() || self.teacher.is_some(),
            "loss.weights: terms other than ce need a [teacher] with a checkpoint"
        );
        ensure!(
            self.teacher.is_none() || l.label_smoothing == 0.0,
            "loss.label_smoothing hurts soft targets and maps: set it to 0 when there is a [teacher]"
        );
        ensure!(
            self.teacher.as_ref().is_none_or(|t| t.arch.is_none() || t.layers.is_none()),
            "[teacher] has arch and layers: one of them, and none where its checkpoint says what it is"
        );
        let (arch, layers) = (self.student.arch.is_some(), self.student.layers.is_some());
        ensure!(
            !self.student.new_head || self.student.checkpoint.is_some(),
            "student.new_head = true puts a new classifier on trained weights: say which with student.checkpoint"
        );
        ensure!(
            arch != layers || (!arch && self.student.checkpoint.is_some()),
            "[student] needs either arch (as in \"wrn-16-2\") or [[student.layers]]"
        );
        let idle = objective.first_idle_step(1, t.epochs);
        ensure!(
            idle.is_none(),
            "no term of the loss has a weight at the start of epoch {}: see loss.weights and loss.schedule",
            idle.unwrap_or(0) + 1
        );
        ensure!(
            l.layer == "last" || !l.distance.compares_all_classes(),
            "loss.layer is \"{}\", but loss.distance = \"{}\" compares CAMs, which exist at \"last\" only",
            l.layer,
            l.distance
        );
        Ok(())
    }

    /// The terms of its loss.
    pub fn objective(&self) -> Result<Objective> {
        Objective::new(&self.loss, &self.interpreter)
    }

    /// Whether any term asks a teacher.
    pub fn distils(&self) -> bool {
        self.objective().is_ok_and(|o| o.needs_teacher())
    }

    /// The run without what does not change its result: the paths, and where the data lies.
    pub fn identity(&self) -> Config {
        let mut c = self.clone();
        c.data.dir = None;
        c.train.max_minutes = 0.0;
        c.train.save_every = 0;
        // Held-out images choose `best.safetensors`, so there it matters which epochs are measured.
        if c.data.validation == 0 {
            c.train.evaluate_every = Train::default().evaluate_every;
        }
        c.student.checkpoint = c.student.checkpoint.map(file_name);
        if let Some(t) = &mut c.teacher {
            t.checkpoint = file_name(std::mem::take(&mut t.checkpoint));
            t.cache = None;
            t.cache_limit_mb = 0;
        }
        c
    }

    /// As TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("writing the configuration as TOML")
    }
}

fn file_name(path: PathBuf) -> PathBuf {
    path.file_name().map_or_else(|| path.clone(), PathBuf::from)
}

/// A run's default folder: `runs/<name of the last configuration>-s<seed>`.
pub fn default_run(files: &[PathBuf], seed: u64) -> PathBuf {
    let name = files.last().and_then(|f| f.file_stem()).map_or("run".into(), |s| s.to_string_lossy().into_owned());
    Path::new("runs").join(format!("{name}-s{seed}"))
}
