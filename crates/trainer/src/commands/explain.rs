mod input;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Methods;
use candle_core::{D, DType, Tensor};
use input::Input;
pub use input::slice;
use serde_json::{Value, json};

use super::{load, load_model};
use crate::checkpoint::{Entry, Metadata, write_tensors};
use crate::cli::{Done, ExplainArgs, Global};
use crate::config::{check_methods, parse_set, typed};
use crate::data::loader::{Batch, Plan};
use crate::error::{sentence, unknown};
use crate::gallery::{self, Row};
use crate::nn::Network;

/// Images a forward pass; no map depends on it.
const BATCH: usize = 32;

/// Which class is explained.
enum Class {
    Label,
    Top1,
    Number(u32),
    /// One an image.
    Given(Vec<u32>),
}

impl Class {
    fn parse(text: Option<&str>, labelled: bool) -> Result<Class> {
        Ok(match text {
            None if labelled => Class::Label,
            None | Some("top1") => Class::Top1,
            Some("label") if labelled => Class::Label,
            Some("label") => bail!("--class label: these images have no labels; use top1 or a number"),
            Some(n) => Class::Number(
                n.parse().ok().with_context(|| format!("--class \"{n}\"; accepted: label, top1 or a class number"))?,
            ),
        })
    }

    /// The classes (n,) of a batch that lies at `positions`.
    fn of(&self, batch: &Batch, positions: &[usize], logits: &Tensor) -> Result<Tensor> {
        let device = logits.device();
        Ok(match self {
            Class::Label => Tensor::from_slice(&batch.labels, batch.len(), device)?,
            Class::Top1 => logits.argmax(D::Minus1)?,
            Class::Number(c) => Tensor::full(*c, batch.len(), device)?,
            Class::Given(all) => Tensor::new(positions.iter().map(|i| all[*i]).collect::<Vec<_>>(), device)?,
        })
    }
}

/// What a model's methods say about all images.
struct Explained {
    outcomes: Vec<Outcome>,
    /// Methods that cannot explain this layer, and why.
    skipped: Vec<String>,
    /// Explained, one an image.
    classes: Vec<u32>,
    /// (images, classes).
    logits: Vec<f32>,
}

/// One method's maps and what they cost.
struct Outcome {
    method: &'static str,
    /// How each image's map came about.
    estimators: Vec<&'static str>,
    evaluations: usize,
    seconds: f64,
    shape: [usize; 2],
    values: Vec<f32>,
    error: Vec<f32>,
}

impl Outcome {
    fn new(method: &'static str) -> Outcome {
        Outcome {
            method,
            estimators: vec![],
            evaluations: 0,
            seconds: 0.0,
            shape: [0; 2],
            values: vec![],
            error: vec![],
        }
    }

    /// Takes a batch's maps.
    fn add(&mut self, explanation: &cams::Explanation) -> Result<()> {
        let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (_, h, w) = explanation.map.dims3()?;
        self.shape = [h, w];
        self.estimators.extend(explanation.estimators.iter().map(|e| e.name()));
        self.evaluations = self.evaluations.max(explanation.evaluations);
        self.values.extend(flat(&explanation.map)?);
        if let Some(error) = &explanation.error {
            self.error.extend(flat(error)?);
        }
        Ok(())
    }

    /// The ways its maps came about, each once: `det2`, or `det2+mc`.
    fn estimator(&self) -> String {
        let mut names = self.estimators.clone();
        names.sort_unstable();
        names.dedup();
        names.join("+")
    }
}

/// `trainer explain`.
pub fn run(args: &ExplainArgs, global: &Global) -> Result<Done> {
    let (methods, names) = methods(args, global)?;
    let network = load_model(&args.model, &[&args.layer], &global.device()?)?;
    let input = input::read(&args.images, &network)?;
    ensure!(!input.images.is_empty(), "no image could be read: {}", input.bad.join("; "));
    let class = Class::parse(args.class.as_deref(), input.labelled)?;
    // Both models are ready before any of the work is done.
    let other = args.beside.as_ref().map(|path| -> Result<_> {
        let other = load(path, None, &[&args.layer], &global.device()?)?;
        input::check(&input, &other).with_context(|| format!("--beside {}", path.display()))?;
        Ok(other)
    });
    let other = other.transpose()?;
    let found = explain(&methods, &names, &network, &args.layer, &input, &class)?;
    let classes = Class::Given(found.classes.clone());
    let beside = other.map(|other| explain(&methods, &names, &other, &args.layer, &input, &classes)).transpose()?;
    for note in &input.images.notes {
        eprintln!("{note}");
    }
    for line in input.bad.iter().chain(&found.skipped) {
        eprintln!("skipped {line}");
    }
    for line in beside.iter().flat_map(|e| &e.skipped) {
        eprintln!("beside: skipped {line}");
    }
    if let Some(path) = &args.out {
        write(path, &found, input.images.len())?;
    }
    if let Some(dir) = &args.gallery {
        let (captions, beside) = (captions(&input, &found), beside.as_ref());
        let other = beside.map(probabilities).unwrap_or_default();
        let captions: Vec<String> = captions
            .into_iter()
            .enumerate()
            .map(|(i, caption)| match other.get(i) {
                Some(p) => format!("{caption}; beside: {p:.1} %"),
                None => caption,
            })
            .collect();
        gallery::write(dir, &input.images, &captions, &rows(&found, beside))?;
    }
    let n = input.images.len();
    let mut text = format!("{:<14} {:<13} {:>5} {:>12} {:>9}\n", "method", "estimator", "n", "evaluations", "seconds");
    for (i, explained) in std::iter::once(&found).chain(&beside).enumerate() {
        if i > 0 {
            text += "beside:\n";
        }
        for o in &explained.outcomes {
            let how = o.estimator();
            text += &format!("{:<14} {how:<13} {n:>5} {:>12} {:>9.3}\n", o.method, o.evaluations, o.seconds);
        }
    }
    if let Some(dir) = &args.gallery {
        text += &format!("pictures: {}\n", dir.join("index.html").display());
    }
    let mut value = json!({ "rows": found.json(n), "bad_images": input.bad, "skipped": found.skipped });
    if let Some(beside) = &beside {
        value["beside"] = json!({ "rows": beside.json(n), "skipped": beside.skipped });
    }
    Ok(Done::Result(text, value))
}

impl Explained {
    fn json(&self, n: usize) -> Vec<Value> {
        let row = |o: &Outcome| {
            json!({
                "method": o.method, "estimator": o.estimator(), "estimators": o.estimators, "n": n,
                "evaluations": o.evaluations, "seconds": o.seconds,
            })
        };
        self.outcomes.iter().map(row).collect()
    }
}

/// The gallery's rows: each method of the model and, under it, of the one beside it.
fn rows<'a>(found: &'a Explained, beside: Option<&'a Explained>) -> Vec<Row<'a>> {
    let row = |o: &'a Outcome, model: &'static str| Row {
        method: o.method,
        model,
        estimator: o.estimator(),
        shape: o.shape,
        values: &o.values,
    };
    let mut rows = Vec::new();
    for name in Methods::NAMES {
        let of = |e: &'a Explained| e.outcomes.iter().find(|o| o.method == *name);
        rows.extend(of(found).map(|o| row(o, "")));
        rows.extend(beside.and_then(of).map(|o| row(o, "beside")));
    }
    rows
}

/// The methods asked for, configured.
fn methods(args: &ExplainArgs, global: &Global) -> Result<(Methods, Vec<&'static str>)> {
    let mut methods = Methods::default();
    let seeds =
        ["mask", "random", "rise", "shap_cam"].map(|m| global.seed.map(|s| format!("interpreter.{m}.seed={s}")));
    let sets = seeds.into_iter().flatten().chain(args.set.iter().cloned());
    let mut table = toml::Table::new();
    for set in sets {
        let mut given = parse_set(&set)?;
        let Some(toml::Value::Table(inner)) = given.remove("interpreter") else {
            bail!("--set \"{set}\": expected interpreter.<method>.<key>=value");
        };
        for (method, keys) in inner {
            let entry = table.entry(method.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            match (entry, keys) {
                (toml::Value::Table(t), toml::Value::Table(k)) => t.extend(k),
                _ => bail!("--set \"{set}\": expected interpreter.<method>.<key>=value"),
            }
        }
    }
    if !table.is_empty() {
        methods = typed(table).context("--set")?;
        check_methods(&methods).context("--set")?;
    }
    if args.method == "all" {
        return Ok((methods, Methods::NAMES.to_vec()));
    }
    let find = |name: &str| {
        let known = Methods::NAMES.iter().copied().find(|n| *n == name);
        known.ok_or_else(|| unknown("method", name, Methods::NAMES))
    };
    let names = args.method.split(',').map(|n| find(n.trim())).collect::<Result<_>>()?;
    Ok((methods, names))
}

/// Every method's maps of all images, from one pass a batch. Of several methods those that cannot explain this layer are left out.
fn explain(
    methods: &Methods,
    names: &[&'static str],
    network: &Network,
    layer: &str,
    input: &Input,
    class: &Class,
) -> Result<Explained> {
    let view = network.view(layer)?;
    let plan = Plan::plain(BATCH);
    let positions: Vec<usize> = (0..input.images.len()).collect();
    let outcomes = names.iter().map(|name| Outcome::new(name)).collect();
    let mut found = Explained { outcomes, skipped: vec![], classes: vec![], logits: vec![] };
    let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    for positions in positions.chunks(BATCH) {
        let batch = plan.batch(&input.images, positions, 0);
        let clock = Instant::now();
        let pass = network.observe(&network.images(&batch)?)?;
        let forward = view.forward(&pass, batch.ids.clone());
        let wanted = class.of(&batch, positions, &pass.logits)?;
        let of_pass = clock.elapsed().as_secs_f64();
        let mut failed = Vec::new();
        for outcome in &mut found.outcomes {
            let clock = Instant::now();
            let method = methods.get(outcome.method).context("the name was checked")?;
            let explanation = match method.explain(&forward, &wanted) {
                Ok(explanation) => explanation,
                Err(e) => {
                    failed.push((outcome.method, anyhow::Error::from(e)));
                    continue;
                }
            };
            // As if it had been asked for alone.
            outcome.seconds += of_pass + clock.elapsed().as_secs_f64();
            outcome.add(&explanation)?;
        }
        for (method, e) in failed {
            found.outcomes.retain(|o| o.method != method);
            if found.outcomes.is_empty() {
                let others =
                    if found.skipped.is_empty() { String::new() } else { format!("; {}", found.skipped.join("; ")) };
                return Err(e.context(format!("method {method}{others}")));
            }
            found.skipped.push(format!("{method}: {}", sentence(&e)));
        }
        found.classes.extend(wanted.to_dtype(DType::U32)?.to_vec1::<u32>()?);
        found.logits.extend(flat(&pass.logits)?);
    }
    Ok(found)
}

fn write(path: &Path, found: &Explained, n: usize) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for o in &found.outcomes {
        let shape = [n, o.shape[0], o.shape[1]];
        tensors.insert(o.method.to_string(), Entry::f32(&shape, &o.values));
        if !o.error.is_empty() {
            // A deterministic rule's estimate of its own error is no standard error.
            let sampled = o.estimators.iter().all(|e| *e == "mc");
            let what = if sampled { "standard_error" } else { "error_estimate" };
            tensors.insert(format!("{}.{what}", o.method), Entry::f32(&shape, &o.error));
        }
    }
    let classes: Vec<i64> = found.classes.iter().map(|c| i64::from(*c)).collect();
    tensors.insert("classes".into(), Entry::i64(&[n], &classes));
    tensors.insert("logits".into(), Entry::f32(&[n, found.logits.len() / n], &found.logits));
    write_tensors(path, &tensors, &Metadata::new())
}

/// Each image's probability of its explained class, in percent.
fn probabilities(found: &Explained) -> Vec<f32> {
    let width = found.logits.len() / found.classes.len().max(1);
    let of = |(class, row): (&u32, &[f32])| {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = row.iter().map(|z| (z - largest).exp()).sum();
        100.0 * (row[*class as usize] - largest).exp() / total
    };
    found.classes.iter().zip(found.logits.chunks_exact(width.max(1))).map(of).collect()
}

/// What stands under each picture: name, class and its probability.
fn captions(input: &Input, found: &Explained) -> Vec<String> {
    let caption = |((i, name), p): ((usize, &String), f32)| {
        let label = if input.labelled { format!(", label {}", input.images.labels[i]) } else { String::new() };
        format!("{name}: class {} at {p:.1} %{label}", found.classes[i])
    };
    input.names.iter().enumerate().zip(probabilities(found)).map(caption).collect()
}
