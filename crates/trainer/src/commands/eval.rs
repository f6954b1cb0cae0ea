use anyhow::Result;
use serde_json::json;

use super::load_model;
use crate::cli::{Done, EvalArgs, Global};
use crate::data::Source;
use crate::evaluate::evaluate;

/// `trainer eval`.
pub fn run(args: &EvalArgs, global: &Global) -> Result<Done> {
    let network = load_model(&args.model, &[], &global.device()?)?;
    let images = Source::parse(&args.data)?.of_size(network.architecture.graph.shapes[0].h).load(args.split)?;
    if !global.quiet {
        images.notes.iter().for_each(|note| eprintln!("{note}"));
    }
    let e = evaluate(&network, &images)?;
    let text = format!("error {:.2} %  loss {:.4}  (n = {})\n", e.error, e.loss, e.n);
    Ok(Done::Result(text, json!({ "error": e.error, "error_per_class": e.error_per_class, "loss": e.loss, "n": e.n })))
}
