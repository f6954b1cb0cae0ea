use anyhow::{Context, Result};
use cams::methods::Methods;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use trainer::config::{Loss, Optim};
use trainer::distill::{optimizers, terms};
use trainer::{data, models};

use super::Done;

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// Explanation methods and their hyper-parameters.
    Methods,
    /// Architectures.
    Models,
    /// Data sets.
    Datasets,
    /// Loss terms, distances and their options.
    Losses,
    /// Optimizers and their options.
    Optimizers,
}

/// (name, about, options with defaults).
type Item = (String, String, Value);

/// `trainer list`.
pub(super) fn run(what: Option<What>) -> Result<Done> {
    let mut text = String::new();
    let mut items = Vec::new();
    for kind in What::value_variants().iter().filter(|k| what.is_none_or(|w| w == **k)) {
        let word = format!("{kind:?}").to_lowercase();
        text += &format!("{word}\n");
        for (name, about, options) in of(*kind)? {
            text += &lines(&format!("  {name:<16} "), &about);
            let in_loss = in_loss(*kind, &name)?;
            for (key, value) in options.as_object().into_iter().flatten() {
                let other = in_loss.get(key).filter(|other| *other != value);
                let other = other.map(|other| format!(" (in a loss: {other})")).unwrap_or_default();
                text += &lines(&" ".repeat(21), &format!("{key} = {value}{other}"));
            }
            items.push(json!({ "kind": word, "name": name, "about": about, "options": options, "in_loss": in_loss }));
        }
    }
    Ok(Done::Result(text, json!({ "items": items })))
}

/// What follows `start`, broken where a terminal of 80 columns ends.
fn lines(start: &str, what: &str) -> String {
    let indent = " ".repeat(start.len().min(21));
    let options = textwrap::Options::new(80).initial_indent(start).subsequent_indent(&indent).break_words(false);
    textwrap::fill(what, options) + "\n"
}

fn of(kind: What) -> Result<Vec<Item>> {
    Ok(match kind {
        What::Methods => {
            let methods = Methods::default();
            let defaults = serde_json::to_value(&methods)?;
            let item = |name: &&str| -> Result<Item> {
                let method = methods.get(name).context("listed methods exist")?;
                let about = format!("in a loss: {}", method.differentiable().sentence());
                Ok((name.to_string(), about, defaults[*name].clone()))
            };
            Methods::NAMES.iter().map(item).collect::<Result<_>>()?
        }
        What::Models => {
            let own = (
                "layers".to_string(),
                "one's own, from a list of [[student.layers]]: conv, bn, relu, pool, residual, cut, linear".to_string(),
                json!({}),
            );
            let options =
                |f: &models::Family| f.options.iter().map(|c| (c.name.to_string(), json!(c.words[0]))).collect();
            let named =
                models::LIST.iter().map(|f| (f.pattern.to_string(), f.about.to_string(), Value::Object(options(f))));
            named.chain([own]).collect()
        }
        What::Datasets => data::LIST.iter().map(|d| (d.name.to_string(), d.about.to_string(), json!({}))).collect(),
        What::Losses => {
            let defaults = serde_json::to_value(Loss::default())?;
            let own = |t: &terms::Entry| if t.has_table { defaults[t.name].clone() } else { chosen(&defaults, t.keys) };
            terms::LIST.iter().map(|t| (t.name.to_string(), t.about.to_string(), own(t))).collect()
        }
        What::Optimizers => {
            let defaults = serde_json::to_value(Optim::default())?;
            let own = |o: &optimizers::Entry| chosen(&defaults, o.keys);
            optimizers::LIST.iter().map(|o| (o.name.to_string(), o.about.to_string(), own(o))).collect()
        }
    })
}

/// What a loss uses where nothing is said, of a method.
fn in_loss(kind: What, name: &str) -> Result<Value> {
    let mut methods = Methods::default();
    methods.settle_in_loss(&|_, _| false);
    Ok(if kind == What::Methods { serde_json::to_value(&methods)?[name].clone() } else { Value::Null })
}

/// Some keys of an object.
fn chosen(object: &Value, keys: &[&str]) -> Value {
    Value::Object(keys.iter().map(|k| (k.to_string(), object[*k].clone())).collect::<Map<_, _>>())
}
