//! The training loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use kernels::sgd::SgdStep;
use kernels::stage::Mode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, File, Metadata, write_atomically};
use crate::config::{BnGamma, Config, Precision, Weights as LossWeights};
use crate::data::loader::{Batch, Epoch, Plan};
use crate::data::{Images, Split};
use crate::evaluate::evaluate;
use crate::loss;
use crate::models::Architecture;
use crate::nn::{Network, Normalization, Weights};
use crate::objective;
use crate::optim::{Sgd, norm};
use crate::record::Recorder;
use crate::schedule;
use crate::state::State;
use crate::teacher::Teacher;
use kernels::graph::Shape;

/// The commit this program was built from.
pub const COMMIT: &str = env!("COMMIT");

/// A run's final figures: `report.json` and the JSON of `trainer train`. Errors in percent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Report {
    pub run: PathBuf,
    pub test_error: f64,
    pub test_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_test_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_test_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_test_error: Option<f64>,
    pub train_error: f64,
    pub train_loss: f64,
    pub epochs: usize,
    pub steps: usize,
    pub seconds: f64,
    pub images_per_second: f64,
    pub parameters: usize,
    pub flops_per_image: f64,
    pub profile: String,
    pub seed: u64,
    pub commit: String,
    pub machine: String,
    pub threads: usize,
    pub device: String,
}

/// How a call to [`train`] ended.
pub enum Outcome {
    /// With a result.
    Done(Box<Report>),
    /// Early, with its state saved; why.
    Stopped(&'static str),
}

/// What a run is told beside its configuration; none of it changes the result.
pub struct Options<'a> {
    /// The run's folder.
    pub run: PathBuf,
    /// Continue what is there.
    pub resume: bool,
    /// No progress.
    pub quiet: bool,
    /// Where to compute.
    pub device: Device,
    /// Set from outside to stop after the current step.
    pub interrupted: &'a AtomicBool,
}

/// Trains as configured.
pub fn train(config: &Config, options: &Options) -> Result<Outcome> {
    let dir = &options.run;
    if let Some(report) = open_folder(config, options)? {
        return Ok(Outcome::Done(Box::new(report)));
    }
    let (images, curve, held_out) = config.data.load()?;
    let images = Arc::new(images);
    let mut trainer = Trainer::new(config, options, &images)?;
    let plan = plan(config, &images)?;
    let steps = plan.steps(images.len());
    let total = steps * config.train.epochs;
    let mut recorder = Recorder::new(dir, trainer.state.step, total, options.quiet)?;
    let started = Instant::now();
    let before = trainer.state.seconds;

    while trainer.state.step < total {
        let epoch = trainer.state.step / steps;
        for batch in Epoch::new(&images, &plan, epoch, trainer.state.step % steps) {
            let clock = Instant::now();
            trainer.step(&batch, steps, &mut recorder, clock)?;
            trainer.state.seconds = before + started.elapsed().as_secs_f64();
            let save = config.train.save_every;
            let limit = config.train.max_minutes * 60.0;
            let late = limit > 0.0 && trainer.state.seconds > limit;
            let stop = options.interrupted.load(Ordering::Relaxed) || late;
            if stop || (save > 0 && trainer.state.step % save == 0) {
                trainer.save_state(dir)?;
            }
            if stop {
                recorder.flush()?;
                recorder.finish();
                return Ok(Outcome::Stopped(if late { "train.max_minutes is over" } else { "interrupted" }));
            }
        }
        trainer.end_epoch(epoch, &curve, held_out, dir, &mut recorder)?;
        trainer.state.seconds = before + started.elapsed().as_secs_f64();
        trainer.save_state(dir)?;
    }
    let report = trainer.report(&images, &curve, held_out, dir)?;
    recorder.flush()?;
    recorder.finish();
    write_atomically(&dir.join("report.json"), &serde_json::to_vec_pretty(&report)?)?;
    Ok(Outcome::Done(Box::new(report)))
}

/// Prepares the run's folder; the report of a run that is finished already.
fn open_folder(config: &Config, options: &Options) -> Result<Option<Report>> {
    let dir = &options.run;
    let saved = dir.join("config.toml");
    if saved.exists() {
        let text = std::fs::read_to_string(&saved)?;
        let old: Config = toml::from_str(&text).with_context(|| format!("{} is damaged", saved.display()))?;
        let same = old.identity() == config.identity();
        ensure!(
            options.resume,
            "{} already holds {} run: go on with --resume, or choose another folder with --run",
            dir.display(),
            if same { "this" } else { "a different" }
        );
        ensure!(
            same,
            "{} holds a run with another configuration ({}): choose another folder with --run",
            dir.display(),
            difference(&old, config)?
        );
        let report = dir.join("report.json");
        if report.exists() {
            let text = std::fs::read(&report)?;
            return Ok(Some(
                serde_json::from_slice(&text).with_context(|| format!("{} is damaged", report.display()))?,
            ));
        }
    }
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    write_atomically(&saved, config.to_toml()?.as_bytes())?;
    Ok(None)
}

/// The first key in which two configurations differ.
fn difference(old: &Config, new: &Config) -> Result<String> {
    fn first(a: &Value, b: &Value, path: &str) -> Option<String> {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let keys: std::collections::BTreeSet<_> = x.keys().chain(y.keys()).collect();
                keys.into_iter().find_map(|k| {
                    first(x.get(k).unwrap_or(&Value::Null), y.get(k).unwrap_or(&Value::Null), &format!("{path}.{k}"))
                })
            }
            _ if a != b => Some(format!("{}: {a} there, {b} here", path.trim_start_matches('.'))),
            _ => None,
        }
    }
    let (a, b) = (serde_json::to_value(old.identity())?, serde_json::to_value(new.identity())?);
    Ok(first(&a, &b, "").unwrap_or_default())
}

fn plan(config: &Config, images: &Images) -> Result<Plan> {
    let (t, d) = (&config.train, &config.data);
    ensure!(
        t.batch <= images.len(),
        "train.batch is {}, but there are only {} training images: use a smaller batch",
        t.batch,
        images.len()
    );
    Ok(Plan { batch: t.batch, seed: t.seed, data_seed: d.seed, views: d.views, augment: d.augment })
}

/// The student's architecture for these images.
pub fn architecture(config: &Config, images: &Images) -> Result<Architecture> {
    let [channels, h, w] = images.shape;
    let (input, s) = (Shape { channels, h, w }, &config.student);
    match (&s.layers, &s.arch, &s.checkpoint) {
        (Some(layers), _, _) => Architecture::from_layers(layers, input, images.classes),
        (None, Some(arch), _) => Architecture::named(arch, input, images.classes, s.shortcut),
        (None, None, Some(checkpoint)) => File::read(checkpoint)?.architecture(None),
        (None, None, None) => bail!("[student] needs arch or layers"),
    }
}

/// CIFAR-10's mean and standard deviation, as everybody uses them; other sets' own.
fn normalization(config: &Config, images: &Images) -> Normalization {
    if config.data.name.starts_with("cifar10") && images.classes == 10 {
        return Normalization { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2470, 0.2435, 0.2616] };
    }
    let (mean, std) = images.mean_std();
    Normalization { mean, std }
}

struct Trainer<'c> {
    config: &'c Config,
    student: Network,
    teacher: Option<Teacher>,
    optimiser: Sgd,
    state: State,
    device: String,
    steps_per_epoch: usize,
}

impl<'c> Trainer<'c> {
    fn new(config: &'c Config, options: &Options, images: &Images) -> Result<Self> {
        let device = &options.device;
        let dtype = match config.train.dtype {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
        };
        let architecture = architecture(config, images)?;
        let classes = architecture.classes;
        ensure!(classes == images.classes, "the student has {classes} classes, the data {}", images.classes);
        let path = options.run.join("state.safetensors");
        let resumed = if options.resume && path.exists() { Some(State::load(&path)?) } else { None };
        let mut normalization = normalization(config, images);
        let mut start = Weights::init(&architecture, config.train.seed, config.init.bn_gamma == BnGamma::Uniform);
        if let Some(checkpoint) = &config.student.checkpoint {
            let file = File::read(checkpoint).context("the student's warm start")?;
            start = file.weights(&architecture)?;
            normalization = file.normalization()?;
        }
        let state = match resumed {
            Some(state) => {
                let fits =
                    state.parameters.len() == start.parameters.len() && state.running.len() == start.running.len();
                ensure!(fits, "{} belongs to another model", path.display());
                state
            }
            None => {
                let ema = if config.train.ema > 0.0 {
                    [start.parameters.clone(), start.running.clone()]
                } else {
                    [vec![], vec![]]
                };
                State {
                    momentum: vec![0.0; start.parameters.len()],
                    parameters: start.parameters,
                    running: start.running,
                    ema,
                    best: f64::MAX,
                    ..State::default()
                }
            }
        };
        let weights = Weights { parameters: state.parameters.clone(), running: state.running.clone() };
        let layers = objective::layers(&config.loss.weights);
        let student =
            Network::new(architecture, weights, normalization, &layers, true, Network::engine(device), dtype, device)?;
        let teacher = match &config.teacher {
            Some(section) => Some(Teacher::load(section, config, images, dtype, device)?),
            None => None,
        };
        let var = student.var().context("the student is trained")?;
        let optimiser = Sgd::new(var, state.momentum.clone())?;
        let name = if device.is_cpu() {
            "cpu"
        } else if device.is_cuda() {
            "cuda"
        } else {
            "metal"
        };
        Ok(Trainer { config, student, teacher, optimiser, state, device: name.into(), steps_per_epoch: 0 })
    }

    /// The terms' weights at this point of the run.
    fn weights(&self, steps: usize) -> LossWeights {
        let (w, s) = (&self.config.loss.weights, &self.config.loss.schedule);
        let epoch = self.state.step as f64 / steps as f64;
        LossWeights {
            ce: w.ce * s.ce.factor(epoch),
            kd: w.kd * s.kd.factor(epoch),
            explanation: w.explanation * s.explanation.factor(epoch),
            attention: w.attention * s.attention.factor(epoch),
        }
    }

    fn step(&mut self, batch: &Batch, steps: usize, recorder: &mut Recorder, clock: Instant) -> Result<()> {
        self.steps_per_epoch = steps;
        let (config, step) = (self.config, self.state.step);
        let (t, o) = (&config.train, &config.optim);
        let lr = schedule::lr(o, step, steps, t.epochs);
        if o.reset_momentum_at_drops && schedule::is_drop(o, step, steps) {
            self.optimiser.reset()?;
        }
        let weights = self.weights(steps);
        let signal = match &mut self.teacher {
            Some(teacher) => Some(teacher.signal(config, batch)?),
            None => None,
        };
        let pass = self.student.pass(&self.student.images(batch)?, Mode::Train)?;
        let losses = objective::losses(config, &weights, &self.student, &pass, batch, signal.as_ref())?;
        let total = losses.total(&weights)?;
        let mut values = Map::new();
        for (name, term, _) in losses.terms(&weights) {
            values.insert(name.into(), json!(loss::value(term)?));
        }
        let total_value = loss::value(&total)?;
        if !total_value.is_finite() {
            bail!(
                "the loss is {total_value} at step {step}: {}, learning rate {lr:.4}; nothing of this step was kept. A smaller optim.lr or train.clip = 1.0 usually helps",
                Value::Object(values)
            );
        }
        values.insert("total".into(), json!(total_value));

        let var = self.student.var().context("the student is trained")?;
        let grads = total.backward()?;
        let mut gradient = grads.get(var.as_tensor()).context("no gradient reached the student")?.clone();
        if t.log_every > 0 && step % t.log_every == 0 {
            let mut norms = Map::new();
            for (name, term, _) in losses.terms(&weights) {
                let grads = term.backward()?;
                let size = grads.get(var.as_tensor()).map(norm).transpose()?.unwrap_or(0.0);
                norms.insert(name.into(), json!(size));
            }
            let size = norm(&gradient)?;
            if !size.is_finite() {
                bail!(
                    "the gradient is {size} at step {step}: {}, learning rate {lr:.4}; nothing of this step was kept",
                    Value::Object(values)
                );
            }
            norms.insert("total".into(), json!(size));
            values.insert("gradient_norms".into(), Value::Object(norms));
        }
        if t.clip > 0.0 {
            let size = norm(&gradient)?;
            if size > t.clip {
                gradient = (gradient * (t.clip / size))?;
            }
        }
        let sgd = SgdStep { lr, momentum: o.momentum, nesterov: o.nesterov, weight_decay: o.weight_decay };
        self.optimiser.step(var, &gradient, sgd)?;
        self.student.update_running(&pass.statistics);
        if t.ema > 0.0 {
            self.update_ema()?;
        }
        self.count(batch, &pass.logits, &values)?;
        self.state.step += 1;

        let epoch = step / steps;
        let speed = batch.len() as f64 / clock.elapsed().as_secs_f64();
        recorder.progress(step + 1, || {
            format!("epoch {}/{}  loss {total_value:.4}  {speed:.0} images/s", epoch + 1, t.epochs)
        });
        if values.contains_key("gradient_norms") {
            values.extend([
                ("epoch".into(), json!(epoch + 1)),
                ("lr".into(), json!(lr)),
                ("images_per_second".into(), json!(speed)),
            ]);
            if let Some(Value::Object(norms)) = values.get("gradient_norms").cloned() {
                values.extend(norms.into_iter().map(|(k, v)| (format!("gradient_norm_{k}"), v)));
            }
            recorder.write("step", step + 1, &values)?;
        }
        Ok(())
    }

    fn update_ema(&mut self) -> Result<()> {
        let now = self.student.weights()?;
        let decay = self.config.train.ema as f32;
        for (ema, now) in self.state.ema.iter_mut().zip([&now.parameters, &now.running]) {
            ema.iter_mut().zip(now).for_each(|(e, n)| *e = decay * *e + (1.0 - decay) * n);
        }
        Ok(())
    }

    /// Adds a step to the epoch's sums.
    fn count(&mut self, batch: &Batch, logits: &candle_core::Tensor, values: &Map<String, Value>) -> Result<()> {
        let predicted = logits.detach().to_dtype(DType::F32)?.argmax(candle_core::D::Minus1)?.to_vec1::<u32>()?;
        let wrong = predicted.iter().zip(&batch.labels).filter(|(p, l)| p != l).count();
        let n = batch.len() as f64;
        let of = |key: &str| values.get(key).and_then(Value::as_f64).unwrap_or(0.0) * n;
        let step = [n, wrong as f64, of("total"), of("ce"), of("kd"), of("explanation"), of("attention")];
        self.state.sums.iter_mut().zip(step).for_each(|(sum, x)| *sum += x);
        Ok(())
    }

    fn end_epoch(
        &mut self,
        epoch: usize,
        curve: &Images,
        held_out: bool,
        dir: &Path,
        recorder: &mut Recorder,
    ) -> Result<()> {
        let evaluation = evaluate(&self.student, curve)?;
        let [n, wrong, ..] = self.state.sums;
        let mean = |i: usize| self.state.sums[i] / n.max(1.0);
        let train_error = 100.0 * wrong / n.max(1.0);
        let lr = schedule::lr(
            &self.config.optim,
            self.state.step - 1,
            self.steps_per_epoch.max(1),
            self.config.train.epochs,
        );
        let mut values = Map::from_iter([
            ("epoch".to_string(), json!(epoch + 1)),
            ("lr".into(), json!(lr)),
            ("train_error".into(), json!(train_error)),
            ("total".into(), json!(mean(2))),
            ("seconds".into(), json!(self.state.seconds)),
            ("images_per_second".into(), json!(n * (epoch + 1) as f64 / self.state.seconds.max(1e-9))),
        ]);
        let name = if held_out { "val_error" } else { "test_error" };
        values.insert(name.into(), json!(evaluation.error));
        for (i, key) in ["ce", "kd", "explanation", "attention"].iter().enumerate() {
            values.insert((*key).into(), json!(mean(3 + i)));
        }
        recorder.write("epoch", self.state.step, &values)?;
        recorder.flush()?;
        recorder.say(&format!(
            "epoch {:>3}/{}  loss {:.4}  train error {train_error:.2} %  {} error {:.2} %  {:.0} s",
            epoch + 1,
            self.config.train.epochs,
            mean(2),
            if held_out { "validation" } else { "test" },
            evaluation.error,
            self.state.seconds,
        ));
        if held_out && evaluation.error < self.state.best {
            self.state.best = evaluation.error;
            self.save_weights(&dir.join("best.safetensors"), &self.student.weights()?, epoch + 1, None)?;
        }
        self.state.sums = [0.0; 7];
        Ok(())
    }

    fn save_state(&mut self, dir: &Path) -> Result<()> {
        let weights = self.student.weights()?;
        self.state.parameters = weights.parameters;
        self.state.running = weights.running;
        self.state.momentum = self.optimiser.buffer()?;
        self.state.save(&dir.join("state.safetensors"))
    }

    fn save_weights(&self, path: &Path, weights: &Weights, epoch: usize, test_error: Option<f64>) -> Result<()> {
        let mut metadata = Metadata::from([
            ("config".to_string(), serde_json::to_string(&self.config.identity())?),
            ("dataset".into(), self.config.data.name.clone()),
            ("seed".into(), self.config.train.seed.to_string()),
            ("epoch".into(), epoch.to_string()),
            ("profile".into(), self.config.train.profile.name().into()),
            ("commit".into(), COMMIT.into()),
        ]);
        if let Some(layers) = &self.config.student.layers {
            metadata.insert("layers".into(), serde_json::to_string(layers)?);
        }
        if let Some(error) = test_error {
            metadata.insert("test_error".into(), format!("{error:.2}"));
        }
        checkpoint::save(path, &self.student.architecture, weights, &self.student.normalization, &metadata)
    }

    /// Reads the test set, once, and writes the final weights.
    fn report(&self, images: &Images, curve: &Images, held_out: bool, dir: &Path) -> Result<Report> {
        let config = self.config;
        let loaded = if held_out { Some(config.data.source().load(Split::Test)?) } else { None };
        let test = loaded.as_ref().unwrap_or(curve);
        let epochs = config.train.epochs;
        let last = evaluate(&self.student, test)?;
        self.save_weights(&dir.join("last.safetensors"), &self.student.weights()?, epochs, Some(last.error))?;
        let other = |weights: Weights| -> Result<f64> {
            let s = &self.student;
            let network = Network::new(
                s.architecture.clone(),
                weights,
                s.normalization.clone(),
                &[],
                false,
                Network::engine(s.device()),
                DType::F32,
                s.device(),
            )?;
            Ok(evaluate(&network, test)?.error)
        };
        let mut ema_test_error = None;
        if config.train.ema > 0.0 {
            let [parameters, running] = self.state.ema.clone();
            let error = other(Weights { parameters: parameters.clone(), running: running.clone() })?;
            self.save_weights(&dir.join("ema.safetensors"), &Weights { parameters, running }, epochs, Some(error))?;
            ema_test_error = Some(error);
        }
        let best = dir.join("best.safetensors");
        let best_test_error = if held_out && best.exists() {
            Some(other(File::read(&best)?.weights(&self.student.architecture)?)?)
        } else {
            None
        };
        let (train_error, train_loss) = last_epoch(dir)?;
        let teacher_macs = self.teacher.as_ref().map_or(0, |t| t.network.architecture.macs());
        Ok(Report {
            run: dir.to_path_buf(),
            test_error: last.error,
            test_loss: last.loss,
            ema_test_error,
            best_test_error,
            teacher_test_error: self.teacher.as_ref().map(|t| t.test_error),
            train_error,
            train_loss,
            epochs,
            steps: self.state.step,
            seconds: self.state.seconds,
            images_per_second: (images.len() * epochs) as f64 / self.state.seconds.max(1e-9),
            parameters: self.student.architecture.parameters(),
            flops_per_image: 2.0 * (3 * self.student.architecture.macs() + teacher_macs) as f64,
            profile: config.train.profile.name().into(),
            seed: config.train.seed,
            commit: COMMIT.into(),
            machine: machine(),
            threads: rayon::current_num_threads(),
            device: self.device.clone(),
        })
    }
}

/// Training error and loss of the last epoch, from the run's own metrics.
fn last_epoch(dir: &Path) -> Result<(f64, f64)> {
    let metrics = crate::record::read_metrics(dir)?;
    let last = metrics.iter().rev().find(|m| m["kind"] == "epoch").context("metrics.jsonl holds no epoch")?;
    let number = |key: &str| last[key].as_f64().with_context(|| format!("metrics.jsonl: no {key}"));
    Ok((number("train_error")?, number("total")?))
}

/// The processor's name and number of cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores, {:?}", name.unwrap_or("unknown processor"), kernels::Isa::best())
}
