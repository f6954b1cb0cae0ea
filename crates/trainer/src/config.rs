//! A run's configuration: layered TOML files and `--set a.b=v`, later wins; a profile fills what is left.

mod loss;
mod sections;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cams::Differentiable;
use cams::methods::{Computation, Fill, Methods};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::fetch::sha256;
use crate::error::unknown;
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
        // And teacher and student must be explained by one rule: not by the one that suits each image best.
        let shap = &mut config.interpreter.shap_cam;
        if shap.estimator == Computation::Auto && shap.score != cams::Score::Logit {
            shap.estimator = Computation::Det2;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (t, o, l) = (&self.train, &self.optim, &self.loss);
        ensure!(t.epochs >= 1 && t.batch >= 1, "train.epochs and train.batch must be at least 1");
        ensure!(o.lr > 0.0 && o.lr.is_finite(), "optim.lr is {}; it must be positive", o.lr);
        ensure!((0.0..1.0).contains(&o.momentum), "optim.momentum is {}; it must lie in [0, 1)", o.momentum);
        for (name, value) in
            [("optim.warmup", o.warmup), ("optim.weight_decay", o.weight_decay), ("train.clip", t.clip)]
        {
            ensure!(
                value >= 0.0 && value.is_finite(),
                "{name} is {value}; it must be a finite number and not negative"
            );
        }
        ensure!((0.0..1.0).contains(&t.ema), "train.ema is {}; it must lie in [0, 1)", t.ema);
        ensure!(
            (0.0..1.0).contains(&l.label_smoothing),
            "loss.label_smoothing is {}; it must lie in [0, 1)",
            l.label_smoothing
        );
        let temperature = l.temperature;
        ensure!(
            temperature > 0.0 && temperature.is_finite(),
            "loss.temperature is {temperature}; it must be positive and finite"
        );
        let Some(method) = self.interpreter.get(&l.interpreter) else {
            return Err(unknown("interpreter", &l.interpreter, Methods::NAMES));
        };
        let w = &l.weights;
        let matched = w.explanation > 0.0 && l.distance != Distance::AllClassPooled;
        if let (true, Differentiable::Not(_)) = (matched, method.differentiable()) {
            bail!("loss.interpreter = \"{}\" cannot be matched: {}", l.interpreter, method.differentiable().sentence());
        }
        ensure!(
            [w.ce, w.kd, w.explanation, w.attention].iter().all(|w| w.is_finite() && *w >= 0.0),
            "the weights of loss.weights must be numbers of at least 0"
        );
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
        for epoch in 0..t.epochs {
            let s = &l.schedule;
            let factors = [(w.ce, s.ce), (w.kd, s.kd), (w.explanation, s.explanation), (w.attention, s.attention)];
            ensure!(
                factors.iter().any(|(weight, s)| weight * s.factor(epoch as f64) > 0.0),
                "no term of the loss has a weight at the start of epoch {}: see loss.weights and loss.schedule",
                epoch + 1
            );
        }
        ensure!(
            !(l.control == Control::Random && l.distance == Distance::AllClassPooled),
            "loss.control = \"random\" makes one map an image, loss.distance = \"all_class_pooled\" compares one a class: \
             use another distance, or control = \"shuffled\""
        );
        ensure!(
            self.data.size.is_none_or(|s| (16..=1024).contains(&s)),
            "data.size is {}; it must lie between 16 and 1024",
            self.data.size.unwrap_or(0)
        );
        ensure!(
            o.drop_factor > 0.0 && o.drop_factor <= 1.0 && !o.drops.contains(&0),
            "optim.drop_factor must lie in (0, 1], and optim.drops counts epochs from 1"
        );
        ensure!(
            l.layer == "last" || l.distance != Distance::AllClassPooled,
            "loss.layer is \"{}\", but loss.distance = \"all_class_pooled\" compares CAMs, which exist at \"last\" only",
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

/// Settings that do not change a run's result, or are in its folder's name anyway.
const NOT_IN_NAMES: [&str; 7] = [
    "train.seed",
    "train.max_minutes",
    "train.save_every",
    "train.log_every",
    "teacher.cache",
    "teacher.cache_limit_mb",
    "data.dir",
];

/// A run's default folder: `runs/<name of the last configuration>-s<seed>`, with the settings that say something else than the files
/// in between, so that a sweep does not meet itself.
pub fn default_run(files: &[PathBuf], sets: &[String], seed: u64) -> Result<PathBuf> {
    let mut name = files.last().and_then(|f| f.file_stem()).map_or("run".into(), |s| s.to_string_lossy().into_owned());
    let before = Value::Table(table(files, &[])?);
    let mut settings = text::Settings::default();
    sets.iter().try_for_each(|set| settings.add(parse_set(set)?, ""))?;
    for (key, value) in settings.0 {
        let old = key.split('.').try_fold(&before, |v, k| v.get(k));
        if old != Some(&value) && !NOT_IN_NAMES.contains(&key.as_str()) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let short = key.rsplit('.').next().unwrap_or(&key);
            name += &format!("-{short}={text}");
        }
    }
    let mut name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "_.=+-".contains(c) { c } else { '_' }).collect();
    if name.len() > 100 {
        let hash = sha256(format!("{sets:?}").as_bytes());
        name = format!("{}-{}", &name[..80], &hash[..8]);
    }
    Ok(Path::new("runs").join(format!("{name}-s{seed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_has_a_folder_for_each_setting() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("student.toml");
        fs::write(&file, "optim.lr = 0.2\nloss.weights = { ce = 1.0 }")?;
        let name = |sets: &[&str]| -> Result<String> {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            Ok(default_run(std::slice::from_ref(&file), &sets, 3)?.display().to_string())
        };
        assert_eq!(name(&[])?, "runs/student-s3");
        assert_eq!(name(&["optim.lr=0.2", "train.seed=3", "train.max_minutes=1"])?, "runs/student-s3");
        assert_eq!(name(&["optim.lr=0.1"])?, "runs/student-lr=0.1-s3");
        assert_eq!(name(&["optim.lr=0.1", "optim.lr=0.3"])?, "runs/student-lr=0.3-s3");
        assert_eq!(name(&["loss.weights={ ce = 1.0, kd = 2 }"])?, "runs/student-kd=2-s3");
        let long = |last: &str| {
            name(&["teacher.checkpoint=/a/very/long/path/to/a/teacher/that/somebody/keeps/deep/down/in/a/tree", last])
        };
        let (a, b) = (long("optim.lr=0.1")?, long("optim.lr=0.4")?);
        assert!(a != b && a.len() < 120, "{a} {b}");
        Ok(())
    }
}
