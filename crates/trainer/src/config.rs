//! A run's configuration: layered TOML files and `--set a.b=v`, later wins; a profile fills what is left.

mod check;
mod loss;
mod sections;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cams::Differentiable;
use cams::methods::{Computation, Fill, Methods};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::error::unknown;
pub use check::methods as check_methods;
pub use loss::{Class, Control, Distance, Loss, MapGradient, Schedules, WeightSchedule, Weights};
pub use sections::{BnGamma, Data, InitConfig, LrSchedule, Optim, Precision, Profile, Student, Teacher, Train};
pub use text::{merge, parse_set, typed};

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
        let over = content.parse::<Table>().with_context(|| format!("{} is not TOML", file.display()))?;
        text::merge(&mut table, over);
    }
    for set in sets {
        text::merge(&mut table, parse_set(set)?);
    }
    Ok(table)
}

impl Config {
    /// Reads and merges files and settings.
    pub fn read(files: &[PathBuf], sets: &[String]) -> Result<Config> {
        Config::from_table(table(files, sets)?)
    }

    /// Fills a profile's and the loss's defaults and checks everything that can be checked without data.
    pub fn from_table(given: Table) -> Result<Config> {
        #[derive(Deserialize)]
        struct Named {
            #[serde(default)]
            train: ProfileOnly,
        }
        #[derive(Default, Deserialize)]
        struct ProfileOnly {
            #[serde(default)]
            profile: Profile,
        }
        let mut table = text::typed::<Named>(given.clone())?.train.profile.defaults().parse::<Table>()?;
        text::merge(&mut table, given.clone());
        let mut config: Config = text::typed(table)?;
        // Inside a loss a map is wanted at every step: Score-CAM's masks then act on the features.
        let space = given.get("interpreter").and_then(|i| i.get("score_cam")).and_then(|s| s.get("space"));
        if space.is_none() {
            config.interpreter.score_cam.space = cams::methods::Space::Features;
        }
        // A rate that rises by itself has no warm-up of its own.
        let optim = &mut config.optim;
        if optim.schedule == LrSchedule::OneCycle {
            let asked = given
                .get("optim")
                .and_then(|o| o.get("warmup"))
                .and_then(|w| w.as_float().or(w.as_integer().map(|i| i as f64)));
            ensure!(
                asked.unwrap_or(0.0) == 0.0,
                "optim.warmup is {}, but optim.schedule = \"one_cycle\" rises over the first 30 % of the run by itself: leave \
                 optim.warmup out, or use \"linear\" or \"cosine\"",
                asked.unwrap_or(0.0)
            );
            optim.warmup = 0.0;
        }
        // And teacher and student must be explained by one rule: not by the one that suits each image best.
        let shap = &mut config.interpreter.shap_cam;
        if shap.estimator == Computation::Auto && shap.score != cams::Score::Logit {
            shap.estimator = Computation::Det2;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (t, l) = (&self.train, &self.loss);
        check::numbers(self)?;
        let Some(method) = self.interpreter.get(&l.interpreter) else {
            return Err(unknown("interpreter", &l.interpreter, Methods::NAMES));
        };
        let w = &l.weights;
        let matched = w.explanation > 0.0 && l.distance != Distance::AllClassPooled;
        if let (true, Differentiable::Not(_)) = (matched, method.differentiable()) {
            bail!("loss.interpreter = \"{}\" cannot be matched: {}", l.interpreter, method.differentiable().sentence());
        }
        ensure!(
            !self.distils() || self.teacher.is_some(),
            "loss.weights.kd, explanation and attention need a [teacher] with a checkpoint"
        );
        ensure!(
            self.teacher.is_none() || l.label_smoothing == 0.0,
            "loss.label_smoothing hurts soft targets and maps: set it to 0 when there is a [teacher]"
        );
        let (arch, layers) = (self.student.arch.is_some(), self.student.layers.is_some());
        ensure!(
            arch != layers || (!arch && self.student.checkpoint.is_some()),
            "[student] needs either arch (as in \"wrn-16-2\") or [[student.layers]]"
        );
        let idle = l.first_idle_step(1, t.epochs);
        ensure!(
            idle.is_none(),
            "no term of the loss has a weight at the start of epoch {}: see loss.weights and loss.schedule",
            idle.unwrap_or(0) + 1
        );
        ensure!(
            !(l.control == Control::Random && l.distance == Distance::AllClassPooled),
            "loss.control = \"random\" makes one map an image, loss.distance = \"all_class_pooled\" compares one a class: \
             use another distance, or control = \"shuffled\""
        );
        ensure!(
            l.layer == "last" || l.distance != Distance::AllClassPooled,
            "loss.layer is \"{}\", but loss.distance = \"all_class_pooled\" compares CAMs, which exist at \"last\" only",
            l.layer
        );
        ensure!(
            !matched || l.layer == "last" || !method.needs_linear_head(),
            "loss.interpreter = \"{}\" at loss.layer = \"{}\" is not defined: it needs average pooling and a linear layer behind \
             the layer; use \"last\", or grad_cam",
            l.interpreter,
            l.layer
        );
        let shap = &self.interpreter.shap_cam;
        ensure!(
            !matched || l.interpreter != "shap_cam" || l.layer == "last",
            "loss.interpreter = \"shap_cam\" at loss.layer = \"{}\" would have to be sampled, and a sampled map cannot be matched: use \
             \"last\"",
            l.layer
        );
        ensure!(
            !matched || l.interpreter != "shap_cam" || shap.fill != Fill::DatasetMean,
            "interpreter.shap_cam.fill = \"dataset_mean\" cannot be matched: a student in training has no mean activations; use channel_mean"
        );
        ensure!(
            !matched || l.layer == "last" || l.gradient == MapGradient::StopGrad || method.is_of_gradients(),
            "loss.interpreter = \"{}\" at loss.layer = \"{}\" is differentiable with constant channel weights only: say so with \
             loss.gradient = \"stop_grad\"",
            l.interpreter,
            l.layer
        );
        Ok(())
    }

    /// Whether any term asks a teacher.
    pub fn distils(&self) -> bool {
        let w = &self.loss.weights;
        w.kd > 0.0 || w.explanation > 0.0 || w.attention > 0.0
    }

    /// The run without what does not change its result: the paths, and where the data lies.
    pub fn identity(&self) -> Config {
        let mut c = self.clone();
        c.data.dir = None;
        c.train.max_minutes = 0.0;
        c.train.save_every = 0;
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
