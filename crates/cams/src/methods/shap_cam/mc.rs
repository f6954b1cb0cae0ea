//! Sampled permutations (Castro et al. 2009), each with its reverse: all effects up to second order cancel within a
//! pair.

use candle_core::{Result, Tensor, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::additive::Game;
use super::{Fill, ShapCam};
use crate::{Estimator, Explanation, Forward, SampleId, Score, images_per_pass};

/// How long to sample.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Permutations at most; a pair is two.
    pub permutations: usize,
    /// Stop when every 95 % interval is within this share of the largest value; 0: never.
    pub tolerance: f64,
    /// With the image and its view it fixes every permutation.
    pub seed: u64,
}

impl Sampling {
    fn pairs(&self) -> usize {
        (self.permutations / 2).max(2)
    }
}

/// An image's stream of permutations: the same for every model and in any batch.
pub struct Permutations {
    rng: ChaCha8Rng,
    order: Vec<usize>,
}

impl Permutations {
    /// Of `players` players.
    pub fn new(seed: u64, id: SampleId, players: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ id.view.rotate_left(32));
        rng.set_stream(id.sample);
        Permutations { rng, order: (0..players).collect() }
    }
    /// The next one (Fisher & Yates).
    pub fn draw(&mut self) -> &[usize] {
        for i in (1..self.order.len()).rev() {
            self.order.swap(i, self.rng.random_range(0..=i));
        }
        &self.order
    }
}

/// Mean and spread of the pairs so far (Welford 1962).
struct Pairs {
    count: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Pairs {
    fn new(players: usize) -> Self {
        Pairs { count: 0.0, mean: vec![0.0; players], square: vec![0.0; players] }
    }
    fn add(&mut self, pair: &[f64]) {
        self.count += 1.0;
        for ((mean, square), x) in self.mean.iter_mut().zip(&mut self.square).zip(pair) {
            let before = x - *mean;
            *mean += before / self.count;
            *square += before * (x - *mean);
        }
    }
    fn standard_error(&self) -> Vec<f64> {
        let of = |s: &f64| (s / (self.count - 1.0).max(1.0) / self.count.max(1.0)).sqrt();
        self.square.iter().map(of).collect()
    }
    /// Whether to stop: asked after 16, 32, 64, ... pairs only, so that a lucky streak does not decide.
    fn enough(&self, tolerance: f64) -> bool {
        let count = self.count as usize;
        if tolerance <= 0.0 || count < 16 || !count.is_power_of_two() {
            return false;
        }
        let largest = self.mean.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let widest = self.standard_error().into_iter().fold(0.0, f64::max);
        quantile(self.count - 1.0) * widest <= tolerance * largest
    }
}

/// Student's t quantile at 97.5 % (Cornish & Fisher's expansion: within 1 % from 3 degrees of freedom on).
fn quantile(degrees: f64) -> f64 {
    let z = 1.959_964f64;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / degrees + second / degrees.powi(2)
}

/// The running score of a coalition that grows player by player.
struct Coalition<'g> {
    game: &'g Game,
    score: Score,
    /// exp(d), (players, classes): a player joins by a multiplication, without an exponential.
    grown: Vec<f64>,
    /// exp(z0 - max z0).
    start: Vec<f64>,
    shift: f64,
    weights: Vec<f64>,
    sum: Vec<f64>,
}

impl<'g> Coalition<'g> {
    fn new(game: &'g Game, score: Score) -> Self {
        let shift = game.z0.iter().copied().fold(f64::MIN, f64::max);
        Coalition {
            game,
            score,
            grown: game.d.iter().map(|d| d.exp()).collect(),
            start: game.z0.iter().map(|z| (z - shift).exp()).collect(),
            shift,
            weights: vec![0.0; game.z0.len()],
            sum: vec![0.0; game.z0.len()],
        }
    }

    /// Adds the marginal contributions of `order`, halved, to `pair`.
    fn walk<'o>(&mut self, order: impl Iterator<Item = &'o usize>, pair: &mut [f64]) {
        let (classes, class) = (self.game.classes(), self.game.class);
        let mut before = self.score.value(&self.game.z0, class);
        if self.game.present_mean {
            self.sum.fill(0.0);
            for (size, &p) in order.enumerate() {
                let d = &self.game.d[p * classes..][..classes];
                self.sum.iter_mut().zip(d).for_each(|(s, d)| *s += d);
                let z = self.weights.iter_mut().zip(&self.sum).zip(&self.game.z0);
                z.for_each(|((z, s), z0)| *z = z0 + s / (size + 1) as f64);
                let now = self.score.value(&self.weights, class);
                pair[p] += 0.5 * (now - before);
                before = now;
            }
            return;
        }
        self.weights.copy_from_slice(&self.start);
        let mut own = self.game.z0[class];
        for &p in order {
            let grown = &self.grown[p * classes..][..classes];
            let mut sum = 0.0;
            for (w, g) in self.weights.iter_mut().zip(grown) {
                *w *= g;
                sum += *w;
            }
            own += self.game.d[p * classes + class];
            let now = match self.score {
                Score::Logit => own,
                Score::Prob => self.weights[class] / sum,
                Score::LogProb => own - self.shift - sum.ln(),
                Score::Rest => 2.0 * own - self.shift - sum.ln(),
            };
            pair[p] += 0.5 * (now - before);
            before = now;
        }
    }
}

/// Shapley values and their standard errors, from sums of contributions: no pass of a network.
pub fn additive(game: &Game, score: Score, sampling: Sampling, id: SampleId) -> (Vec<f64>, Vec<f64>) {
    let players = game.players();
    let mut permutations = Permutations::new(sampling.seed, id, players);
    let (mut pairs, mut coalition) = (Pairs::new(players), Coalition::new(game, score));
    let mut pair = vec![0.0; players];
    for _ in 0..sampling.pairs() {
        pair.fill(0.0);
        let order = permutations.draw();
        coalition.walk(order.iter(), &mut pair);
        coalition.walk(order.iter().rev(), &mut pair);
        pairs.add(&pair);
        if pairs.enough(sampling.tolerance) {
            break;
        }
    }
    let error = pairs.standard_error();
    (pairs.mean, error)
}

/// The same by passes of the head on masked activations, for models without a linear head; behind its first layer where
/// that is linear.
pub fn by_passes(method: &ShapCam, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
    let (n, _, h, w) = forward.features.dims4()?;
    let (players, sampling) = (h * w, method.sampling());
    let (mut maps, mut errors, mut most) = (Vec::new(), Vec::new(), 0);
    let inner = 2 * (players - 1);
    let most_pairs = sampling.pairs().min(method.evaluations / inner.max(1)).max(2);
    let ends = ends(method, forward, classes)?;
    let first = match forward.model.first_layer().filter(|_| method.fill != Fill::PresentMean) {
        Some(first) => {
            Some((first.weight.dims().to_vec(), super::numbers(&first.weight)?, super::numbers(&first.bias)?))
        }
        None => None,
    };
    for (i, (none, all)) in ends.into_iter().enumerate() {
        let mut permutations = Permutations::new(sampling.seed, forward.ids[i], players);
        let mut pairs = Pairs::new(players);
        let mut evaluations = 2;
        let sums = first.as_ref().map(|(dims, weight, bias)| Sums::new(method, forward, i, (dims, weight, bias)));
        let sums = sums.transpose()?;
        // Whole pairs a pass, and no more than up to the next look at the tolerance.
        let together = (images_per_pass(forward, method.memory_mb) / inner.max(1)).max(1);
        while (pairs.count as usize) < most_pairs {
            let done = pairs.count as usize;
            let look = if done < 16 { 16 } else { (done + 1).next_power_of_two() };
            let count = together.min(most_pairs - done).min(look - done);
            let orders: Vec<Vec<usize>> = (0..count).map(|_| permutations.draw().to_vec()).collect();
            let walks: Vec<Vec<usize>> =
                orders.iter().flat_map(|o| [o.clone(), o.iter().rev().copied().collect()]).collect();
            let scores = match &sums {
                Some(sums) => sums.prefixes(method, forward, classes, i, &walks)?,
                None => prefixes(method, forward, classes, i, &walks)?,
            };
            evaluations += walks.len() * (players - 1);
            for r in 0..count {
                let mut pair = vec![0.0; players];
                for walk in 2 * r..2 * r + 2 {
                    let mut before = none;
                    for (at, p) in walks[walk].iter().enumerate() {
                        let now = if at + 1 == players { all } else { scores[walk * (players - 1) + at] };
                        pair[*p] += 0.5 * (now - before);
                        before = now;
                    }
                }
                pairs.add(&pair);
            }
            if pairs.enough(sampling.tolerance) {
                break;
            }
        }
        most = most.max(evaluations);
        errors.extend(pairs.standard_error());
        maps.extend(pairs.mean);
    }
    let tensor = |values: Vec<f64>| {
        Tensor::from_vec(values, (n, h, w), forward.features.device())?.to_dtype(forward.features.dtype())
    };
    let mut explanation = Explanation::new(tensor(maps)?, Estimator::Mc, most)?;
    explanation.error = Some(tensor(errors)?);
    Ok(explanation)
}

/// What absent positions of image `i` get, (1, k, 1, 1), where that does not depend on who is present.
fn fill(method: &ShapCam, forward: &Forward, i: usize) -> Result<Tensor> {
    method.filling(forward, &forward.features.detach().narrow(0, i, 1)?)
}

/// (v(none), v(all)) of every image.
fn ends(method: &ShapCam, forward: &Forward, classes: &Tensor) -> Result<Vec<(f64, f64)>> {
    let n = forward.features.dim(0)?;
    let mut out = Vec::with_capacity(n);
    for i in 0..n {
        let features = forward.features.detach().narrow(0, i, 1)?;
        let none = fill(method, forward, i)?.broadcast_as(features.shape())?.contiguous()?;
        let logits = forward.model.head(&Tensor::cat(&[none, features], 0)?)?;
        let class = classes.narrow(0, i, 1)?.broadcast_as(2)?.contiguous()?;
        let scores = super::numbers(&method.score.of(&logits, &class)?)?;
        out.push((scores[0], scores[1]));
    }
    Ok(out)
}

/// An image's coalitions behind a head's first linear layer: each position's part of its outputs.
struct Sums {
    /// With nobody present, (hidden,).
    start: Vec<f64>,
    /// (players, hidden).
    parts: Vec<f64>,
}

impl Sums {
    /// From the layer's weight, as numbers and with its shape, and its bias. Not for a fill that depends on who is
    /// present.
    fn new(
        method: &ShapCam,
        forward: &Forward,
        i: usize,
        (of, weight, bias): (&[usize], &[f64], &[f64]),
    ) -> Result<Sums> {
        let features = forward.features.detach().narrow(0, i, 1)?;
        let (_, k, h, w) = features.dims4()?;
        let hidden = bias.len();
        if of != [hidden, k, h, w] {
            bail!("the head's first layer is {of:?}, the activations need ({hidden}, {k}, {h}, {w})");
        }
        let fill = fill(method, forward, i)?.broadcast_as(features.shape())?.contiguous()?;
        let (features, fill) = (super::numbers(&features)?, super::numbers(&fill)?);
        let (mut start, mut parts) = (bias.to_vec(), vec![0.0; h * w * hidden]);
        for (j, weight) in weight.chunks_exact((k * h * w).max(1)).enumerate() {
            for (at, w_at) in weight.iter().enumerate() {
                start[j] += w_at * fill[at];
                parts[at % (h * w) * hidden + j] += w_at * (features[at] - fill[at]);
            }
        }
        Ok(Sums { start, parts })
    }

    /// As [`prefixes`].
    fn prefixes(
        &self,
        method: &ShapCam,
        forward: &Forward,
        classes: &Tensor,
        i: usize,
        walks: &[Vec<usize>],
    ) -> Result<Vec<f64>> {
        let hidden = self.start.len();
        let mut rows = Vec::new();
        for walk in walks {
            let mut sum = self.start.clone();
            for p in &walk[..walk.len() - 1] {
                sum.iter_mut().zip(&self.parts[p * hidden..]).for_each(|(s, part)| *s += part);
                rows.extend_from_slice(&sum);
            }
        }
        let (count, like) = (rows.len() / hidden.max(1), &forward.features);
        if count == 0 {
            return Ok(vec![]);
        }
        let rows = Tensor::from_vec(rows, (count, hidden), like.device())?.to_dtype(like.dtype())?;
        let class = classes.narrow(0, i, 1)?.broadcast_as(count)?.contiguous()?;
        super::numbers(&method.score.of(&forward.model.behind_first_layer(&rows)?, &class)?)
    }
}

/// Scores of all proper prefixes (1 to players - 1 positions) of these walks, in order.
fn prefixes(method: &ShapCam, forward: &Forward, classes: &Tensor, i: usize, walks: &[Vec<usize>]) -> Result<Vec<f64>> {
    let features = forward.features.detach().narrow(0, i, 1)?;
    let (_, k, h, w) = features.dims4()?;
    let (players, device, dtype) = (h * w, features.device(), features.dtype());
    let chunk = images_per_pass(forward, method.memory_mb);
    let masks: Vec<Vec<f32>> = walks
        .iter()
        .flat_map(|walk| {
            let mut present = vec![0f32; players];
            walk[..players - 1]
                .iter()
                .map(|p| {
                    present[*p] = 1.0;
                    present.clone()
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let fill = fill(method, forward, i)?;
    let mut scores = Vec::with_capacity(masks.len());
    for masks in masks.chunks(chunk) {
        let count = masks.len();
        let present = Tensor::from_vec(masks.concat(), (count, 1, h, w), device)?.to_dtype(dtype)?;
        let kept = features.broadcast_as((count, k, h, w))?.broadcast_mul(&present)?;
        let absent = present.affine(-1.0, 1.0)?;
        let fill = match method.fill {
            Fill::PresentMean => kept.sum_keepdim((2, 3))?.broadcast_div(&present.sum_keepdim((2, 3))?)?,
            _ => fill.broadcast_as((count, k, 1, 1))?.contiguous()?,
        };
        let masked = (kept + fill.broadcast_mul(&absent)?)?;
        let class = classes.narrow(0, i, 1)?.broadcast_as(count)?.contiguous()?;
        scores.extend(super::numbers(&method.score.of(&forward.model.head(&masked)?, &class)?)?);
    }
    Ok(scores)
}
