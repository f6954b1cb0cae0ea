//! A run's configuration: layered TOML files and `--set a.b=v`, later wins; a profile fills what is left.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Methods;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::augment::Augment;
use crate::data::{Images, Source, Split};
use crate::error::{nearest, unknown};
use crate::models::{Layer, Shortcut};

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

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// A data set of `trainer list datasets`.
    pub name: String,
    /// Its folder; `data/<name>` if not given.
    pub dir: Option<PathBuf>,
    /// What a view of an image is.
    pub augment: Augment,
    /// Different views of an image; 0 for a new one each epoch.
    pub views: u64,
    /// Training images held out to choose `best.safetensors`; 0 for none.
    pub validation: usize,
    /// Use only the first images of the training set (in its order); 0 for all.
    pub limit: usize,
    /// Seed of the views and of the held-out images, shared by all runs that are to see the same ones.
    pub seed: u64,
    /// Height and width for `planted` and `folder`.
    pub size: Option<usize>,
}

impl Default for Data {
    fn default() -> Self {
        let augment = Augment::default();
        Data { name: "cifar10-mini".into(), dir: None, augment, views: 0, validation: 0, limit: 0, seed: 0, size: None }
    }
}

impl Data {
    /// As the data module names it.
    pub fn source(&self) -> Source {
        Source { name: self.name.clone(), dir: self.dir.clone(), size: self.size, seed: self.seed }
    }

    /// Training images, images for the curve (validation, or the test set), and whether those are held out.
    pub fn load(&self) -> Result<(Images, Images, bool)> {
        let all = self.source().load(Split::Train)?;
        let mut positions: Vec<usize> = (0..all.len()).collect();
        let mut held_out = Vec::new();
        if self.validation > 0 {
            use rand::seq::SliceRandom;
            ensure!(
                self.validation < all.len(),
                "data.validation is {}, but there are only {} training images",
                self.validation,
                all.len()
            );
            positions.shuffle(&mut crate::random::stream(self.seed, crate::random::Purpose::Split, 0));
            held_out = positions.split_off(all.len() - self.validation);
            positions.sort_unstable();
            held_out.sort_unstable();
        }
        if self.limit > 0 && self.limit < positions.len() {
            // Evenly spread, so that a set sorted by class keeps all of them.
            positions = (0..self.limit).map(|i| positions[i * positions.len() / self.limit]).collect();
        }
        let train = all.select(&positions);
        if self.validation > 0 {
            return Ok((train, all.select(&held_out), true));
        }
        Ok((train, self.source().load(Split::Test)?, false))
    }
}

/// `[student]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Student {
    /// An architecture of `trainer list models`.
    pub arch: Option<String>,
    /// One's own layers instead.
    pub layers: Option<Vec<Layer>>,
    /// Start from these weights.
    pub checkpoint: Option<PathBuf>,
    /// What a WRN's 1x1 shortcut reads.
    pub shortcut: Shortcut,
}

impl Default for Student {
    fn default() -> Self {
        Student { arch: None, layers: None, checkpoint: None, shortcut: Shortcut::Preact }
    }
}

/// `[teacher]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Its weights.
    pub checkpoint: PathBuf,
    /// Its architecture, if the checkpoint does not name it.
    pub arch: Option<String>,
    /// A folder where its signals are kept and shared by runs with the same teacher and views.
    pub cache: Option<PathBuf>,
}

/// How the student's and the teacher's maps are compared; the formulas are those of [`crate::loss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Sum over positions of the squared difference (Grad-CAM++, eq. 27).
    #[default]
    RawL2,
    /// Mean squared difference of the maps divided by their norm (attention transfer).
    AtL2,
    /// One minus the cosine (e2KD).
    Cosine,
    /// Squared difference of every class's CAM, pooled to 2x2 (CAT-KD); does not use the interpreter.
    AllClassPooled,
}

/// Which class is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The label.
    #[default]
    Label,
    /// The teacher's most probable class.
    TeacherTop1,
}

/// What stands in for the teacher's map, to see whether the explanation matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Nothing: the teacher's own map.
    #[default]
    None,
    /// The teacher's channels weighted at random, fixed for each image.
    Random,
    /// The map of the next image of the batch.
    Shuffled,
}

/// A value for each term.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Cross-entropy.
    pub ce: f64,
    /// Knowledge distillation.
    pub kd: f64,
    /// Explanation matching.
    pub explanation: f64,
    /// Attention transfer.
    pub attention: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { ce: 1.0, kd: 0.0, explanation: 0.0, attention: 0.0 }
    }
}

/// How a weight changes over the epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightSchedule {
    /// Not at all.
    #[default]
    Constant,
    /// From 0, linearly, to the full weight at this epoch.
    Ramp(f64),
    /// Full weight before this epoch, 0 from then on.
    CutOff(f64),
}

impl WeightSchedule {
    /// Factor at a point in time, in epochs from 0.
    pub fn factor(self, epoch: f64) -> f64 {
        match self {
            WeightSchedule::Constant => 1.0,
            WeightSchedule::Ramp(end) => (epoch / end.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0),
            WeightSchedule::CutOff(end) => f64::from(epoch < end),
        }
    }
}

/// `[loss.schedule]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedules {
    /// Cross-entropy.
    pub ce: WeightSchedule,
    /// Knowledge distillation.
    pub kd: WeightSchedule,
    /// Explanation matching.
    pub explanation: WeightSchedule,
    /// Attention transfer.
    pub attention: WeightSchedule,
}

/// `[loss]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Weights of the terms.
    pub weights: Weights,
    /// How they change.
    pub schedule: Schedules,
    /// Softening of both outputs in the KD term.
    pub temperature: f64,
    /// Method of the maps.
    pub interpreter: String,
    /// How maps are compared.
    pub distance: Distance,
    /// Class explained.
    pub class: Class,
    /// Layer explained.
    pub layer: String,
    /// ReLU on both maps before the distance.
    pub relu: bool,
    /// Control experiment.
    pub control: Control,
    /// Label smoothing of the cross-entropy.
    pub label_smoothing: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Loss {
            weights: Weights::default(),
            schedule: Schedules::default(),
            temperature: 4.0,
            interpreter: "grad_cam".into(),
            distance: Distance::RawL2,
            class: Class::Label,
            layer: "last".into(),
            relu: true,
            control: Control::None,
            label_smoothing: 0.0,
        }
    }
}

/// How long and how faithful a run is. Tables never mix profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The attention-transfer recipe: 200 epochs.
    Paper,
    /// 24 epochs with a triangular learning rate.
    #[default]
    Fast,
    /// Seconds, to see that everything works.
    Smoke,
}

impl Profile {
    /// Its word in files.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Paper => "paper",
            Profile::Fast => "fast",
            Profile::Smoke => "smoke",
        }
    }

    /// The keys it fills where they are not given.
    fn defaults(self) -> &'static str {
        match self {
            Profile::Paper => {
                "data.augment = { pad = 4, padding = 'reflect', flip = true }
                 train = { epochs = 200, batch = 128 }
                 optim = { lr = 0.1, schedule = 'multi_step', drops = [60, 120, 160], drop_factor = 0.2, warmup = 0.0, momentum = 0.9, nesterov = false, weight_decay = 5e-4, reset_momentum_at_drops = true }
                 init = { bn_gamma = 'uniform' }"
            }
            Profile::Fast => {
                "data.augment = { pad = 4, padding = 'reflect', flip = true }
                 train = { epochs = 24, batch = 128 }
                 optim = { lr = 0.2, schedule = 'linear', warmup = 2.0, momentum = 0.9, nesterov = true, weight_decay = 5e-4 }"
            }
            Profile::Smoke => {
                "data = { limit = 512, augment = { pad = 4, padding = 'reflect', flip = true } }
                 train = { epochs = 2, batch = 32 }
                 optim = { lr = 0.05, schedule = 'linear', warmup = 0.5, momentum = 0.9, nesterov = true, weight_decay = 5e-4 }"
            }
        }
    }
}

/// What a step computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Double precision: slow, for checks.
    F64,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Fills the keys that are not given.
    pub profile: Profile,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch: usize,
    /// Fixes initial weights and order.
    pub seed: u64,
    /// Precision.
    pub dtype: Precision,
    /// Stop (and save) after this long; 0 for no limit.
    pub max_minutes: f64,
    /// Steps between two logged steps.
    pub log_every: usize,
    /// Steps between two saved states, besides every epoch's end; 0 for none.
    pub save_every: usize,
    /// Largest norm of a gradient; 0 for no limit.
    pub clip: f64,
    /// Decay of the moving average of the weights; 0 for none.
    pub ema: f64,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            profile: Profile::Fast,
            epochs: 24,
            batch: 128,
            seed: 0,
            dtype: Precision::F32,
            max_minutes: 0.0,
            log_every: 50,
            save_every: 100,
            clip: 0.0,
            ema: 0.0,
        }
    }
}

/// How the learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Up during the warm-up, then linearly to 0.
    #[default]
    Linear,
    /// Times `drop_factor` at the start of each epoch in `drops` (counted from 1).
    MultiStep,
    /// Up during the warm-up, then half a cosine to 0.
    Cosine,
    /// From 1/25 of `lr` up during the first 30 %, then half a cosine to 0 (Smith & Topin 2017).
    OneCycle,
    /// The same throughout.
    Constant,
}

/// `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Highest learning rate.
    pub lr: f64,
    /// How it changes.
    pub schedule: LrSchedule,
    /// Epochs of linear warm-up.
    pub warmup: f64,
    /// Epochs (from 1) at whose start `multi_step` drops.
    pub drops: Vec<usize>,
    /// Factor of a drop.
    pub drop_factor: f64,
    /// Momentum.
    pub momentum: f64,
    /// Nesterov's variant.
    pub nesterov: bool,
    /// On every parameter, BatchNorm's and biases too.
    pub weight_decay: f64,
    /// Forget the momentum at each drop, as the attention-transfer code does.
    pub reset_momentum_at_drops: bool,
}

impl Default for Optim {
    fn default() -> Self {
        Optim {
            lr: 0.2,
            schedule: LrSchedule::Linear,
            warmup: 0.0,
            drops: vec![],
            drop_factor: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            reset_momentum_at_drops: false,
        }
    }
}

/// How BatchNorm's gamma starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BnGamma {
    /// Ones.
    #[default]
    Ones,
    /// Uniform in [0, 1), as in the attention-transfer code.
    Uniform,
}

/// `[init]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// BatchNorm's gamma.
    pub bn_gamma: BnGamma,
}

/// Puts `over` on top of `base`; tables are merged, everything else is replaced.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// `a.b.c=v` as a table; v is read as a TOML value, else as a string.
pub fn parse_set(text: &str) -> Result<Table> {
    let (path, value) = text.split_once('=').with_context(|| format!("--set \"{text}\": expected a.b=value"))?;
    let parsed = format!("x = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("x"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.trim().to_string()));
    for key in path.split('.').rev() {
        let key = key.trim();
        ensure!(!key.is_empty(), "--set \"{text}\": an empty name in \"{path}\"");
        value = Value::Table(Table::from_iter([(key.to_string(), value)]));
    }
    match value {
        Value::Table(t) => Ok(t),
        _ => bail!("--set \"{text}\": expected a.b=value"),
    }
}

/// Adds "did you mean" to serde's list of accepted names.
pub fn explain(error: &toml::de::Error) -> String {
    let message = error.message().to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((given, accepted)) if message.starts_with("unknown") => {
            let hint = nearest(given, accepted.iter().copied()).map(|n| format!(" (did you mean `{n}`?)"));
            format!("{message}{}", hint.unwrap_or_default())
        }
        _ => message,
    }
}

impl Config {
    /// Reads and merges files and settings.
    pub fn read(files: &[PathBuf], sets: &[String]) -> Result<Config> {
        let mut table = Table::new();
        for file in files {
            let text =
                fs::read_to_string(file).with_context(|| format!("reading the configuration {}", file.display()))?;
            let over = text.parse::<Table>().with_context(|| format!("{} is not TOML", file.display()))?;
            merge(&mut table, over);
        }
        for set in sets {
            merge(&mut table, parse_set(set)?);
        }
        Config::from_table(table)
    }

    /// Fills a profile's and the loss's defaults and checks everything that can be checked without data.
    pub fn from_table(given: Table) -> Result<Config> {
        #[derive(Deserialize)]
        struct Named {
            #[serde(default)]
            profile: Profile,
        }
        let train = given.get("train").cloned().unwrap_or_else(|| Value::Table(Table::new()));
        let profile =
            train.try_into::<Named>().map_err(|e| anyhow::anyhow!("configuration: [train]: {}", explain(&e)))?.profile;
        let mut table = profile.defaults().parse::<Table>()?;
        merge(&mut table, given.clone());
        let deserialised = toml::from_str::<Config>(&toml::to_string(&table)?);
        let mut config =
            deserialised.map_err(|e| anyhow::anyhow!("configuration: {}{}", place(&given, &e), explain(&e)))?;
        // Inside a loss a map is wanted at every step: Score-CAM's masks then act on the features.
        let space = given.get("interpreter").and_then(|i| i.get("score_cam")).and_then(|s| s.get("space"));
        if space.is_none() {
            config.interpreter.score_cam.space = cams::methods::Space::Features;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (t, o, l) = (&self.train, &self.optim, &self.loss);
        ensure!(t.epochs >= 1 && t.batch >= 1, "train.epochs and train.batch must be at least 1");
        ensure!(o.lr > 0.0 && o.lr.is_finite(), "optim.lr is {}; it must be positive", o.lr);
        ensure!((0.0..1.0).contains(&o.momentum), "optim.momentum is {}; it must lie in [0, 1)", o.momentum);
        ensure!(
            o.warmup >= 0.0 && o.weight_decay >= 0.0 && t.clip >= 0.0,
            "optim.warmup, optim.weight_decay and train.clip cannot be negative"
        );
        ensure!((0.0..1.0).contains(&t.ema), "train.ema is {}; it must lie in [0, 1)", t.ema);
        ensure!(
            (0.0..1.0).contains(&l.label_smoothing),
            "loss.label_smoothing is {}; it must lie in [0, 1)",
            l.label_smoothing
        );
        ensure!(l.temperature > 0.0, "loss.temperature is {}; it must be positive", l.temperature);
        if self.interpreter.get(&l.interpreter).is_none() {
            return Err(unknown("interpreter", &l.interpreter, Methods::NAMES));
        }
        let w = &l.weights;
        ensure!(
            [w.ce, w.kd, w.explanation, w.attention].iter().all(|w| w.is_finite() && *w >= 0.0),
            "the weights of loss.weights must be numbers of at least 0"
        );
        let distils = w.kd > 0.0 || w.explanation > 0.0 || w.attention > 0.0;
        ensure!(
            !distils || self.teacher.is_some(),
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
        if w.explanation > 0.0 {
            ensure!(
                l.layer == "last",
                "loss.layer is \"{}\": maps can be matched at \"last\" only, where their closed forms hold",
                l.layer
            );
        }
        Ok(())
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

/// The table in which an unknown key stands, if it can be found among the given ones.
fn place(given: &Table, error: &toml::de::Error) -> String {
    fn find(table: &Table, key: &str, path: &str) -> Option<String> {
        if table.contains_key(key) && !path.is_empty() {
            return Some(format!("[{path}]: "));
        }
        table.iter().find_map(|(k, v)| {
            let inner = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
            v.as_table().and_then(|t| find(t, key, &inner))
        })
    }
    let Some(key) = error.message().strip_prefix("unknown field `").and_then(|m| m.split('`').next()) else {
        return String::new();
    };
    find(given, key, "").unwrap_or_default()
}

/// A run's default folder: `runs/<name of the last configuration>-s<seed>`.
pub fn default_run(files: &[PathBuf], seed: u64) -> PathBuf {
    let name = files.last().and_then(|f| f.file_stem()).map_or("run".into(), |s| s.to_string_lossy().into_owned());
    Path::new("runs").join(format!("{name}-s{seed}"))
}
