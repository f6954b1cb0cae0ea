use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use trainer::config::{table, typed};
use trainer::evaluate::seeds::{self, Seeds};
use trainer::report::table::{Entry, Table, column};

use super::{Done, Global};

/// `trainer evaluate`.
#[derive(Subcommand)]
pub(super) enum EvaluateCommand {
    /// How far sampled Shapley maps, and a metric of them, depend on the seed.
    #[command(
        after_help = "Example:\n  trainer evaluate seeds configs/seeds.toml --set model.checkpoint=runs/a/last.safetensors"
    )]
    Seeds(EvaluateArgs),
}

/// Arguments of `trainer evaluate ...`.
#[derive(Args)]
pub(super) struct EvaluateArgs {
    /// Configuration files, later ones win.
    #[arg(required = true, value_name = "CONFIG")]
    pub(super) configs: Vec<PathBuf>,
    /// A value of the configuration.
    #[arg(long, value_name = "a.b=V")]
    pub(super) set: Vec<String>,
}

/// `trainer evaluate`.
pub(super) fn run(command: &EvaluateCommand, global: &Global) -> Result<Done> {
    match command {
        EvaluateCommand::Seeds(args) => seeds(args, global),
    }
}

fn seeds(args: &EvaluateArgs, global: &Global) -> Result<Done> {
    let mut config: Seeds = typed(table(&args.configs, &args.set)?)?;
    config.seeds.first = global.seed.unwrap_or(config.seeds.first);
    let games = seeds::run(&config, &global.device()?, global.quiet)?;
    let mut table = Table::new(vec![
        column("score", "score", 0),
        column("fill", "fill", 0),
        column("permutations", "permutations", 0),
        column("correlation", "correlation", 4),
        column("error", "error", 4),
        column("average_drop", "drop %", 2),
        column("average_drop_seed_sd", "of seeds", 3),
    ]);
    for g in &games {
        table.rows.push(vec![
            g.score.clone().into(),
            g.fill.clone().into(),
            g.permutations.into(),
            Entry::Spread(g.correlation.mean, g.correlation.se),
            Entry::Spread(g.error.mean, g.error.se),
            Entry::Spread(g.average_drop.mean, g.average_drop.se),
            g.average_drop_seed_sd.into(),
        ]);
    }
    let text = format!(
        "{}± standard errors over images. correlation: between the maps of two seeds; error: root\n\
         mean square difference from the reference (exact, or a long run), over the map's own;\n\
         drop: Average Drop, and its standard deviation between seeds.\n",
        table.text()
    );
    Ok(Done::Result(text, json!({ "rows": games })))
}
