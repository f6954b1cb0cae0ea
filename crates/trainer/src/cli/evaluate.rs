mod jobs;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use trainer::config::{merge, table, typed};
use trainer::evaluate::judge::{Found, LIKENESS, Published, Share};
use trainer::evaluate::sanity::{self, Sanity};
use trainer::evaluate::seeds::{self, Seeds};
use trainer::evaluate::{faithfulness, localization};
use trainer::report::statistics::Interval;
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
    /// Whether maps depend on what the model has learned: its layers drawn anew, one after another.
    #[command(after_help = "Example:\n  trainer evaluate sanity configs/sanity.toml")]
    Sanity(EvaluateArgs),
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
    /// Processes that measure side by side, each some of the images, with its share of the threads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) jobs: u16,
    /// Which of the processes this is: measure its images, say how far it is, and stop.
    #[arg(long, hide = true, value_name = "I/N", value_parser = share)]
    pub(super) share: Option<Share>,
}

/// `0/2`.
fn share(text: &str) -> Result<Share, String> {
    let numbers = text.split_once('/').and_then(|(at, of)| Some(Share { at: at.parse().ok()?, of: of.parse().ok()? }));
    numbers.filter(|share| share.at < share.of).ok_or_else(|| format!("\"{text}\" is no share such as 0/2"))
}

impl EvaluateArgs {
    /// Has the images measured by several processes if that was asked for, and then measures what they have left.
    fn measure<T>(
        &self,
        what: &str,
        mut record: Option<PathBuf>,
        global: &Global,
        run: impl FnOnce(Option<PathBuf>, &Device, &mut dyn FnMut(usize, usize)) -> Result<T>,
    ) -> Result<T> {
        let bar = Bar::new(global.quiet);
        // Lives as long as its record is read.
        let mut folder = None;
        if self.jobs > 1 && self.share.is_none() {
            let path = match record.take() {
                Some(path) => path,
                None => folder.insert(tempfile::tempdir()?).path().join("record.jsonl"),
            };
            jobs::deal(what, self, global, &path, &bar)?;
            record = Some(path);
        }
        let told = self.share.is_some();
        run(record, &global.device()?, &mut |done, of| {
            bar.show(done, of);
            if told && writeln!(std::io::stdout(), "{}", jobs::told(done, of)).is_err() {
                // Whoever dealt the images is gone.
                std::process::exit(1);
            }
        })
    }

    /// The table; of a share there is none.
    fn shown(&self, table: impl FnOnce() -> Result<Done>) -> Result<Done> {
        if self.share.is_some() { Ok(Done::Result(String::new(), Value::Null)) } else { table() }
    }
}

/// `trainer evaluate`.
pub(super) fn run(command: &EvaluateCommand, global: &Global) -> Result<Done> {
    match command {
        EvaluateCommand::Seeds(args) => seeds(args, global),
        EvaluateCommand::Faithfulness(args) => {
            let mut settings: faithfulness::Settings = typed(table(&args.configs, &args.set)?)?;
            settings.faithfulness.seed = global.seed.unwrap_or(settings.faithfulness.seed);
            settings.interpreter = seeded(settings.interpreter, global)?;
            let record = settings.faithfulness.record.take();
            let found = args.measure("faithfulness", record, global, |record, device, say| {
                settings.faithfulness.record = record;
                faithfulness::run(&settings, args.share, device, say)
            })?;
            args.shown(|| show(&found, settings.published.as_ref(), &FAITHFULNESS, FLOOR))
        }
        EvaluateCommand::Localization(args) => {
            let mut settings: localization::Settings = typed(table(&args.configs, &args.set)?)?;
            settings.localization.seed = global.seed.unwrap_or(settings.localization.seed);
            settings.interpreter = seeded(settings.interpreter, global)?;
            let record = settings.localization.record.take();
            let found = args.measure("localization", record, global, |record, device, say| {
                settings.localization.record = record;
                localization::run(&settings, args.share, device, say)
            })?;
            args.shown(|| show(&found, settings.published.as_ref(), &LOCALIZATION, FLOOR))
        }
        EvaluateCommand::Sanity(args) => {
            let mut settings: sanity::Settings = typed(table(&args.configs, &args.set)?)?;
            settings.sanity.seed = global.seed.unwrap_or(settings.sanity.seed);
            settings.interpreter = seeded(settings.interpreter, global)?;
            let record = settings.sanity.record.take();
            let Sanity { found, steps } = args.measure("sanity", record, global, |record, device, say| {
                settings.sanity.record = record;
                sanity::run(&settings, args.share, device, say)
            })?;
            let columns: Vec<Column> = steps.iter().map(|step| (step.as_str(), step.as_str(), 2)).collect();
            args.shown(|| show(&found, None, &columns, CORRELATIONS))
        }
    }
}

/// Methods that draw do it by `--seed`, unless their own tables say by which.
fn seeded(interpreter: toml::Table, global: &Global) -> Result<toml::Table> {
    let mut all = global.seeded_methods()?;
    merge(&mut all, interpreter);
    Ok(all)
}

/// Figure, heading and digits.
type Column<'c> = (&'c str, &'c str, usize);

const FAITHFULNESS: [Column; 12] = [
    ("average_drop", "drop %", 1),
    ("average_increase", "increase %", 1),
    ("average_drop_muted", "drop % (muted)", 1),
    ("average_increase_muted", "increase % (muted)", 1),
    ("insertion", "insertion", 3),
    ("deletion", "deletion", 3),
    ("road", "ROAD", 3),
    ("complexity", "complexity", 2),
    ("entropy", "entropy", 2),
    ("coherency", "coherency", 2),
    ("adcc", "ADCC", 2),
    (LIKENESS, "likeness", 2),
];

const LOCALIZATION: [Column; 4] =
    [("proportion", "proportion %", 1), ("hit", "hit %", 1), ("box_area", "box area %", 1), (LIKENESS, "likeness", 2)];

const FLOOR: &str = "random: the floor. ones: a map that is 1 everywhere.";
const CORRELATIONS: &str = "Rank correlation (Spearman) with the whole model's map, once a part and all behind\n\
    it are drawn anew: the mean over the draws under which the map varies.";

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

/// Rows of methods under columns of figures: means, and half of their 95 % intervals; then what they are less the first
/// method's on the same images, and what others have published.
fn show(found: &Found, published: Option<&Published>, columns: &[Column], legend: &str) -> Result<Done> {
    let known = |(figure, ..): &&Column| found.rows.iter().any(|r| r.figures.contains_key(*figure));
    let columns: Vec<&Column> = columns.iter().filter(known).collect();
    let entry = |interval: Option<&Interval>| match interval {
        Some(i) if i.low.is_finite() => Entry::Spread(i.mean, (i.high - i.low) / 2.0),
        Some(i) => i.mean.into(),
        None => Entry::Nothing,
    };
    let heads = |columns: &[&Column]| -> Vec<_> {
        columns.iter().map(|(figure, heading, digits)| column(*figure, *heading, *digits)).collect()
    };
    let mut table = Table::new([vec![column("method", "method", 0), column("n", "n", 0)], heads(&columns)].concat());
    table.columns.push(column("seconds", "s a map", 3));
    for row in &found.rows {
        let figures = columns.iter().map(|(figure, ..)| entry(row.figures.get(*figure)));
        let head = [row.method.clone().into(), row.n.into()];
        table.rows.push(head.into_iter().chain(figures).chain([row.seconds.into()]).collect());
    }
    let mut text = table.text();
    text += &format!("\u{b1} half of a 95 % interval over images (bootstrap).\n{legend}\n");
    let (first, others) = found.rows.split_first().context("there is no method to show")?;
    if others.iter().any(|row| !row.differences.is_empty()) {
        let mut table =
            Table::new([vec![column("method", format!("less {}", first.method), 0)], heads(&columns)].concat());
        for row in others {
            let figures = columns.iter().map(|(figure, ..)| entry(row.differences.get(*figure)));
            table.rows.push(std::iter::once(row.method.clone().into()).chain(figures).collect());
        }
        text += &format!("\nDifferences, image by image:\n{}", table.text());
    }
    if let Some(published) = published {
        text += &format!("\nPublished ({}) beside ours:\n", published.source);
        text += &beside(found, published, &columns).text();
        text += &format!("What differs: {}\n", published.differs);
    }
    found.notes.iter().for_each(|note| text += &format!("{note}\n"));
    let rows = found.rows.iter().map(|row| {
        let mut value = json!({ "method": row.method, "n": row.n, "seconds": row.seconds });
        for (figure, i) in &row.figures {
            value[figure] = json!(i.mean);
            value[format!("{figure}_n")] = json!(i.n);
            value[format!("{figure}_se")] = json!(i.se);
            value[format!("{figure}_interval")] = json!([i.low, i.high]);
        }
        for (figure, i) in &row.differences {
            value[format!("{figure}_difference")] = json!(i.mean);
            value[format!("{figure}_difference_interval")] = json!([i.low, i.high]);
        }
        for (curve, points) in &row.curves {
            let of = |point: fn(&Interval) -> f64| points.iter().map(point).collect::<Vec<_>>();
            value[format!("{curve}_curve")] =
                json!({ "mean": of(|i| i.mean), "low": of(|i| i.low), "high": of(|i| i.high) });
        }
        value
    });
    let rows = rows.collect::<Vec<_>>();
    Ok(Done::Result(
        text,
        json!({ "rows": rows, "disputed": found.disputed, "published": published, "notes": found.notes }),
    ))
}

/// What others have published, and ours, by methods.
fn beside(found: &Found, published: &Published, columns: &[&Column]) -> Table {
    let known: Vec<_> = columns.iter().filter(|(figure, ..)| published.figures.contains_key(*figure)).collect();
    // With the digits that it was published with: 39.95 is not 40.0.
    let digits = |figure: &str| published.figures[figure].values().map(|value| decimals(*value)).max().unwrap_or(0);
    let heads = known.iter().flat_map(|(figure, heading, ours)| {
        [column(*figure, *heading, *ours), column("published", "published", digits(figure))]
    });
    let mut table = Table::new(std::iter::once(column("method", "method", 0)).chain(heads).collect());
    for row in &found.rows {
        let theirs = |figure: &str| published.figures.get(figure).and_then(|of| of.get(&row.method)).copied();
        if known.iter().all(|(figure, ..)| theirs(figure).is_none()) {
            continue;
        }
        let entries = known.iter().flat_map(|(figure, ..)| {
            [Entry::from(row.figures.get(*figure).map(|i| i.mean)), Entry::from(theirs(figure))]
        });
        table.rows.push(std::iter::once(row.method.clone().into()).chain(entries).collect());
    }
    table
}

/// How many digits a number has behind its point, as it is written shortest.
fn decimals(value: f64) -> usize {
    value.to_string().split_once('.').map_or(0, |(_, behind)| behind.len())
}

fn seeds(args: &EvaluateArgs, global: &Global) -> Result<Done> {
    ensure!(args.jobs == 1, "evaluate seeds has no --jobs: its threads share the games of an image");
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use trainer::evaluate::judge::Row;
    use trainer::report::statistics::bootstrap;

    #[test]
    fn what_was_published_keeps_its_digits() {
        let row = Row {
            method: "grad_cam".into(),
            n: 2,
            figures: BTreeMap::from([("proportion".into(), bootstrap(&[40.0, 41.0], 0))]),
            differences: BTreeMap::new(),
            curves: BTreeMap::new(),
            seconds: 0.0,
        };
        let found = Found { rows: vec![row], disputed: vec![], notes: vec![] };
        let theirs = BTreeMap::from([("grad_cam".to_string(), 39.95)]);
        let published = Published {
            source: "a paper".into(),
            differs: "all".into(),
            figures: BTreeMap::from([("proportion".into(), theirs)]),
        };
        let columns: Vec<&Column> = LOCALIZATION.iter().collect();
        let text = beside(&found, &published, &columns).text();
        assert_eq!(text, "method    proportion %  published\ngrad_cam          40.5      39.95\n");
    }
}
