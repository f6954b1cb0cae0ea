mod additive;
mod det2;
mod mc;
mod quadrature;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ops::{pool, weighted_sum};
use crate::ranges::{MEMORY_MB, Ranges, SEED, from};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, LinearHead, Place, Score};
pub use mc::Sampling;

/// What a position that is absent from a coalition gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Zero.
    #[default]
    Zero,
    /// Each channel's mean over positions.
    ChannelMean,
    /// The mean of the whole activation.
    ScalarMean,
    /// Each channel's mean over the training set, kept with the checkpoint.
    DatasetMean,
    /// Each channel's mean over the positions that are present.
    PresentMean,
}

/// How the Shapley values are computed. A head is additive where its logits are sums over positions:
/// [`CamModel::linear_head`](crate::CamModel::linear_head) or, outside a loss, [`CamModel::contributions`](crate::CamModel::contributions).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Computation {
    /// The closed form where there is one (score `logit`, additive head); else, behind an additive head, `det2` for the images where
    /// its own estimate of its error is at most 5 %; else, and with the fill `present_mean`, `mc`. In a loss behind a linear head
    /// `det2` for every image.
    #[default]
    Auto,
    /// The closed form; an error where there is none.
    Exact,
    /// Shapley values to second order, see [`ShapCam`]; needs an additive head.
    Det2,
    /// Aumann-Shapley values, see [`ShapCam`]; needs an additive head.
    Aumann,
    /// Random permutations in antithetic pairs (Castro et al. 2009), with standard errors; any head. Not differentiable.
    Mc,
}

/// Shap-CAM (Zheng et al. 2022, arXiv 2208.03608).
///
/// The players are the n positions of A, each with all its channels; the map is their Shapley value
/// `phi_p = sum_{S without p} |S|! (n - |S| - 1)! / n! (v(S + p) - v(S))`, v(S) the explained score when the positions outside S hold
/// the `fill`. It is signed and sums to `v(all) - v(none)`.
///
/// With average pooling and a linear layer behind A the logits are a sum over positions, and no coalition needs a pass:
/// - For the logit itself the game is additive: every marginal contribution is the same in every coalition, and
///   `phi_p = (CAM(p) - CAM of the fill) / n` with `CAM(p) = sum_k W_ck A_k(p)` is exact. For `present_mean`, where the
///   fill depends on the coalition: `phi_p = (q_p + (H_n - 1)(q_p - mean_{r != p} q_r)) / n`, q = CAM, H_n the n-th harmonic number, and
///   v(none) = b_c.
/// - For the other scores, with `z(S) = z0 + sum_{p in S} d_p` the logits, `D = sum_p d_p` and u the score as a function of the logits,
///   `aumann` is `phi_p = int_0^1 grad u(z0 + t D) . d_p dt` (Aumann & Shapley 1974), another value than Shapley's, without an error;
///   `det2` is `phi_p = int_0^1 E[u(z(S) + d_p) - u(z(S))] dt`, each other position in S with probability t (Owen 1972), where
///   `E u(z(S)) = u(m) + tr(H_u(m) Sigma) / 2`, m and Sigma the mean and covariance of z(S); what is then missing from the sum is
///   spread evenly, and outside a loss an estimate of its error comes with the map; `mc` samples permutations, each with its reverse,
///   whose standard error comes with the map.
///
/// A head that is not linear but sees every position by itself, and then takes the mean, as SqueezeNet's (a 1x1
/// convolution and a ReLU), has additive games too: `phi_p = g_c(A(p)) - g_c(fill)`, g the head at one position over
/// their number ([`CamModel::contributions`](crate::CamModel::contributions)).
///
/// Elsewhere `mc` evaluates the head on masked activations, without its first layer where that is linear in them
/// ([`CamModel::first_layer`](crate::CamModel::first_layer)).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapCam {
    /// What is explained.
    pub score: Score,
    /// What an absent position gets.
    pub fill: Fill,
    /// Whether a ReLU follows. The paper does not say; without one the map is signed and sums to the score's difference.
    pub relu: bool,
    /// How the values are found.
    pub estimator: Computation,
    /// Sampled permutations at most, per image; a pair is two.
    pub permutations: usize,
    /// Evaluations of the head at most, per image, where coalitions need them; two pairs are always sampled.
    pub evaluations: usize,
    /// Sampling stops when the 95 % intervals are within this share of the largest value; 0: at `permutations`.
    pub tolerance: f64,
    /// Seed of the permutations: the same for every model, so that a teacher and its student share them.
    pub seed: u64,
    /// Memory for one pass of the head, in MB.
    pub memory_mb: f64,
}

impl Default for ShapCam {
    fn default() -> Self {
        ShapCam {
            score: Score::Logit,
            fill: Fill::Zero,
            relu: false,
            estimator: Computation::Auto,
            permutations: 2000,
            evaluations: 50_000,
            tolerance: 0.05,
            seed: 0,
            memory_mb: 256.0,
        }
    }
}

impl ShapCam {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("permutations", from(4.0, 1e9)),
        ("evaluations", from(4.0, 1e12)),
        ("tolerance", from(0.0, 10.0)),
        ("seed", SEED),
        ("memory_mb", MEMORY_MB),
    ];
}

/// Above this estimate of its error `auto` does not trust `det2`.
const TRUSTED: f64 = 0.05;

impl ShapCam {
    /// Shapley values of the logits `head` computes, (n, h, w); differentiable.
    fn exact(&self, forward: &Forward, head: &LinearHead, classes: &Tensor) -> Result<Tensor> {
        let features = &forward.features;
        let (_, _, h, w) = features.dims4()?;
        let n = h * w;
        let weight = head.class_weight(classes)?;
        let cam = weighted_sum(&weight, features)?;
        let value = match self.fill {
            Fill::Zero => cam,
            Fill::ChannelMean => cam.broadcast_sub(&cam.mean_keepdim((1, 2))?)?,
            Fill::ScalarMean => {
                let mean = pool(features)?.mean(1)?;
                cam.broadcast_sub(&(weight.sum(1)? * mean)?.reshape(((), 1, 1))?)?
            }
            Fill::DatasetMean => {
                let mean = mean_features(forward)?.unsqueeze(0)?;
                cam.broadcast_sub(&weight.broadcast_mul(&mean)?.sum(1)?.reshape(((), 1, 1))?)?
            }
            Fill::PresentMean if n == 1 => cam,
            Fill::PresentMean => {
                let harmonic: f64 = (1..=n).map(|i| 1.0 / i as f64).sum();
                let others = (cam.sum_keepdim((1, 2))?.broadcast_sub(&cam)? / (n - 1) as f64)?;
                (&cam + ((&cam - others)? * (harmonic - 1.0))?)?
            }
        };
        value / n as f64
    }

    fn sampling(&self) -> Sampling {
        Sampling { permutations: self.permutations, tolerance: self.tolerance, seed: self.seed }
    }

    /// What absent positions of `features` (n, k, h, w) get, (n, k, 1, 1), where that does not depend on who is present.
    fn filling(&self, forward: &Forward, features: &Tensor) -> Result<Tensor> {
        let per_channel = features.mean_keepdim((2, 3))?;
        match self.fill {
            Fill::Zero | Fill::PresentMean => per_channel.zeros_like(),
            Fill::ChannelMean => Ok(per_channel),
            Fill::ScalarMean => per_channel.mean_keepdim(1)?.broadcast_as(per_channel.shape())?.contiguous(),
            Fill::DatasetMean => {
                mean_features(forward)?.reshape((1, (), 1, 1))?.broadcast_as(per_channel.shape())?.contiguous()
            }
        }
    }

    /// Whether a rule that was asked for, as a loss does of its teacher too, is computed where the activations lie,
    /// without an estimate of its error: a card would hand every step's activations to the host for it.
    fn stays_on(&self, device: &Device) -> bool {
        let asked = matches!(self.estimator, Computation::Det2 | Computation::Aumann);
        asked && self.fill != Fill::PresentMean && device.is_cuda()
    }

    /// Behind a head that sees every position alone the logits are sums over positions, linear head or not. `change` is
    /// what each position's presence adds to each logit, (n, classes, h, w).
    fn by_positions(&self, forward: &Forward, change: &Tensor, classes: &Tensor) -> Result<Explanation> {
        if self.score == Score::Logit && self.estimator != Computation::Mc {
            let (n, _, h, w) = change.dims4()?;
            let index = classes.reshape((n, 1, 1, 1))?.broadcast_as((n, 1, h, w))?.contiguous()?;
            return Explanation::new(change.contiguous()?.gather(&index, 1)?.squeeze(1)?, Estimator::Exact, 0);
        }
        if forward.features.track_op() {
            bail!("in a loss, shap_cam behind this head has a closed form for score = \"logit\" only");
        }
        let games = additive::positional_games(&forward.logits, change, classes)?;
        self.by_games(forward, &games)
    }

    /// Maps from games as numbers: image by image, on all threads.
    fn by_games(&self, forward: &Forward, games: &[additive::Game]) -> Result<Explanation> {
        let (n, _, h, w) = forward.features.dims4()?;
        let maps: Vec<_> = games
            .par_iter()
            .zip(&forward.ids)
            .map(|(game, id)| {
                let sampled = || {
                    let (phi, error) = mc::additive(game, self.score, self.sampling(), *id);
                    (phi, error, Estimator::Mc)
                };
                match self.estimator {
                    Computation::Mc => sampled(),
                    _ if game.present_mean => sampled(),
                    Computation::Aumann => (det2::aumann(game, self.score), vec![], Estimator::Aumann),
                    _ => {
                        let found = det2::det2(game, self.score);
                        if self.estimator == Computation::Auto && found.relative_error > TRUSTED {
                            return sampled();
                        }
                        (found.phi, found.error, Estimator::Det2)
                    }
                }
            })
            .collect();
        let tensor = |values: Vec<f64>| {
            Tensor::from_vec(values, (n, h, w), forward.features.device())?.to_dtype(forward.features.dtype())
        };
        let estimators = maps.iter().map(|(_, _, estimator)| *estimator).collect();
        let known = self.estimator != Computation::Aumann || games.iter().all(|game| game.present_mean);
        let errors: Vec<f64> = maps.iter().flat_map(|(_, error, _)| error.iter().copied()).collect();
        let error = known.then(|| tensor(errors)).transpose()?;
        let map = tensor(maps.into_iter().flat_map(|(phi, ..)| phi).collect())?;
        Ok(Explanation { map, estimators, error, evaluations: 0 })
    }
}

/// The training set's mean activations (k,).
fn mean_features(forward: &Forward) -> Result<Tensor> {
    match forward.model.mean_features() {
        Some(mean) => mean.to_dtype(forward.features.dtype()),
        None => bail!(
            "fill = \"dataset_mean\" needs the training set's mean activations at this layer, which this model does not carry: \
             calibrate it on training images, or use channel_mean"
        ),
    }
}

impl Interpreter for ShapCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        if self.permutations < 4 && matches!(self.estimator, Computation::Auto | Computation::Mc) {
            bail!("shap_cam needs at least 4 permutations for a standard error, {} given", self.permutations);
        }
        let head = forward.model.linear_head();
        let not_additive = || {
            candle_core::Error::Msg(format!(
                "shap_cam is exact only for the logit: with score = \"{}\" the game is not additive; use estimator det2 or mc",
                serde_name(self.score)
            ))
        };
        // With `present_mean` what a player adds depends on the coalition, whatever the head.
        if head.is_none()
            && self.fill != Fill::PresentMean
            && let Some(present) = forward.model.contributions(&forward.features)
        {
            let features = &forward.features;
            let filled = self.filling(forward, features)?.broadcast_as(features.shape())?.contiguous()?;
            let Some(absent) = forward.model.contributions(&filled) else {
                bail!("a head that sees every position alone sees the fill so too")
            };
            if self.estimator == Computation::Exact && self.score != Score::Logit {
                return Err(not_additive());
            }
            return self.by_positions(forward, &(present? - absent?)?, classes);
        }
        match (head, self.estimator) {
            // For the logit every deterministic rule is the closed form.
            (Some(head), how) if self.score == Score::Logit && how != Computation::Mc => {
                Explanation::new(self.exact(forward, &head, classes)?, Estimator::Exact, 0)
            }
            (Some(_), Computation::Exact) => Err(not_additive()),
            (Some(head), Computation::Auto | Computation::Det2 | Computation::Aumann)
                if forward.features.track_op() || self.stays_on(forward.features.device()) =>
            {
                if self.fill == Fill::PresentMean {
                    bail!("in a loss, shap_cam's fill = \"present_mean\" has a closed form for score = \"logit\" only");
                }
                let (map, estimator) = match self.estimator {
                    Computation::Aumann => (additive::aumann(forward, &head, classes, self)?, Estimator::Aumann),
                    _ => (additive::det2(forward, &head, classes, self)?, Estimator::Det2),
                };
                Explanation::new(map, estimator, 0)
            }
            (Some(_), Computation::Det2 | Computation::Aumann) if self.fill == Fill::PresentMean => bail!(
                "with fill = \"present_mean\" what a player gets depends on the others: det2 and aumann do not cover it; use mc"
            ),
            (Some(head), _) => self.by_games(forward, &additive::games(forward, &head, classes, self.fill)?),
            (None, Computation::Auto | Computation::Mc) => mc::by_passes(self, forward, classes),
            (None, _) => bail!(
                "estimator exact, det2 and aumann need average pooling and a linear layer behind the explained layer: use layer = \
                 \"last\", or estimator = \"mc\""
            ),
        }
    }

    fn has_relu(&self) -> bool {
        self.relu
    }

    fn sees_class_maps_alone(&self) -> bool {
        // The other fills are means of the activations themselves.
        matches!(self.fill, Fill::Zero | Fill::ChannelMean | Fill::PresentMean)
    }

    fn differentiable(&self) -> Differentiable {
        match self.estimator {
            Computation::Mc => {
                Differentiable::Not("a sampled map is a constant; estimator det2 or exact have closed forms")
            }
            _ => Differentiable::ClosedForm,
        }
    }

    /// Teacher and student must be explained by one rule, not by the one that suits each image best.
    fn settle_in_loss(&mut self, _: &dyn Fn(&str) -> bool) {
        if self.estimator == Computation::Auto && self.score != Score::Logit {
            self.estimator = Computation::Det2;
        }
    }

    fn refuses(&self, place: Place) -> Option<String> {
        match self.differentiable() {
            Differentiable::Not(why) => Some(format!("cannot be matched: not differentiable: {why}")),
            _ if place != Place::Last => {
                Some("would have to be sampled, and a sampled map cannot be matched: use \"last\"".into())
            }
            _ if self.fill == Fill::DatasetMean => Some(
                "with fill = \"dataset_mean\" cannot be matched: a student in training has no mean activations; use channel_mean"
                    .into(),
            ),
            _ => None,
        }
    }
}

fn serde_name(score: Score) -> &'static str {
    match score {
        Score::Logit => "logit",
        Score::Prob => "prob",
        Score::LogProb => "log_prob",
        Score::Rest => "rest",
    }
}

/// The values of a tensor as f64.
fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    t.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
