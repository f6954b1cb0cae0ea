//! Games whose logits are sums over the players: `z(S) = z0 + sum_{p in S} d_p`, as numbers and as tensors.

use std::sync::LazyLock;

use candle_core::{CpuStorage, D, DType, Device, Result, Storage, Tensor, bail};
use candle_nn::ops::{log_softmax, softmax};
use rayon::prelude::*;

use super::{Fill, ShapCam, mean_features, numbers};
use crate::{Forward, LinearHead, Score};

/// One image's game.
pub struct Game {
    /// Logits with nobody present, (classes,).
    pub z0: Vec<f64>,
    /// Contributions, (players, classes); with `present_mean` those of a player who is alone, times n.
    pub d: Vec<f64>,
    /// The class explained.
    pub class: usize,
    /// Absent players get the mean of those present: `z(S) = z0 + mean_{p in S} d_p`.
    pub present_mean: bool,
}

impl Game {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.z0.len()
    }
    /// Number of players.
    pub fn players(&self) -> usize {
        self.d.len() / self.z0.len().max(1)
    }
}

/// `W A(p) / n` for every class and position, (n, p, classes); and the fill's share of a position, (n, 1, classes).
fn contributions(forward: &Forward, head: &LinearHead, fill: Fill) -> Result<(Tensor, Tensor)> {
    let features = &forward.features;
    let (n, k, h, w) = features.dims4()?;
    let (positions, count) = (h * w, head.weight.dim(0)?);
    let weight = head.weight.unsqueeze(0)?.broadcast_as((n, count, k))?.contiguous()?;
    let q = (weight.matmul(&features.flatten_from(2)?)?.transpose(1, 2)? / positions as f64)?.contiguous()?;
    let share = match fill {
        Fill::Zero | Fill::PresentMean => q.narrow(1, 0, 1)?.zeros_like()?,
        Fill::ChannelMean => q.mean_keepdim(1)?,
        Fill::ScalarMean => {
            let mean = (features.mean((1, 2, 3))? / positions as f64)?.reshape((n, 1, 1))?;
            mean.broadcast_mul(&head.weight.sum(1)?.reshape((1, 1, count))?)?
        }
        Fill::DatasetMean => {
            let mean = mean_features(forward)?.unsqueeze(0)?;
            let share = (head.weight.broadcast_mul(&mean)?.sum(1)? / positions as f64)?;
            share.reshape((1, 1, count))?.broadcast_as((n, 1, count))?.contiguous()?
        }
    };
    Ok((q, share))
}

/// Every image's game, as numbers, in f64. Plain loops over the activations where they lie: a batch of products of 10 x 128 x 64
/// spends most of its time on being called.
pub fn games(forward: &Forward, head: &LinearHead, classes: &Tensor, fill: Fill) -> Result<Vec<Game>> {
    let (weight, bias) = (numbers(&head.weight)?, numbers(&head.bias)?);
    let mean = if fill == Fill::DatasetMean { numbers(&mean_features(forward)?)? } else { vec![] };
    let classes = classes.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let shared = Shared { weight: &weight, bias: &bias, mean: &mean, classes: &classes, fill };
    let features = forward.features.detach().contiguous()?.to_device(&Device::Cpu)?;
    let (_, k, h, w) = features.dims4()?;
    let (storage, layout) = features.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("activations that were moved to the CPU are not there") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("activations that were laid out are not") };
    match storage {
        CpuStorage::F64(values) => Ok(shared.games(&values[start..end], k, h * w, |x| x)),
        CpuStorage::F32(values) => Ok(shared.games(&values[start..end], k, h * w, f64::from)),
        _ => bail!("shap_cam computes from f32 or f64 activations, not from {:?}", features.dtype()),
    }
}

/// What the games of a batch share.
struct Shared<'a> {
    /// (classes, k).
    weight: &'a [f64],
    bias: &'a [f64],
    /// (k,), for `dataset_mean`.
    mean: &'a [f64],
    /// Explained, (n,).
    classes: &'a [i64],
    fill: Fill,
}

impl Shared<'_> {
    fn games<E: Copy + Sync>(
        &self,
        features: &[E],
        k: usize,
        positions: usize,
        wide: impl Fn(E) -> f64 + Sync,
    ) -> Vec<Game> {
        let images = features.par_chunks((k * positions).max(1)).zip(self.classes);
        images.map(|(image, class)| self.game(image, positions, &wide, *class as usize)).collect()
    }

    fn game<E: Copy>(&self, image: &[E], positions: usize, wide: impl Fn(E) -> f64, class: usize) -> Game {
        let (count, n) = (self.bias.len(), positions as f64);
        let k = image.len() / positions;
        // W A(p) for every class and position, positions innermost.
        let mut q = vec![0.0; count * positions];
        let mut channel = vec![0.0; positions];
        for (c, values) in image.chunks_exact(positions).enumerate() {
            channel.iter_mut().zip(values).for_each(|(to, from)| *to = wide(*from));
            for (j, q) in q.chunks_exact_mut(positions).enumerate() {
                let w = self.weight[j * k + c];
                q.iter_mut().zip(&channel).for_each(|(q, a)| *q += w * a);
            }
        }
        let row = |j: usize| &self.weight[j * k..][..k];
        // What the fill gives at every position, for each class.
        let share: Vec<f64> = match self.fill {
            Fill::Zero | Fill::PresentMean => vec![0.0; count],
            Fill::ChannelMean => q.chunks_exact(positions).map(|q| q.iter().sum::<f64>() / n).collect(),
            Fill::ScalarMean => {
                let mean = image.iter().map(|a| wide(*a)).sum::<f64>() / image.len() as f64;
                (0..count).map(|j| row(j).iter().sum::<f64>() * mean).collect()
            }
            Fill::DatasetMean => (0..count).map(|j| row(j).iter().zip(self.mean).map(|(w, m)| w * m).sum()).collect(),
        };
        let present_mean = self.fill == Fill::PresentMean;
        let scale = if present_mean { 1.0 } else { 1.0 / n };
        let d = (0..positions * count).map(|at| {
            let (p, j) = (at / count, at % count);
            (q[j * positions + p] - share[j]) * scale
        });
        Game { d: d.collect(), z0: self.bias.iter().zip(&share).map(|(b, s)| b + s).collect(), class, present_mean }
    }
}

/// Nodes and weights of a quadrature on [0, 1].
pub type Nodes = Vec<(f64, f64)>;

/// Gauss-Legendre's rules with 16 and with 8 nodes: constants, found once.
pub static FINE: LazyLock<Nodes> = LazyLock::new(|| gauss(16));
/// See [`FINE`].
pub static COARSE: LazyLock<Nodes> = LazyLock::new(|| gauss(8));

fn gauss(count: usize) -> Nodes {
    (0..count)
        .map(|i| {
            // Newton's method on the Legendre polynomial, from Tricomi's estimate of its root.
            let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (count as f64 + 0.5)).cos();
            let mut slope = 1.0;
            for _ in 0..50 {
                let (mut p, mut before) = (1.0, 0.0);
                for j in 0..count {
                    (p, before) = (((2 * j + 1) as f64 * x * p - j as f64 * before) / (j + 1) as f64, p);
                }
                slope = count as f64 * (x * p - before) / (x * x - 1.0);
                x -= p / slope;
            }
            (0.5 * (1.0 - x), 1.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect()
}

/// `z0` (n, 1, classes) and `d` (n, p, classes), as tensors.
fn tensors(forward: &Forward, head: &LinearHead, fill: Fill) -> Result<(Tensor, Tensor)> {
    let (q, share) = contributions(forward, head, fill)?;
    let positions = q.dim(1)? as f64;
    let z0 = (&share * positions)?.broadcast_add(&head.bias.reshape((1, 1, ()))?)?;
    Ok((z0, q.broadcast_sub(&share)?))
}

/// 1 at each image's class, (n, 1, classes).
fn at_class(forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    Score::Logit.gradient(&forward.logits.detach(), classes)?.unsqueeze(1)
}

/// Aumann-Shapley values, `int_0^1 grad u(z0 + t D) . d_p dt`: (n, h, w), differentiable.
pub fn aumann(forward: &Forward, head: &LinearHead, classes: &Tensor, method: &ShapCam) -> Result<Tensor> {
    let (n, _, h, w) = forward.features.dims4()?;
    let (z0, d) = tensors(forward, head, method.fill)?;
    let total = d.sum_keepdim(1)?;
    let mut slope = z0.zeros_like()?;
    for &(t, weight) in FINE.iter() {
        let z = (&z0 + (&total * t)?)?.squeeze(1)?;
        slope = (slope + (method.score.gradient(&z, classes)? * weight)?.unsqueeze(1)?)?;
    }
    d.broadcast_mul(&slope)?.sum(D::Minus1)?.reshape((n, h, w))
}

/// `det2` on tensors: the same rule as on numbers; differentiable, and slower.
pub fn det2(forward: &Forward, head: &LinearHead, classes: &Tensor, method: &ShapCam) -> Result<Tensor> {
    if method.score == Score::Logit {
        bail!("the logit's map is exact");
    }
    let (n, _, h, w) = forward.features.dims4()?;
    let (z0, d) = tensors(forward, head, method.fill)?;
    let class = at_class(forward, classes)?;
    let total = d.sum_keepdim(1)?;
    let spread = d.transpose(1, 2)?.contiguous()?.matmul(&d)?; // Q, (n, classes, classes)
    let diagonal = d.sqr()?.sum_keepdim(1)?; // (n, 1, classes)
    let value = |z: &Tensor, t: f64| -> Result<Tensor> {
        let p = softmax(z, D::Minus1)?;
        let qp = p.matmul(&spread)?;
        let along = (&p * &d)?.sum(D::Minus1)?;
        let whole = ((&p * &qp)?.sum(D::Minus1)? - along.sqr()?)?;
        let trace = (&p * diagonal.broadcast_sub(&d.sqr()?)?)?.sum(D::Minus1)?;
        let of = |t: &Tensor| t.broadcast_mul(&class)?.sum(D::Minus1);
        if method.score == Score::Prob {
            let own = of(&diagonal.broadcast_sub(&d.sqr()?)?)?;
            let cross = (of(&qp)? - (of(&d)? * &along)?)?;
            let bend = (((own - (cross * 2.0)?)? + (whole * 2.0)?)? - trace)?;
            return of(&p)? * (bend * (0.5 * t * (1.0 - t)))?.affine(1.0, 1.0)?;
        }
        let mut u = of(&log_softmax(z, D::Minus1)?)?;
        if method.score == Score::Rest {
            u = (u + of(z)?)?;
        }
        u - ((trace - whole)? * (0.5 * t * (1.0 - t)))?
    };
    let mut phi = Tensor::zeros((n, h * w), d.dtype(), d.device())?;
    for &(t, weight) in FINE.iter() {
        let without = z0.broadcast_add(&((total.broadcast_sub(&d)?) * t)?)?;
        let gain = (value(&(&without + &d)?, t)? - value(&without, t)?)?;
        phi = (phi + (gain * weight)?)?;
    }
    let score = |z: Tensor| method.score.of(&z.squeeze(1)?, classes);
    let missing = ((score((&z0 + &total)?)? - score(z0)?)? - phi.sum(1)?)?;
    phi.broadcast_add(&(missing / (h * w) as f64)?.unsqueeze(1)?)?.reshape((n, h, w))
}
