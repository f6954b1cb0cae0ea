use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cams::methods::Methods;
use clap::Args;
use serde_json::{Value, json};
use trainer::checkpoint::{Entry, Metadata, write_tensors};
use trainer::config::{check_methods, parse_set, typed};
use trainer::error::unknown;
use trainer::explain::gallery::{self, Strip};
use trainer::explain::{Class, Explained, Input, Outcome, explain, input};
use trainer::files::{check_output, make_parent};
use trainer::report::table::{Table, column};
use trainer::terminal::say;

use super::model::{ModelArgs, load};
use super::{Done, Global};

/// Arguments of `trainer explain`.
#[derive(Args)]
pub(super) struct ExplainArgs {
    /// The model.
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Image files, a folder, a slice like cifar10:test[0..16], or a safetensors file with images_u8.
    #[arg(long, required = true, num_args = 1.., value_name = "X")]
    pub(super) images: Vec<String>,
    /// Methods, separated by commas, or all.
    #[arg(long, default_value = "all", value_name = "M[,M...]")]
    pub(super) method: String,
    /// A method's hyper-parameter.
    #[arg(long, value_name = "INTERPRETER.M.KEY=V")]
    pub(super) set: Vec<String>,
    /// The layer to explain.
    #[arg(long, default_value = "last", value_name = "LAYER")]
    pub(super) layer: String,
    /// The class to explain: label, top1 or a number (default: label where there are labels, else top1).
    #[arg(long, value_name = "CLASS")]
    pub(super) class: Option<String>,
    /// Write the model's maps to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// Write overlays and an index.html into this folder.
    #[arg(long, value_name = "DIR")]
    pub(super) gallery: Option<PathBuf>,
    /// Another checkpoint, a teacher's say, whose maps of the same classes stand under the model's own.
    #[arg(long, value_name = "FILE")]
    pub(super) beside: Option<PathBuf>,
}

/// `trainer explain`.
pub(super) fn run(args: &ExplainArgs, global: &Global) -> Result<Done> {
    let (methods, names) = methods(args, global)?;
    let layers = vec![args.layer.clone()];
    if let Some(out) = &args.out {
        let images = input::files_of(&args.images)?;
        let read: Vec<PathBuf> =
            [args.model.path()?.into()].into_iter().chain(args.beside.clone()).chain(images).collect();
        check_output(out, &read)?;
    }
    let network = args.model.load(&layers, &global.device()?)?;
    let input = input::read(&args.images, &network)?;
    ensure!(!input.images.is_empty(), "no image could be read: {}", input.bad.join("; "));
    let class = Class::parse("--class", args.class.as_deref(), input.labelled)?;
    // Both models are ready before any of the work is done.
    let other = args.beside.as_ref().map(|path| -> Result<_> {
        let other = load(path, None, &layers, &global.device()?)?;
        input::check(&input, &other).with_context(|| format!("--beside {}", path.display()))?;
        Ok(other)
    });
    let other = other.transpose()?;
    let asked: Vec<_> = names.iter().filter_map(|name| Some((*name, methods.get(name)?))).collect();
    let found = explain(&asked, &network, &args.layer, &input.images, &class)?;
    let classes = Class::Given(found.classes.clone());
    let beside = other.map(|other| explain(&asked, &other, &args.layer, &input.images, &classes)).transpose()?;
    for note in &input.images.notes {
        say(note);
    }
    for line in input.bad.iter().chain(found.skipped.iter().map(|(_, why)| why)) {
        say(format!("skipped {line}"));
    }
    for (_, line) in beside.iter().flat_map(|e| &e.skipped) {
        say(format!("beside: skipped {line}"));
    }
    for o in &found.outcomes {
        let bad = images_not_finite(o);
        if bad > 0 {
            say(format!("{}: the maps of {bad} of {} images are not finite", o.method, input.images.len()));
        }
    }
    if let Some(path) = &args.out {
        make_parent(path)?;
        write(path, &found, input.images.len())?;
    }
    if let Some(dir) = &args.gallery {
        let (captions, beside) = (captions(&input, &found), beside.as_ref());
        let other = beside.map(Explained::probabilities).unwrap_or_default();
        let captions: Vec<String> = captions
            .into_iter()
            .enumerate()
            .map(|(i, caption)| match other.get(i) {
                Some(p) => format!("{caption}; beside: {p:.1} %"),
                None => caption,
            })
            .collect();
        gallery::write(dir, &input.images, &captions, &strips(&found, beside))?;
    }
    let n = input.images.len();
    let mut text = table(&found, n).text();
    if let Some(beside) = &beside {
        text += &format!("beside:\n{}", table(beside, n).text());
    }
    if let Some(dir) = &args.gallery {
        text += &format!("pictures: {}\n", dir.join("index.html").display());
    }
    let mut value = json!({ "rows": rows(&found, n), "bad_images": input.bad, "skipped": why(&found) });
    if let Some(beside) = &beside {
        value["beside"] = json!({ "rows": rows(beside, n), "skipped": why(beside) });
    }
    Ok(Done::Result(text, value))
}

/// Images whose map holds a value that is no number.
fn images_not_finite(o: &Outcome) -> usize {
    let [h, w] = o.shape;
    o.values.chunks((h * w).max(1)).filter(|map| map.iter().any(|v| !v.is_finite())).count()
}

/// Why methods are not there.
fn why(explained: &Explained) -> Vec<&str> {
    explained.skipped.iter().map(|(_, why)| why.as_str()).collect()
}

fn table(explained: &Explained, n: usize) -> Table {
    let mut table = Table::new(vec![
        column("method", "method", 0),
        column("estimator", "estimator", 0),
        column("n", "n", 0),
        column("evaluations", "evaluations", 0),
        column("seconds", "seconds", 3),
    ]);
    for o in &explained.outcomes {
        table.rows.push(vec![
            o.method.clone().into(),
            o.estimator().into(),
            n.into(),
            o.evaluations.into(),
            o.seconds.into(),
        ]);
    }
    table
}

fn rows(explained: &Explained, n: usize) -> Vec<Value> {
    let row = |o: &Outcome| {
        json!({
            "method": o.method, "estimator": o.estimator(), "estimators": o.estimators, "n": n,
            "evaluations": o.evaluations, "seconds": o.seconds, "images_not_finite": images_not_finite(o),
        })
    };
    explained.outcomes.iter().map(row).collect()
}

/// The gallery's rows: each method of the model and, under it, of the one beside it.
fn strips<'a>(found: &'a Explained, beside: Option<&'a Explained>) -> Vec<Strip<'a>> {
    let strip = |o: &'a Outcome, model: &'static str| Strip {
        method: &o.method,
        model,
        estimator: o.estimator(),
        shape: o.shape,
        values: &o.values,
    };
    let mut strips = Vec::new();
    for name in Methods::NAMES {
        let of = |e: &'a Explained| e.outcomes.iter().find(|o| o.method == *name);
        strips.extend(of(found).map(|o| strip(o, "")));
        strips.extend(beside.and_then(of).map(|o| strip(o, "beside")));
    }
    strips
}

/// The methods asked for, configured.
fn methods(args: &ExplainArgs, global: &Global) -> Result<(Methods, Vec<&'static str>)> {
    let mut methods = Methods::default();
    let mut table = global.seeded_methods()?;
    for set in &args.set {
        let mut given = parse_set(set)?;
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

fn write(path: &Path, found: &Explained, n: usize) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for o in &found.outcomes {
        let shape = [n, o.shape[0], o.shape[1]];
        tensors.insert(o.method.to_string(), Entry::f32(&shape, &o.values));
        // A deterministic rule's estimate of its own error is no standard error: each has its own tensor, NaN where the other is.
        for (what, sampled) in [("standard_error", true), ("error_estimate", false)] {
            let of = |e: &str| (e == "mc") == sampled;
            if o.error.is_empty() || !o.estimators.iter().any(|e| of(e)) {
                continue;
            }
            let images = o.error.chunks(shape[1] * shape[2]).zip(&o.estimators);
            let values = images.flat_map(|(error, e)| error.iter().map(move |x| if of(e) { *x } else { f32::NAN }));
            tensors.insert(format!("{}.{what}", o.method), Entry::f32(&shape, &values.collect::<Vec<f32>>()));
        }
    }
    let classes: Vec<i64> = found.classes.iter().map(|c| i64::from(*c)).collect();
    tensors.insert("classes".into(), Entry::i64(&[n], &classes));
    tensors.insert("logits".into(), Entry::f32(&[n, found.logits.len() / n], &found.logits));
    write_tensors(path, &tensors, &Metadata::new())
}

/// What stands under each picture: name, class and its probability.
fn captions(input: &Input, found: &Explained) -> Vec<String> {
    let caption = |((i, name), p): ((usize, &String), f32)| {
        let label = if input.labelled { format!(", label {}", input.images.labels[i]) } else { String::new() };
        format!("{name}: class {} at {p:.1} %{label}", found.classes[i])
    };
    input.names.iter().enumerate().zip(found.probabilities()).map(caption).collect()
}
