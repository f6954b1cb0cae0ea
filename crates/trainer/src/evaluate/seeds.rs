//! How far sampled Shapley maps depend on their seed: what papers that sample leave out.

use anyhow::{Result, ensure};
use cams::methods::{Computation, Fill, ShapCam};
use cams::metrics::faithfulness::drops;
use cams::metrics::{is_finite, pearson};
use cams::ranges::{Range, Ranges, from};
use cams::{Interpreter, Score, maps};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::subject::{Model, Subject};
use crate::config::check_table;
use crate::data::Images;
use crate::data::loader::Loader;
use crate::explain::{Class, explain};
use crate::nn::{Model as _, Network, Pass};
use crate::report::statistics::{mean, sd};
use crate::terminal::say;

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    /// What is explained.
    pub model: Model,
    /// What is compared.
    #[serde(default)]
    pub seeds: Comparison,
}

/// `[seeds]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparison {
    /// Numbers of sampled permutations.
    pub permutations: Vec<usize>,
    /// Explained scores.
    pub scores: Vec<Score>,
    /// What absent positions get.
    pub fills: Vec<Fill>,
    /// How many seeds.
    pub count: u64,
    /// The first one.
    #[serde(skip_serializing)] // It is checked apart, and may be beyond what TOML can say.
    pub first: u64,
    /// Permutations of the reference, where there is no exact one.
    pub reference: usize,
}

impl Default for Comparison {
    fn default() -> Self {
        Comparison {
            permutations: vec![10, 30, 100, 300, 1000, 3000],
            scores: vec![Score::Logit, Score::Prob, Score::LogProb],
            fills: vec![Fill::Zero, Fill::ChannelMean],
            count: 5,
            first: 0,
            reference: 100_000,
        }
    }
}

/// Numbers of permutations: a standard error needs a few.
const PERMUTATIONS: Range = from(4.0, 1e9);

impl Comparison {
    /// What its numbers may be.
    pub const RANGES: Ranges =
        &[("count", from(2.0, 1000.0)), ("permutations", PERMUTATIONS), ("reference", PERMUTATIONS)];

    fn check(&self) -> Result<()> {
        check_table("seeds", self, Comparison::RANGES)?;
        for (name, none) in [
            ("permutations", self.permutations.is_empty()),
            ("scores", self.scores.is_empty()),
            ("fills", self.fills.is_empty()),
        ] {
            ensure!(!none, "seeds.{name} is empty: it must name at least one");
        }
        // Which looks at no number in a list.
        for (i, given) in self.permutations.iter().enumerate() {
            ensure!(PERMUTATIONS.holds(*given as f64), "seeds.permutations.{i} is {given}; it must be {PERMUTATIONS}");
        }
        ensure!(
            self.first.checked_add(self.count).is_some_and(|end| end < u64::MAX),
            "seeds.first is {}: the last seed would be out of range",
            self.first
        );
        Ok(())
    }
}

/// A mean and its standard error over images.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Standard error.
    pub se: f64,
    /// Images that have a figure.
    pub n: usize,
}

impl Estimate {
    fn of(values: &[f64]) -> Estimate {
        let n = values.len();
        Estimate { mean: mean(values), se: sd(values).unwrap_or(0.0) / (n as f64).sqrt(), n }
    }
}

/// One number of permutations of one game.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Game {
    pub method: &'static str,
    pub score: String,
    pub fill: String,
    pub class: &'static str,
    pub permutations: usize,
    pub seeds: u64,
    pub n: usize,
    /// Pearson correlation of two seeds' maps, mean over pairs.
    pub correlation: Estimate,
    /// Relative root mean square error, mean over seeds.
    pub error: Estimate,
    /// Average Drop in percent (masks min-maxed, 0 elsewhere), mean over seeds.
    pub average_drop: Estimate,
    /// Its standard deviation between seeds, in points.
    pub average_drop_seed_sd: f64,
}

/// Everything that does not depend on the game.
struct Bench {
    network: Network,
    set: Images,
    images: Tensor,
    pass: Pass,
    classes: Tensor,
}

impl Bench {
    fn new(model: &Model, device: &Device) -> Result<Bench> {
        let Subject { network, images: set } = model.load(&[], &Class::Label, device)?;
        ensure!(set.len() > 1, "model.images holds {} image: at least two are needed", set.len());
        let batch = Loader::plain(1).batch(&set, &(0..set.len()).collect::<Vec<_>>(), 0)?;
        let images = network.images(&batch.pixels)?;
        let pass = network.observe(&images)?;
        let classes = batch.labels_on(network.device())?;
        Ok(Bench { network, set, images, pass, classes })
    }

    /// Each variant's maps of all images: as a tensor, and as rows of numbers.
    fn maps(&self, variants: &[ShapCam]) -> Result<Vec<(Tensor, Vec<Vec<f64>>)>> {
        let named: Vec<(&str, &dyn Interpreter)> =
            variants.iter().map(|v| ("shap_cam", v as &dyn Interpreter)).collect();
        let found = explain(&named, &self.network, "last", &self.set, &Class::Label)?;
        let each = found.outcomes.into_iter().map(|o| {
            let map = Tensor::from_vec(o.values, (self.set.len(), o.shape[0], o.shape[1]), self.network.device())?;
            let rows = map.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2()?;
            Ok((map, rows))
        });
        each.collect()
    }

    /// Each image's drop of its class's probability under its own map, in percent; `rows` are the maps as numbers. None
    /// of a map that is not finite, whatever the network makes of it.
    fn drops(&self, map: &Tensor, rows: &[Vec<f64>]) -> Result<Vec<Option<f64>>> {
        let (_, _, h, w) = self.images.dims4()?;
        let masks = maps::minmax(&maps::resize(map, h, w)?)?.unsqueeze(1)?;
        let masked = self.network.observe(&self.images.broadcast_mul(&masks)?)?;
        let prob = |logits: &Tensor| -> Result<Vec<f64>> {
            Ok(Score::Prob.of(logits, &self.classes)?.to_dtype(DType::F64)?.to_vec1()?)
        };
        let (whole, left) = (prob(&self.pass.logits)?, prob(&masked.logits)?);
        Ok(drops(&whole, &left).into_iter().zip(rows).map(|(drop, map)| drop.filter(|_| is_finite(map))).collect())
    }
}

/// Root mean square of the difference, over that of `b`; None of maps that are not finite.
fn off(a: &[f64], b: &[f64]) -> Option<f64> {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    let off = (difference / size.max(f64::MIN_POSITIVE)).sqrt();
    off.is_finite().then_some(off)
}

/// Every seed's figure of each image of which all seeds have one, so that seeds are compared on the same images.
fn complete(of_seeds: &[Vec<Option<f64>>], images: usize) -> Vec<Vec<f64>> {
    (0..images).filter_map(|i| of_seeds.iter().map(|of| of[i]).collect::<Option<Vec<f64>>>()).collect()
}

/// The word of a serde enum.
fn word(value: impl Serialize) -> Result<String> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().to_string())
}

/// Compares seeds for every score, fill and number of permutations.
pub fn run(config: &Seeds, device: &Device, quiet: bool) -> Result<Vec<Game>> {
    let c = &config.seeds;
    c.check()?;
    let bench = Bench::new(&config.model, device)?;
    let n = bench.set.len();
    let mut rows = Vec::new();
    for &score in &c.scores {
        for &fill in &c.fills {
            let exact = score == Score::Logit;
            let sampled = ShapCam { score, fill, estimator: Computation::Mc, tolerance: 0.0, ..ShapCam::default() };
            // The reference's seed is none of those compared.
            let reference = if exact {
                ShapCam { estimator: Computation::Exact, ..sampled }
            } else {
                ShapCam { permutations: c.reference, seed: u64::MAX, ..sampled }
            };
            let truth = bench.maps(&[reference])?.swap_remove(0).1;
            for &permutations in &c.permutations {
                if !quiet {
                    say(format!("{} {} {permutations}", word(score)?, word(fill)?));
                }
                let (mut of_seed, mut drops) = (Vec::new(), Vec::new());
                let seeds = c.first..c.first + c.count;
                let variants: Vec<_> = seeds.map(|seed| ShapCam { permutations, seed, ..sampled }).collect();
                for (map, values) in bench.maps(&variants)? {
                    drops.push(bench.drops(&map, &values)?);
                    of_seed.push(values);
                }
                // Of the pairs that have one: a constant map correlates with nothing.
                let pairs = |i: usize| {
                    let all = (0..of_seed.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
                    let found: Vec<f64> = all.filter_map(|(a, b)| pearson(&of_seed[a][i], &of_seed[b][i])).collect();
                    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
                };
                let correlations: Vec<f64> = (0..n).filter_map(pairs).collect();
                let errors: Vec<Vec<Option<f64>>> = of_seed
                    .iter()
                    .map(|maps: &Vec<Vec<f64>>| maps.iter().zip(&truth).map(|(map, truth)| off(map, truth)).collect())
                    .collect();
                let over_seeds = |of: &[Vec<f64>]| of.iter().map(|seeds| mean(seeds)).collect::<Vec<f64>>();
                let (errors, drops) = (complete(&errors, n), complete(&drops, n));
                let of_drops = |seed: usize| mean(&drops.iter().map(|seeds| seeds[seed]).collect::<Vec<f64>>());
                let means: Vec<f64> = (0..of_seed.len()).map(of_drops).collect();
                rows.push(Game {
                    method: "shap_cam",
                    score: word(score)?,
                    fill: word(fill)?,
                    class: "label",
                    permutations,
                    seeds: c.count,
                    n,
                    correlation: Estimate::of(&correlations),
                    error: Estimate::of(&over_seeds(&errors)),
                    average_drop: Estimate::of(&over_seeds(&drops)),
                    average_drop_seed_sd: Estimate::of(&means).se * (means.len() as f64).sqrt(),
                });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        assert!((off(&[3.0, 4.0], &[0.0, 5.0]).unwrap() - 10f64.sqrt() / 5.0).abs() < 1e-12);
        let e = Estimate::of(&[1.0, 3.0]);
        assert!((e.mean - 2.0).abs() < 1e-12 && (e.se - 1.0).abs() < 1e-12 && e.n == 2);
    }

    /// An image that lacks a seed's figure counts for no seed.
    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(off(&[f64::NAN, 4.0], &[0.0, 5.0]), None);
        assert_eq!(off(&[3.0, 4.0], &[0.0, f64::NAN]), None);
        let of_seeds = [vec![Some(1.0), None, Some(3.0)], vec![Some(2.0), Some(7.0), Some(5.0)]];
        assert_eq!(complete(&of_seeds, 3), [[1.0, 2.0], [3.0, 5.0]]);
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        assert!(Comparison::default().check().is_ok());
        let with = |change: &dyn Fn(&mut Comparison)| {
            let mut c = Comparison::default();
            change(&mut c);
            c.check().expect_err("refused").to_string()
        };
        assert_eq!(
            with(&|c| c.count = 1_000_000_000_000_000),
            "seeds.count is 1000000000000000; it must be at least 2 and at most 1000"
        );
        assert_eq!(with(&|c| c.count = 1), "seeds.count is 1; it must be at least 2 and at most 1000");
        assert_eq!(with(&|c| c.reference = 3), "seeds.reference is 3; it must be at least 4 and at most 1e9");
        assert_eq!(
            with(&|c| c.permutations = vec![10, 2_000_000_000]),
            "seeds.permutations.1 is 2000000000; it must be at least 4 and at most 1e9"
        );
        assert!(with(&|c| c.first = u64::MAX - 5).contains("seeds.first is 18446744073709551610"));
    }
}
