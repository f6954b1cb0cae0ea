use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use trainer::data::{self, Source};
use trainer::evaluate::evaluate;
use trainer::terminal::say;

use super::model::ModelArgs;
use super::{Done, Global};

/// Arguments of `trainer eval`.
#[derive(Args)]
pub(super) struct EvalArgs {
    /// The model.
    #[command(flatten)]
    model: ModelArgs,
    /// The data set, and perhaps its folder.
    #[arg(long, value_name = "NAME[:DIR]")]
    data: String,
    /// Which part.
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
}

/// Part of a data set.
#[derive(Clone, Copy, ValueEnum)]
enum Split {
    Train,
    Test,
}

/// `trainer eval`.
pub(super) fn run(args: &EvalArgs, global: &Global) -> Result<Done> {
    let network = args.model.load(&[], &global.device()?)?;
    let split = match args.split {
        Split::Train => data::Split::Train,
        Split::Test => data::Split::Test,
    };
    let images = Source::parse(&args.data)?.of_size(network.architecture.graph.shapes[0].h).load(split)?;
    if !global.quiet {
        images.notes.iter().for_each(say);
    }
    let e = evaluate(&network, &images)?;
    ensure!(
        e.loss.is_finite(),
        "the model answers some images with {}: its weights overflow, or it is given other pixels than it was trained with (mean, std)",
        e.loss
    );
    let map = e.mean_average_precision.map_or(String::new(), |map| format!("  mean average precision {map:.2} %"));
    let text = format!("error {:.2} %  loss {:.4}{map}  (n = {})\n", e.error, e.loss, e.n);
    let mut value = json!({ "error": e.error, "error_per_class": e.error_per_class, "loss": e.loss, "n": e.n });
    if let Some(map) = e.mean_average_precision {
        value["mean_average_precision"] = json!(map);
    }
    Ok(Done::Result(text, value))
}
