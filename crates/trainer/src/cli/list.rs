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
            text += &format!("  {name:<16} {about}\n");
            for (key, value) in options.as_object().into_iter().flatten() {
                text += &format!("  {:16}   {key} = {value}\n", "");
            }
            items.push(json!({ "kind": word, "name": name, "about": about, "options": options }));
        }
    }
    Ok(Done::Result(text, json!({ "items": items })))
}

fn of(kind: What) -> Result<Vec<Item>> {
    Ok(match kind {
        What::Methods => {
            let methods = Methods::default();
            let mut in_loss = Methods::default();
            in_loss.settle_in_loss(&|_, _| false);
            let (defaults, in_loss) = (serde_json::to_value(&methods)?, serde_json::to_value(&in_loss)?);
            let about = |name: &str| -> Result<String> {
                let method = methods.get(name).context("listed methods exist")?;
                // What a loss uses where nothing else is said.
                let own = in_loss[name].as_object().into_iter().flatten();
                let other = own.filter(|(key, value)| defaults[name][key.as_str()] != **value);
                let other: String = other.map(|(key, value)| format!(", with {key} = {value}")).collect();
                Ok(format!("in a loss: {}{other}", method.differentiable().sentence()))
            };
            let item = |name: &&str| Ok((name.to_string(), about(name)?, defaults[*name].clone()));
            Methods::NAMES.iter().map(item).collect::<Result<_>>()?
        }
        What::Models => {
            let own = (
                "layers".to_string(),
                "one's own, from a list of [[student.layers]]: conv, bn, relu, pool, residual, cut, linear".to_string(),
                json!({}),
            );
            let named = models::LIST.iter().map(|f| (f.pattern.to_string(), f.about.to_string(), json!({})));
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

/// Some keys of an object.
fn chosen(object: &Value, keys: &[&str]) -> Value {
    Value::Object(keys.iter().map(|k| (k.to_string(), object[*k].clone())).collect::<Map<_, _>>())
}
