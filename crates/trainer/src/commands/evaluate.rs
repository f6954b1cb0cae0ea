use anyhow::Result;
use serde_json::json;

use crate::cli::{Done, EvaluateArgs, Global};
use crate::config::table;
use crate::seeds::{self, Seeds};

/// `trainer evaluate seeds`.
pub fn seeds(args: &EvaluateArgs, global: &Global) -> Result<Done> {
    let mut config: Seeds = crate::config::typed(table(&args.configs, &args.set)?)?;
    config.seeds.first = global.seed.unwrap_or(config.seeds.first);
    let rows = seeds::run(&config, &global.device()?, global.quiet)?;
    let mut text = format!(
        "{:9} {:13} {:>12} {:>18} {:>18} {:>22}\n",
        "score", "fill", "permutations", "map correlation", "error", "average drop %"
    );
    for r in &rows {
        text += &format!(
            "{:9} {:13} {:>12} {:>9.4} ± {:.4} {:>9.4} ± {:.4} {:>8.2} ± {:.2} (seeds {:.3})\n",
            r.score,
            r.fill,
            r.permutations,
            r.correlation.mean,
            r.correlation.se,
            r.error.mean,
            r.error.se,
            r.average_drop.mean,
            r.average_drop.se,
            r.average_drop_seed_sd,
        );
    }
    text += "± standard errors over images; seeds: standard deviation between seeds. error: root mean square difference from the\n\
             reference (exact, or a long run), over the map's own; correlation: between the maps of two seeds.\n";
    Ok(Done::Result(text, json!({ "rows": rows })))
}
