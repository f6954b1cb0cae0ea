use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use trainer::config::{table, typed};
use trainer::evaluate::judge::Found;
use trainer::evaluate::seeds::{self, Seeds};
use trainer::evaluate::{faithfulness, localization};
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
    /// Average Drop and Increase, insertion and deletion, ROAD (Tables 1 and 2).
    #[command(after_help = "Example:\n  trainer evaluate faithfulness configs/faithfulness.toml")]
    Faithfulness(EvaluateArgs),
    /// The energy-based pointing game and the pointing game (Table 3).
    #[command(after_help = "Example:\n  trainer evaluate localization configs/localization.toml")]
    Localization(EvaluateArgs),
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
        EvaluateCommand::Faithfulness(args) => {
            let mut settings: faithfulness::Settings = typed(table(&args.configs, &args.set)?)?;
            settings.faithfulness.seed = global.seed.unwrap_or(settings.faithfulness.seed);
            let (device, bar) = (global.device()?, Bar::new(global.quiet));
            let found = faithfulness::run(&settings, &device, &mut |done, of| bar.show(done, of))?;
            show(&found, &FAITHFULNESS)
        }
        EvaluateCommand::Localization(args) => {
            let mut settings: localization::Settings = typed(table(&args.configs, &args.set)?)?;
            settings.localization.seed = global.seed.unwrap_or(settings.localization.seed);
            let (device, bar) = (global.device()?, Bar::new(global.quiet));
            let found = localization::run(&settings, &device, &mut |done, of| bar.show(done, of))?;
            show(&found, &LOCALIZATION)
        }
    }
}

/// (figure, heading, digits) of a table, in the order of its columns.
type Columns = [(&'static str, &'static str, usize)];

const FAITHFULNESS: [(&str, &str, usize); 9] = [
    ("average_drop", "drop %", 1),
    ("average_increase", "increase %", 1),
    ("average_drop_muted", "drop % (muted)", 1),
    ("average_increase_muted", "increase % (muted)", 1),
    ("insertion", "insertion", 3),
    ("deletion", "deletion", 3),
    ("road", "ROAD", 3),
    ("complexity", "complexity", 2),
    ("entropy", "entropy", 2),
];

const LOCALIZATION: [(&str, &str, usize); 3] =
    [("proportion", "proportion %", 1), ("hit", "hit %", 1), ("box_area", "box area %", 1)];

/// How many images are done, on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(quiet: bool) -> Bar {
        let bar = ProgressBar::new(0);
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{bar:16} {pos}/{len} images  ETA {eta}");
        Bar(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    fn show(&self, done: usize, of: usize) {
        self.0.set_length(of as u64);
        self.0.set_position(done as u64);
        if done >= of {
            self.0.finish_and_clear();
        }
    }
}

/// A row per method: means and half of their 95 % intervals.
fn show(found: &Found, columns: &Columns) -> Result<Done> {
    let known = |figure: &str| found.rows.iter().any(|r| r.figures.contains_key(figure));
    let columns: Vec<_> = columns.iter().filter(|(figure, ..)| known(figure)).collect();
    let mut heads = vec![column("method", "method", 0), column("n", "n", 0)];
    heads.extend(columns.iter().map(|(figure, heading, digits)| column(figure, *heading, *digits)));
    heads.push(column("seconds", "s a map", 3));
    let mut table = Table::new(heads);
    for row in &found.rows {
        let mut entries: Vec<Entry> = vec![row.method.clone().into(), row.n.into()];
        entries.extend(columns.iter().map(|(figure, ..)| match row.figures.get(*figure) {
            Some(i) if i.low.is_finite() => Entry::Spread(i.mean, (i.high - i.low) / 2.0),
            Some(i) => i.mean.into(),
            None => Entry::Nothing,
        }));
        entries.push(row.seconds.into());
        table.rows.push(entries);
    }
    let mut text = table.text();
    text += "\u{b1} half of a 95 % interval over images (bootstrap). random: the floor. ones: a map that is 1 everywhere.\n";
    found.notes.iter().for_each(|note| text += &format!("{note}\n"));
    let rows = found.rows.iter().map(|row| {
        let mut value = json!({ "method": row.method, "n": row.n, "seconds": row.seconds });
        for (figure, i) in &row.figures {
            value[figure] = json!(i.mean);
            value[format!("{figure}_se")] = json!(i.se);
            value[format!("{figure}_interval")] = json!([i.low, i.high]);
        }
        value
    });
    Ok(Done::Result(text, json!({ "rows": rows.collect::<Vec<_>>(), "notes": found.notes })))
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
