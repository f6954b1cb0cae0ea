//! The deterministic rules, on numbers: no sampling, no passes.

pub mod gradient;

use super::additive::Game;
use super::quadrature::{Node, nodes, pairs};
use crate::Score;

/// What `det2` found.
pub struct Found {
    /// Shapley values.
    pub phi: Vec<f64>,
    /// Estimated error of each.
    pub error: Vec<f64>,
    /// Estimated root mean square error, over that of the values.
    pub relative_error: f64,
}

/// Second-order Owen: `phi_i = int_0^1 E[u(z(S) + d_i) - u(z(S))] dt`, S each other player with probability t, with the
/// expectation to second order of z(S) around its mean. A missing or surplus rest of the sum is spread evenly over the
/// players.
///
/// The error is estimated from what the rule itself shows, each relative to the values: `s`, what the second order
/// changed (what the next orders would change is of the order of its square); the rest that had to be spread; the
/// difference of 15 and 7 nodes; and `b^2`, `b = max_t t (1 - t) / 2 Var_P(z(S))` the spread of the coalitions' logits
/// under the probabilities in their middle: where the score's third derivative vanishes (a probability near 0.21 or
/// 0.79) the second order changes nothing and the fourth is all there is. `e = s (1/4 + s) + 2 rest + nodes / 4 + 2.5
/// b^2`; an `e` that is not small is relative to values that are themselves too small, hence `e / (1 - e)`. Calibrated
/// on 14,400 maps of six CIFAR-10 checkpoints against 20,000 sampled pairs each, and checked on others: the difference
/// is within twice the estimate for more than 99 % of them (`scripts/check_det2.py`, decision 17).
pub fn det2(game: &Game, score: Score) -> Found {
    /// Single precision, in which maps are given.
    const ROUNDING: f64 = 1e-7;
    let fine = Prepared::new(game, score).rule();
    let n = fine.phi.len().max(1) as f64;
    let apart = |a: &[f64], b: &[f64]| (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / n).sqrt();
    let size = (fine.phi.iter().map(|p| p * p).sum::<f64>() / n).sqrt();
    if size == 0.0 {
        return Found { error: vec![0.0; fine.phi.len()], phi: fine.phi, relative_error: 0.0 };
    }
    let second = apart(&fine.phi, &fine.first) / size;
    let nodes = apart(&fine.phi, &fine.coarse) / size;
    // `rest` is the logit, which is exact, and a logarithm of the probability.
    let bent = if score == Score::Rest { apart(&fine.phi, &fine.exact) / size } else { 1.0 };
    let e = second * (0.25 + second) + 2.0 * fine.rest.abs() / size + 0.25 * nodes + 2.5 * fine.bend.powi(2) * bent;
    let relative_error = e / (1.0 - e.min(0.9)) + ROUNDING;
    Found { error: vec![relative_error * size; fine.phi.len()], phi: fine.phi, relative_error }
}

/// What the rule gives.
struct Rule {
    phi: Vec<f64>,
    /// The same without the second order.
    first: Vec<f64>,
    /// The same with fewer nodes.
    coarse: Vec<f64>,
    /// What was added to each so that they sum to `v(all) - v(none)`.
    rest: f64,
    /// The part of the values that needs no rule: what each player adds to the logit.
    exact: Vec<f64>,
    /// The spread of the coalitions' logits, see [`det2`].
    bend: f64,
}

/// A game laid out for the rule: players innermost, so that every loop runs over them side by side.
struct Prepared {
    score: Score,
    class: usize,
    /// Number of players.
    n: usize,
    /// Logits with nobody present, (classes,).
    z0: Vec<f64>,
    /// (classes, players).
    d: Vec<f64>,
    /// exp(d) and exp(-d).
    grown: Vec<f64>,
    shrunk: Vec<f64>,
    /// sum_p d_p, (classes,).
    total: Vec<f64>,
    /// Q = sum_p d_p d_p^T.
    spread: Vec<f64>,
}

/// One evaluation at a node: every player's probabilities when each other player is present with probability t, and it
/// is or is not.
struct Evaluation<'w> {
    /// Unnormalised, (classes, players).
    weights: &'w [f64],
    /// Half the share of a coalition's variance that is left at this node.
    bend: f64,
    /// The node's weight, negative without the player.
    share: f64,
    /// The same of the coarser rule.
    coarse: f64,
    /// The node.
    t: f64,
    /// Whether the player itself is present.
    with: bool,
}

impl Prepared {
    fn new(game: &Game, score: Score) -> Self {
        let (n, classes) = (game.players(), game.classes());
        let mut d = vec![0.0; classes * n];
        for (i, row) in game.d.chunks_exact(classes).enumerate() {
            row.iter().enumerate().for_each(|(j, x)| d[j * n + i] = *x);
        }
        Self::of(d, game.z0.clone(), game.class, score)
    }

    /// From `d` (classes, players).
    fn of(d: Vec<f64>, z0: Vec<f64>, class: usize, score: Score) -> Self {
        let classes = z0.len();
        let n = d.len() / classes.max(1);
        let grown: Vec<f64> = d.iter().map(|d| d.exp()).collect();
        let shrunk = grown.iter().map(|g| 1.0 / g).collect();
        let total = d.chunks_exact(n.max(1)).map(|row| row.iter().sum()).collect();
        let mut spread = vec![0.0; classes * classes];
        for (j, a) in d.chunks_exact(n.max(1)).enumerate() {
            for (l, b) in d.chunks_exact(n.max(1)).enumerate().skip(j) {
                let product = a.iter().zip(b).map(|(a, b)| a * b).sum();
                (spread[j * classes + l], spread[l * classes + j]) = (product, product);
            }
        }
        Prepared { score, class, n, z0, d, grown, shrunk, total, spread }
    }

    /// Logits with everybody present.
    fn end(&self) -> Vec<f64> {
        self.z0.iter().zip(&self.total).map(|(z, d)| z + d).collect()
    }

    /// The rule.
    fn rule(&self) -> Rule {
        let mut sums = Sums::new(self.n);
        self.walk(|at| self.add(&at, &mut sums));
        let whole = self.score.value(&self.end(), self.class) - self.score.value(&self.z0, self.class);
        let spread_rest = |values: &mut Vec<f64>| {
            let rest = (whole - values.iter().sum::<f64>()) / self.n as f64;
            values.iter_mut().for_each(|p| *p += rest);
            rest
        };
        let Sums { mut phi, mut first, mut coarse, .. } = sums;
        let rest = spread_rest(&mut phi);
        spread_rest(&mut first);
        spread_rest(&mut coarse);
        Rule { phi, first, coarse, rest, exact: self.row(self.class).to_vec(), bend: self.bend() }
    }

    /// `max_t t (1 - t) / 2 Var_P(z(S))` over the nodes, P the probabilities at the mean logits.
    fn bend(&self) -> f64 {
        let classes = self.z0.len();
        let at = |t: f64| {
            let z: Vec<f64> = self.z0.iter().zip(&self.total).map(|(z, d)| z + t * d).collect();
            let largest = z.iter().copied().fold(f64::MIN, f64::max);
            let grown: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
            let sum: f64 = grown.iter().sum();
            let p: Vec<f64> = grown.iter().map(|g| g / sum).collect();
            let pairs = (0..classes).flat_map(|j| (0..classes).map(move |l| (j, l)));
            let own: f64 = (0..classes).map(|j| p[j] * self.spread[j * classes + j]).sum();
            let shared: f64 = pairs.map(|(j, l)| p[j] * p[l] * self.spread[j * classes + l]).sum();
            0.5 * t * (1.0 - t) * (own - shared)
        };
        nodes().map(|node| at(node.t)).fold(0.0, f64::max)
    }

    /// Both evaluations at every node.
    fn walk(&self, mut visit: impl FnMut(Evaluation)) {
        let mut left = vec![0.0; self.d.len()];
        let mut weights = vec![0.0; self.d.len()];
        for (node, opposite) in pairs() {
            // exp(-t d); at the opposite node 1 - t that is exp(-d) / exp(-t d): a division instead of an exponential.
            left.iter_mut().zip(&self.d).for_each(|(x, d)| *x = (-node.t * d).exp());
            self.node(node, &left, &mut weights, &mut visit);
            if let Some(opposite) = opposite {
                left.iter_mut().zip(&self.shrunk).for_each(|(x, s)| *x = s / *x);
                self.node(opposite, &left, &mut weights, &mut visit);
            }
        }
    }

    /// One node. Without player i the mean logits are `z0 + t (D - d_i)`, with it `d_i` more.
    fn node(&self, node: Node, left: &[f64], weights: &mut [f64], visit: &mut impl FnMut(Evaluation)) {
        let (n, t) = (self.n, node.t);
        let centre: Vec<f64> = self.z0.iter().zip(&self.total).map(|(z, d)| z + t * d).collect();
        let largest = centre.iter().copied().fold(f64::MIN, f64::max);
        for ((w, x), z) in weights.chunks_exact_mut(n).zip(left.chunks_exact(n)).zip(&centre) {
            let scale = (z - largest).exp();
            w.iter_mut().zip(x).for_each(|(w, x)| *w = scale * x);
        }
        let bend = 0.5 * t * (1.0 - t);
        visit(Evaluation { weights, bend, share: -node.weight, coarse: -node.coarse, t, with: false });
        weights.iter_mut().zip(&self.grown).for_each(|(w, g)| *w *= g);
        visit(Evaluation { weights, bend, share: node.weight, coarse: node.coarse, t, with: true });
    }

    /// A class's row of `d`.
    fn row(&self, class: usize) -> &[f64] {
        &self.d[class * self.n..][..self.n]
    }

    /// Adds to both orders `share` times the expected score.
    fn add(&self, at: &Evaluation, sums: &mut Sums) {
        let (n, classes, c) = (self.n, self.z0.len(), self.class);
        let Evaluation { weights: w, bend, share, coarse: coarse_share, with, .. } = *at;
        if with && self.score == Score::Rest {
            // `rest` is a logarithm of the probability, as below, and the logit itself, whose gain is d.
            for (values, share) in [(&mut sums.phi, share), (&mut sums.first, share), (&mut sums.coarse, coarse_share)]
            {
                values.iter_mut().zip(self.row(c)).for_each(|(p, d)| *p += share * d);
            }
        }
        let Sums { phi, first, coarse, sum, along, whole, trace, qp } = sums;
        let (sum, along, whole, trace, qp) =
            (&mut sum[..n], &mut along[..n], &mut whole[..n], &mut trace[..n], &mut qp[..n]);
        for v in [&mut *sum, &mut *along, &mut *whole, &mut *trace] {
            v.fill(0.0);
        }
        for (j, (w, d)) in w.chunks_exact(n).zip(self.d.chunks_exact(n)).enumerate() {
            let own = self.spread[j * classes + j];
            for i in 0..n {
                sum[i] += w[i];
                along[i] += w[i] * d[i];
                trace[i] += w[i] * (own - d[i] * d[i]);
            }
        }
        // P^T Q P by the upper triangle.
        for (j, of_class) in w.chunks_exact(n).enumerate() {
            let half = 0.5 * self.spread[j * classes + j];
            qp.iter_mut().zip(of_class).for_each(|(s, w)| *s = half * w);
            for (l, w) in w.chunks_exact(n).enumerate().skip(j + 1) {
                let q = self.spread[j * classes + l];
                qp.iter_mut().zip(w).for_each(|(s, w)| *s += q * w);
            }
            for i in 0..n {
                whole[i] += 2.0 * qp[i] * of_class[i];
            }
        }
        qp.fill(0.0);
        for (l, w) in w.chunks_exact(n).enumerate() {
            let q = self.spread[c * classes + l];
            qp.iter_mut().zip(w).for_each(|(s, w)| *s += q * w);
        }
        let (wc, dc, own) = (&w[c * n..][..n], &self.d[c * n..][..n], self.spread[c * classes + c]);
        let (phi, first, coarse) = (&mut phi[..n], &mut first[..n], &mut coarse[..n]);
        for i in 0..n {
            let scale = 1.0 / sum[i];
            let (p, along, trace) = (wc[i] * scale, along[i] * scale, trace[i] * scale);
            let whole = whole[i] * scale * scale - along * along;
            let (value, bent) = match self.score {
                Score::Prob => {
                    let cross = qp[i] * scale - dc[i] * along;
                    (p, p * (own - dc[i] * dc[i] - 2.0 * cross + 2.0 * whole - trace))
                }
                // The logit never comes here.
                Score::Logit | Score::LogProb | Score::Rest => (p.ln(), whole - trace),
            };
            let bent = value + bend * bent;
            first[i] += share * value;
            phi[i] += share * bent;
            coarse[i] += coarse_share * bent;
        }
    }
}

/// Per player: the values so far, and sums that one evaluation needs.
struct Sums {
    phi: Vec<f64>,
    first: Vec<f64>,
    coarse: Vec<f64>,
    sum: Vec<f64>,
    along: Vec<f64>,
    whole: Vec<f64>,
    trace: Vec<f64>,
    qp: Vec<f64>,
}

impl Sums {
    fn new(n: usize) -> Sums {
        let zeros = || vec![0.0; n];
        Sums {
            phi: zeros(),
            first: zeros(),
            coarse: zeros(),
            sum: zeros(),
            along: zeros(),
            whole: zeros(),
            trace: zeros(),
            qp: zeros(),
        }
    }
}

/// Aumann-Shapley values. They are another value than Shapley's, near it for many small players: how near they do
/// not tell, so no error comes with them.
pub fn aumann(game: &Game, score: Score) -> Vec<f64> {
    let classes = game.classes();
    let mut total = vec![0.0; classes];
    game.d.chunks_exact(classes).for_each(|row| row.iter().zip(&mut total).for_each(|(d, t)| *t += d));
    let mut slope = vec![0.0; classes];
    for Node { t, weight, .. } in nodes() {
        let z: Vec<f64> = game.z0.iter().zip(&total).map(|(z, d)| z + t * d).collect();
        let here = score.slope(&z, game.class);
        slope.iter_mut().zip(here).for_each(|(slope, here)| *slope += weight * here);
    }
    game.d.chunks_exact(classes).map(|row| row.iter().zip(&slope).map(|(d, s)| d * s).sum()).collect()
}
