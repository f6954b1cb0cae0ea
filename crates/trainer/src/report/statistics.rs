//! What differences between runs are worth. The distributions are statrs's; the formulas are those of scipy and
//! statsmodels, with which they are compared (`scripts/make_statistics.py`).

use rand::RngExt;
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, FisherSnedecor, StudentsT};

use crate::random::{Purpose, stream};

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle value, of an even number the mean of the two in the middle; None of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some((sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0)
}

/// The sample's standard deviation, n - 1 in the denominator; None of fewer than two.
pub fn sd(values: &[f64]) -> Option<f64> {
    let m = mean(values);
    let squares: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// A scatter, in percent, that is the rounding of sums: of ten thousand images one is a hundredth.
const ROUNDING: f64 = 1e-9;

/// A standard deviation that several groups share, and its degrees of freedom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pooled {
    /// Root of the mean variance within groups.
    pub sd: f64,
    /// The groups' sizes, less one each.
    pub df: f64,
}

/// Of groups of at least two; None if there is none.
pub fn pooled<'a>(groups: impl IntoIterator<Item = &'a [f64]>) -> Option<Pooled> {
    let (mut squares, mut df) = (0.0, 0.0);
    for group in groups {
        if let Some(sd) = sd(group) {
            let own = (group.len() - 1) as f64;
            (squares, df) = (squares + own * sd * sd, df + own);
        }
    }
    let scatter = |sd: f64| if sd > ROUNDING { sd } else { 0.0 };
    (df > 0.0).then(|| Pooled { sd: scatter((squares / df).sqrt()), df })
}

/// Student's t with `df` degrees of freedom: the probability of a value above `t`.
fn above(t: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(f64::NAN, |d| d.sf(t))
}

/// The value that Student's t is below with this probability.
fn quantile(probability: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(f64::NAN, |d| d.inverse_cdf(probability))
}

/// Half of the 95 % interval of a mean of `n` values.
pub fn half_width(pooled: Pooled, n: usize) -> f64 {
    quantile(0.975, pooled.df) * pooled.sd / (n as f64).sqrt()
}

/// A difference of two means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The first mean less the second.
    pub mean: f64,
    /// Its standard error.
    pub se: f64,
    /// Degrees of freedom.
    pub df: f64,
    /// Two-sided, of no difference.
    pub p: f64,
}

impl Difference {
    fn new(mean: f64, se: f64, df: f64) -> Difference {
        Difference { mean, se, df, p: 2.0 * above((mean / se).abs(), df) }
    }

    /// Half of its 95 % interval.
    pub fn half_width(&self) -> f64 {
        quantile(0.975, self.df) * self.se
    }

    /// Half of its 90 % interval, which lies within the margin where [`equivalence`](Self::equivalence) is below 0.05.
    pub fn half_width_90(&self) -> f64 {
        quantile(0.95, self.df) * self.se
    }

    /// Two one-sided tests: the larger probability of a difference as far out as `margin` on either side. Below 0.05
    /// the two are equivalent to within the margin.
    pub fn equivalence(&self, margin: f64) -> f64 {
        let (low, high) =
            (above((self.mean + margin) / self.se, self.df), above((margin - self.mean) / self.se, self.df));
        low.max(high)
    }
}

/// Unpaired, with a standard deviation that more groups than these two may have given.
pub fn unpaired(a: &[f64], b: &[f64], pooled: Pooled) -> Option<Difference> {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let se = pooled.sd * (1.0 / n + 1.0 / m).sqrt();
    (n > 0.0 && m > 0.0 && se > ROUNDING).then(|| Difference::new(mean(a) - mean(b), se, pooled.df))
}

/// Unpaired, each with its own standard deviation (Welch 1947); None where one has fewer than two values or both do not
/// scatter.
pub fn welch(a: &[f64], b: &[f64]) -> Option<Difference> {
    let part = |values: &[f64]| Some((sd(values)?.powi(2) / values.len() as f64, (values.len() - 1) as f64));
    let ((u, du), (v, dv)) = (part(a)?, part(b)?);
    let se = (u + v).sqrt();
    (se > ROUNDING).then(|| Difference::new(mean(a) - mean(b), se, (u + v).powi(2) / (u * u / du + v * v / dv)))
}

/// Of pairs: the values at the same places belong together.
pub fn paired(a: &[f64], b: &[f64]) -> Option<Difference> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let sd = sd(&differences)?;
    let n = differences.len() as f64;
    (sd > ROUNDING).then(|| Difference::new(mean(&differences), sd / n.sqrt(), n - 1.0))
}

/// What measuring several groups under the same conditions has made alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alike {
    /// Correlation within a condition, once the groups' means are taken off (intraclass, of consistency: Shrout and Fleiss
    /// 1979, ICC(3, 1)).
    pub correlation: f64,
    /// Of no effect of the condition (F test of two-way analysis of variance without replication).
    pub p: f64,
}

/// Of groups whose values at the same place are of the same condition; None of fewer than two groups or conditions, of
/// groups of different sizes, and where nothing is left of the scatter.
pub fn alike(groups: &[Vec<f64>]) -> Option<Alike> {
    let (k, n) = (groups.len(), groups.first()?.len());
    if k < 2 || n < 2 || groups.iter().any(|group| group.len() != n) {
        return None;
    }
    let centred = groups.iter().map(|group| {
        let m = mean(group);
        group.iter().map(|v| v - m).collect::<Vec<_>>()
    });
    let centred: Vec<Vec<f64>> = centred.collect();
    let condition = |at: usize| centred.iter().map(|group| group[at]).sum::<f64>() / k as f64;
    let of_conditions: Vec<f64> = (0..n).map(condition).collect();
    let between = k as f64 * of_conditions.iter().map(|c| c * c).sum::<f64>() / (n - 1) as f64;
    let rest = centred.iter().flat_map(|group| group.iter().zip(&of_conditions).map(|(v, c)| (v - c).powi(2)));
    let df = ((n - 1) * (k - 1)) as f64;
    let rest = rest.sum::<f64>() / df;
    let f = FisherSnedecor::new((n - 1) as f64, df).ok().filter(|_| rest > ROUNDING * ROUNDING)?;
    Some(Alike { correlation: (between - rest) / (between + (k - 1) as f64 * rest), p: f.sf(between / rest) })
}

/// Holm's step-down correction of a family of p-values, in their order.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut corrected = vec![0.0; p.len()];
    let mut least: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        least = least.max(((p.len() - rank) as f64 * p[i]).min(1.0));
        corrected[i] = least;
    }
    corrected
}

/// McNemar's exact test on the images on which exactly one of two is wrong: `b` of the first, `c` of the second.
pub fn mcnemar(b: u64, c: u64) -> f64 {
    let n = b + c;
    match Binomial::new(0.5, n) {
        Ok(d) if n > 0 => (2.0 * d.cdf(b.min(c))).min(1.0),
        _ => 1.0,
    }
}

/// Wilson's 95 % interval of a probability of which `n` cases have shown `k`: [0, 1] of no cases.
pub fn wilson(k: usize, n: usize) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return [0.0, 1.0];
    }
    let (n, p) = (n as f64, k as f64 / n as f64);
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + (Z / (2.0 * n)).powi(2)).sqrt();
    [middle - half, middle + half].map(|end| (end / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

/// What can be seen by comparisons of two cells with equally many runs each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Design {
    /// Cells that share the standard deviation, the two among them.
    pub cells: usize,
    /// Comparisons that are corrected together by Holm: the first and hardest to pass takes 5 % over their number.
    pub tests: usize,
}

impl Design {
    /// The quantile of Student's t that this design with `n` runs a cell has.
    fn quantile(self, probability: f64, n: usize) -> f64 {
        quantile(probability, (self.cells * (n - 1)) as f64)
    }

    /// The difference that `n` runs a cell, at least two, show in 80 % of cases, as a multiple of the standard deviation.
    pub fn visible(self, n: usize) -> f64 {
        let tail = 0.025 / self.tests.max(1) as f64;
        (self.quantile(1.0 - tail, n) + self.quantile(0.8, n)) * (2.0 / n as f64).sqrt()
    }

    /// The least number of runs a cell that show a difference of this size; None if it is a thousand or more.
    pub fn runs_needed(self, difference: f64, sd: f64) -> Option<usize> {
        (2..1000).find(|n| self.visible(*n) * sd <= difference.abs())
    }

    /// The least number of runs a cell that show in 80 % of cases that two cells without a difference are equal to within a
    /// margin (two one-sided tests, 5 %, not corrected); None if it is a thousand or more.
    pub fn runs_for_equivalence(self, margin: f64, sd: f64) -> Option<usize> {
        let visible = |n: usize| (self.quantile(0.95, n) + self.quantile(0.9, n)) * (2.0 / n as f64).sqrt();
        (2..1000).find(|n| visible(*n) * sd <= margin)
    }
}

/// A mean with its standard error and a 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    /// Mean.
    pub mean: f64,
    /// Standard error.
    pub se: f64,
    /// Ends of the interval.
    pub low: f64,
    /// Ends of the interval.
    pub high: f64,
    /// Values.
    pub n: usize,
}

/// Draws of a bootstrap.
const DRAWS: usize = 2000;

/// The mean of values, and its interval by the percentiles of resampled means (Efron 1979); the same for the same seed.
pub fn bootstrap(values: &[f64], seed: u64) -> Interval {
    let (n, m) = (values.len(), mean(values));
    let se = sd(values).map_or(f64::NAN, |sd| sd / (n as f64).sqrt());
    if n < 2 {
        return Interval { mean: m, se, low: f64::NAN, high: f64::NAN, n };
    }
    let mut rng = stream(seed, Purpose::Bootstrap, n as u64);
    let mut means: Vec<f64> =
        (0..DRAWS).map(|_| (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let at = |part: f64| means[((DRAWS - 1) as f64 * part).round() as usize];
    Interval { mean: m, se, low: at(0.025), high: at(0.975), n }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_by_hand() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[9.0, -1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[8.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    /// The interval covers the true mean in about 95 of 100 samples, and is as wide as the normal one.
    #[test]
    fn a_bootstrap_s_interval_covers() {
        let mut covered = 0;
        for sample in 0..300u64 {
            let mut rng = stream(sample, Purpose::Bench, 9);
            let values: Vec<f64> = (0..60).map(|_| rng.random::<f64>()).collect();
            let found = bootstrap(&values, 0);
            covered += usize::from(found.low <= 0.5 && 0.5 <= found.high);
            assert!(((found.high - found.low) / (2.0 * 1.96 * found.se) - 1.0).abs() < 0.15);
        }
        assert!((272..=298).contains(&covered), "{covered} of 300");
        assert_eq!(bootstrap(&[1.0, 2.0], 3), bootstrap(&[1.0, 2.0], 3));
        assert!(bootstrap(&[1.0], 0).low.is_nan());
    }

    #[test]
    fn an_error_of_few_images_has_a_wide_interval() {
        // statsmodels 0.14: proportion_confint(543, 10000, method="wilson"), and of 0 and 8 of 8.
        for (k, n, expected) in
            [(543, 10_000, [0.050_027_255, 0.058_915_041]), (0, 8, [0.0, 0.324_407_565]), (8, 8, [0.675_592_435, 1.0])]
        {
            let found = wilson(k, n);
            assert!((0..2).all(|end| (found[end] - expected[end]).abs() < 1e-6), "{k} of {n}: {found:?}");
        }
    }
}
