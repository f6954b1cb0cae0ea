//! `det2` as an op whose gradient is a formula: the rule run backwards.

use candle_core::{Result, Tensor, WithDType};
use rayon::prelude::*;

use super::{Evaluation, Prepared};
use crate::Score;
use crate::ops::{Array, Gradients, Rule, apply2, length};

/// Every image's map from `d` (n, classes, players) and `z0` (n, classes): (n, players), by the same rule as
/// [`super::det2`].
pub fn maps(d: &Tensor, z0: &Tensor, classes: Vec<usize>, score: Score) -> Result<Tensor> {
    apply2(d, z0, Det2 { classes, score })
}

struct Det2 {
    /// Explained, one per image.
    classes: Vec<usize>,
    score: Score,
}

impl Det2 {
    fn prepared<T: WithDType>(&self, (d, z0): (&[T], &[T]), class: usize) -> Prepared {
        let wide = |values: &[T]| values.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        Prepared::of(wide(d), wide(z0), class, self.score)
    }
}

/// Length of an image's `d`, `z0` and map.
fn lengths<T>(inputs: &[Array<T>]) -> (usize, usize, usize) {
    let dims = inputs[0].dims;
    (length(&dims[1..]), length(&dims[1..2]), length(&dims[2..]))
}

impl Rule for Det2 {
    const NAME: &'static str = "det2";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        vec![inputs[0][0], inputs[0][2]]
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (of_d, of_z0, players) = lengths(inputs);
        let images = inputs[0].values.par_chunks(of_d).zip(inputs[1].values.par_chunks(of_z0)).zip(&self.classes);
        out.par_chunks_mut(players).zip(images).for_each(|(out, (image, class))| {
            let phi = self.prepared(image, *class).rule().phi;
            out.iter_mut().zip(phi).for_each(|(out, phi)| *out = T::from_f64(phi));
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], _: &[bool]) -> Gradients<T> {
        let (of_d, of_z0, players) = lengths(inputs);
        let mut d = vec![T::zero(); inputs[0].values.len()];
        let mut z0 = vec![T::zero(); inputs[1].values.len()];
        let images = inputs[0].values.par_chunks(of_d).zip(inputs[1].values.par_chunks(of_z0)).zip(&self.classes);
        let out = d.par_chunks_mut(of_d).zip(z0.par_chunks_mut(of_z0)).zip(g.par_chunks(players));
        out.zip(images).for_each(|(((d, z0), g), (image, class))| {
            let g: Vec<f64> = g.iter().map(|g| g.to_f64()).collect();
            let pulled = self.prepared(image, *class).pull(&g);
            d.iter_mut().zip(pulled.d).for_each(|(to, from)| *to = T::from_f64(from));
            z0.iter_mut().zip(pulled.z0).for_each(|(to, from)| *to = T::from_f64(from));
        });
        vec![Some(d), Some(z0)]
    }
}

/// Gradients of `sum_i g_i phi_i`, and what they are gathered in.
struct Pulled {
    /// (classes, players), what reaches each player's own contribution.
    d: Vec<f64>,
    /// (classes,).
    z0: Vec<f64>,
    /// Of D = sum_p d_p.
    total: Vec<f64>,
    /// Of Q = sum_p d_p d_p^T, symmetric.
    spread: Vec<f64>,
}

/// Room for one evaluation: per player, or per class and player.
struct Scratch {
    /// Probabilities P.
    p: Vec<f64>,
    /// dF/dP.
    slope: Vec<f64>,
    /// P . d_i.
    along: Vec<f64>,
    /// g_i times the evaluation's share.
    share: Vec<f64>,
    /// Sums over classes, and what multiplies dF/dK.
    sums: Vec<f64>,
    second: Vec<f64>,
}

impl Prepared {
    /// The gradients of `sum_i g_i phi_i`.
    ///
    /// Each player's expected score is a function F(z, K) of its mean logits and K = Q - d_i d_i^T:
    /// `F = log P_c + b (P^T K P - P . diag K)`, or `P_c (1 + b E)` with `E = K_cc - 2 (K P)_c + 2 P^T K P - P . diag
    /// K`. The rest spread over the players turns g into `g - mean g`, and gives `mean g` to `v(all) - v(none)`.
    fn pull(&self, g: &[f64]) -> Pulled {
        let (n, classes) = (self.n, self.z0.len());
        let mean = g.iter().sum::<f64>() / n as f64;
        let g: Vec<f64> = g.iter().map(|g| g - mean).collect();
        let mut to = Pulled {
            d: vec![0.0; self.d.len()],
            z0: vec![0.0; classes],
            total: vec![0.0; classes],
            spread: vec![0.0; classes * classes],
        };
        let zeros = || vec![0.0; n];
        let mut scratch = Scratch {
            p: vec![0.0; self.d.len()],
            slope: vec![0.0; self.d.len()],
            along: zeros(),
            share: zeros(),
            sums: zeros(),
            second: zeros(),
        };
        self.walk(|at| self.pull_one(&at, &g, &mut scratch, &mut to));
        let (end, start) = (self.score.slope(&self.end(), self.class), self.score.slope(&self.z0, self.class));
        for j in 0..classes {
            to.z0[j] += mean * (end[j] - start[j]);
            to.total[j] += mean * end[j];
        }
        for (j, of) in to.d.chunks_exact_mut(n).enumerate() {
            of.iter_mut().for_each(|of| *of += to.total[j]);
            for (l, d) in self.d.chunks_exact(n).enumerate() {
                let twice = 2.0 * to.spread[j * classes + l];
                of.iter_mut().zip(d).for_each(|(of, d)| *of += twice * d);
            }
        }
        to
    }

    /// Adds one evaluation's part.
    fn pull_one(&self, at: &Evaluation, g: &[f64], scratch: &mut Scratch, to: &mut Pulled) {
        let (n, c) = (self.n, self.class);
        let Scratch { p, slope, along, share, sums, .. } = scratch;
        share.iter_mut().zip(g).for_each(|(s, g)| *s = g * at.share);
        if at.with && self.score == Score::Rest {
            to.d[c * n..][..n].iter_mut().zip(&*share).for_each(|(to, s)| *to += s);
        }
        self.probabilities(at.weights, p, along, sums);
        self.slope(at.bend, p, along, slope, sums);
        let mean = sums;
        mean.fill(0.0);
        for (p, slope) in p.chunks_exact(n).zip(slope.chunks_exact(n)) {
            (0..n).for_each(|i| mean[i] += p[i] * slope[i]);
        }
        // Through the softmax; a logarithm adds its own e_c - P.
        let logarithm = if self.score == Score::Prob { 0.0 } else { 1.0 };
        let reached = if at.with { 1.0 - at.t } else { -at.t };
        for (j, of) in to.d.chunks_exact_mut(n).enumerate() {
            let (p, slope) = (&p[j * n..][..n], &slope[j * n..][..n]);
            let own = if j == c { logarithm } else { 0.0 };
            let mut sum = 0.0;
            for i in 0..n {
                let z = share[i] * (p[i] * (slope[i] - mean[i] - logarithm) + own);
                of[i] += reached * z;
                sum += z;
            }
            to.z0[j] += sum;
            to.total[j] += at.t * sum;
        }
        self.pull_spread(at.bend, scratch, to);
    }

    /// dF/dP, class by class, but for the logarithm of P_c. With M = 2 K P - diag K, where K P = Q P - d_i (P . d_i):
    /// `b M`, or `P_c b (2 M - 2 K e_c + diag K) + e_c (1 + b E)`, `E = P . M - M_c`.
    fn slope(&self, bend: f64, p: &[f64], along: &[f64], slope: &mut [f64], bent: &mut [f64]) {
        let (n, classes, c) = (self.n, self.z0.len(), self.class);
        slope.fill(0.0);
        for (j, slope) in slope.chunks_exact_mut(n).enumerate() {
            for (l, p) in p.chunks_exact(n).enumerate() {
                let twice = 2.0 * self.spread[j * classes + l];
                slope.iter_mut().zip(p).for_each(|(s, p)| *s += twice * p);
            }
            let (own, d) = (self.spread[j * classes + j], self.row(j));
            (0..n).for_each(|i| slope[i] += d[i] * (d[i] - 2.0 * along[i]) - own);
        }
        if self.score != Score::Prob {
            slope.iter_mut().for_each(|s| *s *= bend);
            return;
        }
        bent.iter_mut().zip(&slope[c * n..][..n]).for_each(|(bent, m)| *bent = -m);
        for (p, slope) in p.chunks_exact(n).zip(slope.chunks_exact(n)) {
            (0..n).for_each(|i| bent[i] += p[i] * slope[i]);
        }
        let (of_class, of_row) = (&p[c * n..][..n], self.row(c));
        for (j, slope) in slope.chunks_exact_mut(n).enumerate() {
            let (own, cross, d) = (self.spread[j * classes + j], self.spread[c * classes + j], self.row(j));
            for i in 0..n {
                let inner = 2.0 * slope[i] - 2.0 * (cross - of_row[i] * d[i]) + own - d[i] * d[i];
                slope[i] = of_class[i] * bend * inner + if j == c { 1.0 + bend * bent[i] } else { 0.0 };
            }
        }
    }

    /// What the second order says about Q, and about d_i through K.
    /// `dF/dK = b (P P^T - diag P)`, or `P_c b (2 P P^T - diag P + e_c e_c^T - e_c P^T - P e_c^T)`.
    fn pull_spread(&self, bend: f64, scratch: &mut Scratch, to: &mut Pulled) {
        let (n, classes, c) = (self.n, self.z0.len(), self.class);
        let Scratch { p, along, share, sums: weighted, second, .. } = scratch;
        let prob = self.score == Score::Prob;
        let (of_class, of_row) = (&p[c * n..][..n], self.row(c));
        (0..n).for_each(|i| second[i] = share[i] * bend * if prob { of_class[i] } else { 1.0 });
        let products = if prob { 2.0 } else { 1.0 };
        for (j, of) in to.d.chunks_exact_mut(n).enumerate() {
            let (p_j, d) = (&p[j * n..][..n], self.row(j));
            (0..n).for_each(|i| weighted[i] = second[i] * p_j[i]);
            for (l, p) in p.chunks_exact(n).enumerate().skip(j) {
                let sum = products * weighted.iter().zip(p).map(|(w, p)| w * p).sum::<f64>();
                to.spread[j * classes + l] += sum;
                if l > j {
                    to.spread[l * classes + j] += sum;
                }
            }
            let sum: f64 = weighted.iter().sum();
            to.spread[j * classes + j] -= sum;
            if prob {
                to.spread[c * classes + j] -= sum;
                to.spread[j * classes + c] -= sum;
            }
            for i in 0..n {
                let mut along_k = weighted[i] * (products * along[i] - d[i]);
                if prob {
                    along_k -= weighted[i] * of_row[i];
                    along_k += if j == c { second[i] * (of_row[i] - along[i]) } else { 0.0 };
                }
                of[i] -= 2.0 * along_k;
            }
        }
        if prob {
            to.spread[c * classes + c] += second.iter().sum::<f64>();
        }
    }

    /// P and P . d_i of every player.
    fn probabilities(&self, weights: &[f64], p: &mut [f64], along: &mut [f64], sum: &mut [f64]) {
        let n = self.n;
        sum.fill(0.0);
        for w in weights.chunks_exact(n) {
            sum.iter_mut().zip(w).for_each(|(s, w)| *s += w);
        }
        along.fill(0.0);
        for (j, (p, w)) in p.chunks_exact_mut(n).zip(weights.chunks_exact(n)).enumerate() {
            let d = self.row(j);
            for i in 0..n {
                p[i] = w[i] / sum[i];
                along[i] += p[i] * d[i];
            }
        }
    }
}
