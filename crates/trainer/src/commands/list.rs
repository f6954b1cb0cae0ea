use anyhow::{Context, Result};
use cams::methods::Methods;
use serde_json::{Value, json};

use crate::cli::Done;
use crate::config::Loss;
use crate::{data, models};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Explanation methods and their hyper-parameters.
    Methods,
    /// Architectures.
    Models,
    /// Data sets.
    Datasets,
    /// Loss terms, distances and their options.
    Losses,
}

/// (name, about, options with defaults).
type Item = (String, String, Value);

/// `trainer list`.
pub fn run(what: Option<What>) -> Result<Done> {
    let all = [What::Methods, What::Models, What::Datasets, What::Losses];
    let mut text = String::new();
    let mut items = Vec::new();
    for kind in all.into_iter().filter(|k| what.is_none_or(|w| w == *k)) {
        text += &format!("{}\n", format!("{kind:?}").to_lowercase());
        for (name, about, options) in of(kind)? {
            text += &format!("  {name:<16} {about}\n");
            for (key, value) in options.as_object().into_iter().flatten() {
                text += &format!("  {:16}   {key} = {value}\n", "");
            }
            items.push(
                json!({ "kind": format!("{kind:?}").to_lowercase(), "name": name, "about": about, "options": options }),
            );
        }
    }
    Ok(Done::Result(text, json!({ "items": items })))
}

fn of(kind: What) -> Result<Vec<Item>> {
    Ok(match kind {
        What::Methods => {
            let defaults = serde_json::to_value(Methods::default())?;
            let methods = Methods::default();
            let about = |name: &str| -> Result<String> {
                let method = methods.get(name).context("listed methods exist")?;
                Ok(format!("in a loss: {}", method.differentiable().sentence()))
            };
            Methods::NAMES
                .iter()
                .map(|n| Ok((n.to_string(), about(n)?, defaults[*n].clone())))
                .collect::<Result<_>>()?
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
            let item = |name: &str, about: &str, keys: &[&str]| {
                let options =
                    keys.iter().map(|k| (k.to_string(), defaults[*k].clone())).collect::<serde_json::Map<_, _>>();
                (name.to_string(), about.to_string(), Value::Object(options))
            };
            vec![
                item("ce", "cross-entropy with the labels", &["label_smoothing"]),
                item("kd", "KL divergence from the teacher's softened output, times T^2", &["temperature"]),
                item(
                    "explanation",
                    "distance of student and teacher maps: raw_l2, at_l2, cosine, all_class_pooled",
                    &["interpreter", "distance", "class", "layer", "gradient", "relu", "control"],
                ),
                item("attention", "activation attention transfer at layer1, layer2, layer3", &[]),
            ]
        }
    })
}
