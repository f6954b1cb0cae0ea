//! Games whose logits are sums over the players: `z(S) = z0 + sum_{p in S} d_p`, as numbers and as tensors.

use candle_core::{CpuStorage, D, DType, Device, Result, Storage, Tensor, bail};
use candle_nn::ops::{log_softmax, softmax};
use rayon::prelude::*;

use super::det2::gradient;
use super::quadrature::{Node, nodes};
use super::{Fill, ShapCam, mean_features, numbers};
use crate::ops::{are_plain, class_maps, pool};
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

/// `W A(p) / n` for every class and position, (n, classes, p); and the fill's share of a position, (n, classes, 1).
fn contributions(forward: &Forward, head: &LinearHead, fill: Fill) -> Result<(Tensor, Tensor)> {
    let features = &forward.features;
    let (n, _, h, w) = features.dims4()?;
    let (positions, count) = (h * w, head.weight.dim(0)?);
    let q = (class_maps(&head.weight, features)?.flatten_from(2)? / positions as f64)?;
    let share = match fill {
        Fill::Zero | Fill::PresentMean => q.narrow(2, 0, 1)?.zeros_like()?,
        Fill::ChannelMean => q.mean_keepdim(2)?,
        Fill::ScalarMean => {
            let mean = (pool(features)?.mean_keepdim(1)? / positions as f64)?;
            mean.broadcast_mul(&head.weight.sum(1)?.unsqueeze(0)?)?.unsqueeze(2)?
        }
        Fill::DatasetMean => {
            let mean = mean_features(forward)?.unsqueeze(0)?;
            let share = (head.weight.broadcast_mul(&mean)?.sum(1)? / positions as f64)?;
            share.reshape((1, count, 1))?.broadcast_as((n, count, 1))?.contiguous()?
        }
    };
    Ok((q, share))
}

/// Every image's game, as numbers, in f64. Plain loops over the activations where they lie: a batch of products of 10 x
/// 128 x 64 spends most of its time on being called.
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

/// Every image's game from what a position's presence adds to each logit, (n, classes, h, w), and the logits with all
/// present, (n, classes).
pub fn positional_games(logits: &Tensor, change: &Tensor, classes: &Tensor) -> Result<Vec<Game>> {
    let (n, count, h, w) = change.dims4()?;
    let players = h * w;
    let (logits, change) = (numbers(logits)?, numbers(&change.flatten_from(2)?.transpose(1, 2)?.contiguous()?)?);
    let classes = classes.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let game = |i: usize| {
        let d = change[i * players * count..][..players * count].to_vec();
        let mut z0 = logits[i * count..][..count].to_vec();
        d.chunks_exact(count).for_each(|d| z0.iter_mut().zip(d).for_each(|(z, d)| *z -= d));
        Game { z0, d, class: classes[i] as usize, present_mean: false }
    };
    Ok((0..n).map(game).collect())
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

/// `z0` (n, classes) and `d` (n, classes, p), as tensors.
fn tensors(forward: &Forward, head: &LinearHead, fill: Fill) -> Result<(Tensor, Tensor)> {
    let (q, share) = contributions(forward, head, fill)?;
    let positions = q.dim(2)? as f64;
    let z0 = (&share * positions)?.squeeze(2)?.broadcast_add(&head.bias)?;
    Ok((z0, q.broadcast_sub(&share)?))
}

/// Aumann-Shapley values, `int_0^1 grad u(z0 + t D) . d_p dt`: (n, h, w), differentiable.
pub fn aumann(forward: &Forward, head: &LinearHead, classes: &Tensor, method: &ShapCam) -> Result<Tensor> {
    let (n, _, h, w) = forward.features.dims4()?;
    let (z0, d) = tensors(forward, head, method.fill)?;
    let total = d.sum(2)?;
    let mut slope = z0.zeros_like()?;
    for Node { t, weight, .. } in nodes() {
        let z = (&z0 + (&total * t)?)?;
        slope = (slope + (method.score.gradient(&z, classes)? * weight)?)?;
    }
    d.broadcast_mul(&slope.unsqueeze(2)?)?.sum(1)?.reshape((n, h, w))
}

/// `det2`, differentiable: (n, h, w).
pub fn det2(forward: &Forward, head: &LinearHead, classes: &Tensor, method: &ShapCam) -> Result<Tensor> {
    if method.score == Score::Logit {
        bail!("the logit's map is exact");
    }
    let (n, _, h, w) = forward.features.dims4()?;
    let (z0, d) = tensors(forward, head, method.fill)?;
    let phi = if are_plain(&[&d, &z0]) {
        let classes = classes.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        gradient::maps(&d, &z0, classes.into_iter().map(|c| c as usize).collect(), method.score)?
    } else {
        det2_of_tensors(&z0, &d, classes, method.score)?
    };
    phi.reshape((n, h, w))
}

/// The same rule in candle's ops, for other devices; in f64 where they have it, because a player's gain is the
/// difference of two numbers that are nearly alike.
fn det2_of_tensors(z0: &Tensor, d: &Tensor, classes: &Tensor, score: Score) -> Result<Tensor> {
    let (n, _, players) = d.dims3()?;
    let narrow = d.dtype();
    let wide = if d.device().is_metal() { narrow } else { DType::F64 };
    let (z0, d) = (&z0.to_dtype(wide)?, &d.to_dtype(wide)?);
    let (z0, d) = (z0.unsqueeze(1)?, d.transpose(1, 2)?.contiguous()?); // (n, 1, classes) and (n, p, classes)
    let class = Score::Logit.gradient(&z0.squeeze(1)?.detach(), classes)?.unsqueeze(1)?;
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
        if score == Score::Prob {
            let own = of(&diagonal.broadcast_sub(&d.sqr()?)?)?;
            let cross = (of(&qp)? - (of(&d)? * &along)?)?;
            let bend = (((own - (cross * 2.0)?)? + (whole * 2.0)?)? - trace)?;
            return of(&p)? * (bend * (0.5 * t * (1.0 - t)))?.affine(1.0, 1.0)?;
        }
        let mut u = of(&log_softmax(z, D::Minus1)?)?;
        if score == Score::Rest {
            u = (u + of(z)?)?;
        }
        u - ((trace - whole)? * (0.5 * t * (1.0 - t)))?
    };
    let mut phi = Tensor::zeros((n, players), d.dtype(), d.device())?;
    for Node { t, weight, .. } in nodes() {
        let without = z0.broadcast_add(&((total.broadcast_sub(&d)?) * t)?)?;
        let gain = (value(&(&without + &d)?, t)? - value(&without, t)?)?;
        phi = (phi + (gain * weight)?)?;
    }
    let at = |z: Tensor| score.of(&z.squeeze(1)?, classes);
    let missing = ((at((&z0 + &total)?)? - at(z0)?)? - phi.sum(1)?)?;
    phi.broadcast_add(&(missing / players as f64)?.unsqueeze(1)?)?.to_dtype(narrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::{assert_close, gradcheck, tensor, values};

    #[test]
    fn det2_has_the_same_bits_on_any_threads_and_is_computed_in_f64() -> Result<()> {
        let t = |shape: &[usize], seed| tensor(shape, seed, DType::F64, &Device::Cpu);
        let (z0, d) = (t(&[5, 4], 1)?, (t(&[5, 4, 9], 2)? * 0.8)?);
        let run = |z0: &Tensor, d: &Tensor| -> Result<Vec<f64>> {
            let (z0, d) = (candle_core::Var::from_tensor(z0)?, candle_core::Var::from_tensor(d)?);
            let phi = gradient::maps(&d, &z0, vec![0, 1, 2, 3, 0], Score::Prob)?;
            let grads = phi.sqr()?.sum_all()?.backward()?;
            let tensors = [phi, grads.get(&d).unwrap().clone(), grads.get(&z0).unwrap().clone()];
            Ok(tensors.iter().map(values).collect::<Result<Vec<_>>>()?.concat())
        };
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&z0, &d))
        };
        let one = on(1)?;
        assert!(one == on(2)? && one == on(3)?);
        let (z0, d) = (z0.to_dtype(DType::F32)?, d.to_dtype(DType::F32)?);
        assert_close("f32", &run(&z0, &d)?, &one, 1e-6);
        let classes = Tensor::new(&[0u32, 1, 2, 3, 0], &Device::Cpu)?;
        let of_tensors = det2_of_tensors(&z0, &d, &classes, Score::Prob)?;
        assert_eq!(of_tensors.dtype(), DType::F32);
        assert_close("f32, candle's ops", &values(&of_tensors)?, &one[..5 * 9], 1e-6);
        Ok(())
    }

    /// The op's formula, candle's autograd on the same rule, and differences: three ways to one gradient.
    #[test]
    fn det2_and_its_gradient_are_those_of_the_tensors() -> Result<()> {
        let t = |shape: &[usize], seed| tensor(shape, seed, DType::F64, &Device::Cpu);
        for (count, players) in [(4, 7), (1, 3), (3, 1)] {
            let (z0, d) = (t(&[2, count], 1)?, (t(&[2, count, players], 2)? * 0.8)?);
            let classes = Tensor::new(&[count as u32 - 1, 0], &Device::Cpu)?;
            let numbers = vec![count - 1, 0];
            let weight = t(&[2, players], 3)?;
            for score in [Score::Prob, Score::LogProb, Score::Rest] {
                let what = format!("{score:?}, {count} classes, {players} players");
                let loss = |d: &Tensor, z0: &Tensor, op: bool| -> Result<Tensor> {
                    let phi = if op {
                        gradient::maps(d, z0, numbers.clone(), score)?
                    } else {
                        det2_of_tensors(z0, d, &classes, score)?
                    };
                    (phi * &weight)?.sum_all()
                };
                if count == 1 && score != Score::Rest {
                    // The only class has probability 1, whoever is present.
                    assert!(values(&loss(&d, &z0, true)?)?[0].abs() < 1e-12, "{what}");
                    continue;
                }
                assert_close(&what, &values(&loss(&d, &z0, true)?)?, &values(&loss(&d, &z0, false)?)?, 1e-12);
                let gradients = |op: bool| -> Result<Vec<f64>> {
                    let (d, z0) = (candle_core::Var::from_tensor(&d)?, candle_core::Var::from_tensor(&z0)?);
                    let grads = loss(&d, &z0, op)?.backward()?;
                    let mut all = values(grads.get(&d).unwrap())?;
                    all.extend(values(grads.get(&z0).unwrap())?);
                    Ok(all)
                };
                assert_close(&what, &gradients(true)?, &gradients(false)?, 1e-11);
                let worst = gradcheck(&d, 100, 1e-5, |d| loss(d, &z0, true))?;
                assert!(worst < 1e-7, "{what}: off by {worst:.1e}");
            }
        }
        Ok(())
    }
}
