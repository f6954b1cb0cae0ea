use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Methods;
use candle_core::{D, DType, Tensor};
use kernels::stage::Mode;
use serde_json::{Value, json};

use super::load_model;
use crate::checkpoint::{Entry, File, Metadata, write_tensors};
use crate::cli::{Done, ExplainArgs, Global};
use crate::config::{parse_set, typed};
use crate::data::loader::Plan;
use crate::data::{Images, Source, Split, is_image, read_image};
use crate::error::unknown;
use crate::gallery::{self, Row};
use crate::nn::Network;

/// Images a forward pass; no map depends on it.
const BATCH: usize = 32;

/// Which class is explained.
enum Class {
    Label,
    Top1,
    Number(u32),
}

/// The images of a call, and what is known of each.
struct Input {
    images: Images,
    labelled: bool,
    names: Vec<String>,
    /// Files that could not be read, and why.
    bad: Vec<String>,
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
    let input = read(&args.images, &network)?;
    ensure!(!input.images.is_empty(), "no image could be read: {}", input.bad.join("; "));
    let class = match args.class.as_deref() {
        None if input.labelled => Class::Label,
        None | Some("top1") => Class::Top1,
        Some("label") if input.labelled => Class::Label,
        Some("label") => bail!("--class label: these images have no labels; use top1 or a number"),
        Some(n) => Class::Number(
            n.parse().ok().with_context(|| format!("--class \"{n}\"; accepted: label, top1 or a class number"))?,
        ),
    };
    let all = args.method == "all";
    let mut outcomes = Vec::new();
    let mut skipped = Vec::new();
    let (mut classes, mut logits) = (Vec::new(), Vec::new());
    for name in names {
        classes.clear();
        logits.clear();
        match explain(name, &methods, &network, &args.layer, &input, &class, &mut classes, &mut logits) {
            Ok(outcome) => outcomes.push(outcome),
            Err(e) if all && outcomes.len() + skipped.len() + 1 < Methods::NAMES.len() => {
                skipped.push(format!("{name}: {e:#}"))
            }
            Err(e) => return Err(e.context(format!("method {name}"))),
        }
    }
    ensure!(!outcomes.is_empty(), "no method could explain this layer: {}", skipped.join("; "));
    for line in input.bad.iter().chain(&skipped) {
        eprintln!("skipped {line}");
    }
    let n = input.images.len();
    if let Some(path) = &args.out {
        write(path, &outcomes, &classes, &logits, n)?;
    }
    if let Some(dir) = &args.gallery {
        let estimators: Vec<String> = outcomes.iter().map(Outcome::estimator).collect();
        let maps: Vec<_> = outcomes
            .iter()
            .zip(&estimators)
            .map(|(o, estimator)| Row { method: o.method, estimator, shape: o.shape, values: &o.values })
            .collect();
        let captions = captions(&input, &classes, &logits);
        gallery::write(dir, &input.images, &captions, &maps)?;
    }
    let mut text = format!("{:<14} {:<13} {:>5} {:>12} {:>9}\n", "method", "estimator", "n", "evaluations", "seconds");
    for o in &outcomes {
        text += &format!("{:<14} {:<13} {:>5} {:>12} {:>9.3}\n", o.method, o.estimator(), n, o.evaluations, o.seconds);
    }
    if let Some(dir) = &args.gallery {
        text += &format!("pictures: {}\n", dir.join("index.html").display());
    }
    let rows: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            json!({
                "method": o.method, "estimator": o.estimator(), "estimators": o.estimators, "n": n,
                "evaluations": o.evaluations, "seconds": o.seconds,
            })
        })
        .collect();
    Ok(Done::Result(text, json!({ "rows": rows, "bad_images": input.bad, "skipped": skipped })))
}

/// The methods asked for, configured.
fn methods(args: &ExplainArgs, global: &Global) -> Result<(Methods, Vec<&'static str>)> {
    let mut methods = Methods::default();
    let seeds = ["random", "rise", "shap_cam"].map(|m| global.seed.map(|s| format!("interpreter.{m}.seed={s}")));
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

#[allow(clippy::too_many_arguments)]
fn explain(
    name: &'static str,
    methods: &Methods,
    network: &Network,
    layer: &str,
    input: &Input,
    class: &Class,
    classes: &mut Vec<i64>,
    logits: &mut Vec<f32>,
) -> Result<Outcome> {
    let method = methods.get(name).context("the name was checked")?;
    let view = network.view(layer)?;
    let plan = Plan::plain(BATCH);
    let positions: Vec<usize> = (0..input.images.len()).collect();
    let mut outcome = Outcome {
        method: name,
        estimators: vec![],
        evaluations: 0,
        seconds: 0.0,
        shape: [0; 2],
        values: vec![],
        error: vec![],
    };
    for positions in positions.chunks(BATCH) {
        let batch = plan.batch(&input.images, positions, 0);
        let images = network.images(&batch)?;
        let clock = Instant::now();
        let pass = network.pass(&images, Mode::Eval)?;
        let forward = view.forward(&pass, batch.ids.clone());
        let wanted = match class {
            Class::Label => Tensor::from_slice(&batch.labels, batch.len(), network.device())?,
            Class::Top1 => pass.logits.argmax(D::Minus1)?,
            Class::Number(c) => Tensor::full(*c, batch.len(), network.device())?,
        };
        let explanation = method.explain(&forward, &wanted)?;
        outcome.seconds += clock.elapsed().as_secs_f64();
        let (_, h, w) = explanation.map.dims3()?;
        outcome.shape = [h, w];
        outcome.estimators.extend(explanation.estimators.iter().map(|e| e.name()));
        outcome.evaluations = outcome.evaluations.max(explanation.evaluations);
        let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        outcome.values.extend(flat(&explanation.map)?);
        if let Some(error) = &explanation.error {
            outcome.error.extend(flat(error)?);
        }
        classes.extend(wanted.to_dtype(DType::I64)?.to_vec1::<i64>()?);
        logits.extend(flat(&pass.logits)?);
    }
    Ok(outcome)
}

fn write(path: &Path, outcomes: &[Outcome], classes: &[i64], logits: &[f32], n: usize) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for o in outcomes {
        let shape = [n, o.shape[0], o.shape[1]];
        tensors.insert(o.method.to_string(), Entry::f32(&shape, &o.values));
        if !o.error.is_empty() {
            // A deterministic rule's estimate of its own error is no standard error.
            let sampled = o.estimators.iter().all(|e| *e == "mc");
            let what = if sampled { "standard_error" } else { "error_estimate" };
            tensors.insert(format!("{}.{what}", o.method), Entry::f32(&shape, &o.error));
        }
    }
    tensors.insert("classes".into(), Entry::i64(&[n], classes));
    tensors.insert("logits".into(), Entry::f32(&[n, logits.len() / n], logits));
    write_tensors(path, &tensors, &Metadata::new())
}

/// What stands under each picture: name, class and its probability.
fn captions(input: &Input, classes: &[i64], logits: &[f32]) -> Vec<String> {
    let width = logits.len() / classes.len().max(1);
    let caption = |(i, name): (usize, &String)| {
        let row = &logits[i * width..][..width];
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = row.iter().map(|z| (z - largest).exp()).sum();
        let p = (row[classes[i] as usize] - largest).exp() / total;
        let label = if input.labelled { format!(", label {}", input.images.labels[i]) } else { String::new() };
        format!("{name}: class {} at {:.1} %{label}", classes[i], 100.0 * p)
    };
    input.names.iter().enumerate().map(caption).collect()
}

/// Reads everything `--images` names.
fn read(given: &[String], network: &Network) -> Result<Input> {
    let input = network.architecture.graph.shapes[0];
    let shape = [input.channels, input.h, input.w];
    let classes = network.architecture.classes;
    let [first] = given else { return files(given.iter().map(PathBuf::from).collect(), shape, classes) };
    let path = Path::new(first);
    if path.is_dir() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        paths.retain(|p| p.is_file() && is_image(p));
        paths.sort();
        ensure!(!paths.is_empty(), "the folder {} holds no PNG or JPEG file", path.display());
        return files(paths, shape, classes);
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return tensors(path, shape, classes);
    }
    if path.is_file() {
        return files(vec![path.to_path_buf()], shape, classes);
    }
    match slice(first) {
        Some((source, split, range)) => {
            let all = source?.of_size(shape[1]).load(split)?;
            let end = range.end.min(all.len());
            ensure!(range.start < end, "{first}: the slice is empty, the set has {} images", all.len());
            ensure!(all.shape == shape, "{first}: images are {:?}, the model takes {shape:?}", all.shape);
            let images = all.select(&(range.start..end).collect::<Vec<_>>());
            let names = images.index.iter().map(|i| format!("image {i}")).collect();
            Ok(Input { images, labelled: true, names, bad: vec![] })
        }
        None => bail!("--images {first}: no such file or folder, and not a slice like cifar10:test[0..16]"),
    }
}

/// `NAME[:DIR]:SPLIT[A..B]`.
pub fn slice(text: &str) -> Option<(Result<Source>, Split, std::ops::Range<usize>)> {
    let (head, range) = text.strip_suffix(']')?.split_once('[')?;
    let (name, split) = head.rsplit_once(':')?;
    let split = match split {
        "test" => Split::Test,
        "train" => Split::Train,
        _ => return None,
    };
    let (start, end) = range.split_once("..")?;
    let start = if start.is_empty() { 0 } else { start.parse().ok()? };
    let end = if end.is_empty() { usize::MAX } else { end.parse().ok()? };
    Some((Source::parse(name), split, start..end))
}

fn files(paths: Vec<PathBuf>, shape: [usize; 3], classes: usize) -> Result<Input> {
    let [_, h, w] = shape;
    ensure!(h == w, "the model takes {h} x {w} images; files are read for square models only");
    let (mut pixels, mut names, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        match read_image(&path, Some(h)) {
            Ok((image, _)) => {
                pixels.extend(image);
                names.push(path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()));
            }
            Err(e) => bad.push(format!("{e:#}")),
        }
    }
    let images = Images::new(pixels, vec![0; names.len()], shape, classes)?;
    Ok(Input { images, labelled: false, names, bad })
}

fn tensors(path: &Path, shape: [usize; 3], classes: usize) -> Result<Input> {
    let file = File::read(path)?;
    let found = file.shapes()?;
    let dims =
        found.get("images_u8").with_context(|| format!("{} holds no tensor images_u8 (n, 3, h, w)", path.display()))?;
    ensure!(
        dims.len() == 4 && dims[1..] == shape,
        "{}: images_u8 is {dims:?}, the model takes (n, {}, {}, {})",
        path.display(),
        shape[0],
        shape[1],
        shape[2]
    );
    let pixels = file.integers("images_u8", 255)?.into_iter().map(|p| p as u8).collect();
    let labelled = found.contains_key("labels");
    let labels = if labelled { file.integers("labels", classes as u32 - 1)? } else { vec![0; dims[0]] };
    ensure!(labels.len() == dims[0], "{}: {} images, but {} labels", path.display(), dims[0], labels.len());
    let names = (0..dims[0]).map(|i| format!("image {i}")).collect();
    Ok(Input { images: Images::new(pixels, labels, shape, classes)?, labelled, names, bad: vec![] })
}
