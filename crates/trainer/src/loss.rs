//! The loss terms, each a free function, unweighted; means over the batch.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::ops::{log_softmax, softmax};

use crate::config::{Distance, Weights};

/// One value for each term; absent where its weight is 0.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// Cross-entropy.
    pub ce: Option<Tensor>,
    /// Knowledge distillation.
    pub kd: Option<Tensor>,
    /// Explanation matching.
    pub explanation: Option<Tensor>,
    /// Attention transfer.
    pub attention: Option<Tensor>,
}

impl Losses {
    /// (name, value, weight) of the terms that are there.
    pub fn terms(&self, weights: &Weights) -> Vec<(&'static str, &Tensor, f64)> {
        let all = [
            ("ce", &self.ce, weights.ce),
            ("kd", &self.kd, weights.kd),
            ("explanation", &self.explanation, weights.explanation),
            ("attention", &self.attention, weights.attention),
        ];
        all.into_iter().filter_map(|(name, t, w)| Some((name, t.as_ref()?, w))).collect()
    }

    /// `sum of weight * term`.
    pub fn total(&self, weights: &Weights) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (_, term, weight) in self.terms(weights) {
            let term = (term * weight)?;
            total = Some(match total {
                Some(t) => (t + term)?,
                None => term,
            });
        }
        total.ok_or_else(|| candle_core::Error::msg("no loss term has a weight"))
    }
}

/// Mean cross-entropy of `logits` (n, classes) and `labels` (n,), with label smoothing.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    let log_p = log_softmax(logits, D::Minus1)?;
    let nll = log_p.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()?;
    if smoothing == 0.0 {
        return Ok(nll);
    }
    (nll * (1.0 - smoothing))? - (log_p.mean_all()? * smoothing)?
}

/// `T^2 / n sum_i KL(softmax(teacher / T) || softmax(student / T))` (Hinton et al. 2015).
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let n = student.dim(0)? as f64;
    let teacher = (teacher.detach() / temperature)?;
    let log_q = log_softmax(&(student / temperature)?, D::Minus1)?;
    let kl = (softmax(&teacher, D::Minus1)? * (log_softmax(&teacher, D::Minus1)? - log_q)?)?.sum_all()?;
    kl * (temperature * temperature / n)
}

/// Distance of two batches of maps (n, h, w); unequal sizes are average-pooled to the smaller one.
pub fn map_distance(distance: Distance, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let teacher = teacher.detach();
    let (n, h, w) = student.dims3()?;
    let (_, th, tw) = teacher.dims3()?;
    let (h, w) = (h.min(th), w.min(tw));
    let (s, t) = (adaptive_average(student, h, w)?, adaptive_average(&teacher, h, w)?);
    let (s, t) = (s.flatten_from(1)?, t.flatten_from(1)?);
    let n = n as f64;
    match distance {
        Distance::RawL2 => (s - t)?.sqr()?.sum_all()? / n,
        Distance::AtL2 => (unit(&s)? - unit(&t)?)?.sqr()?.mean_all(),
        Distance::Cosine => (unit(&s)? * unit(&t)?)?.sum_all()?.affine(-1.0 / n, 1.0),
        Distance::AllClassPooled => bail!("all_class_pooled compares every class's map, not one"),
    }
}

/// Rows divided by their norm; the eps inside the root keeps a zero map's gradient finite.
fn unit(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&(rows.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?)
}

/// CAT-KD (Guo et al. 2023): mean squared difference of all classes' CAMs (n, classes, h, w), pooled to 2x2,
/// without ReLU or normalisation.
pub fn all_class_pooled(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let pool = |maps: &Tensor| -> Result<Tensor> {
        let (n, c, h, w) = maps.dims4()?;
        adaptive_average(&maps.reshape((n * c, h, w))?, 2.min(h), 2.min(w))
    };
    (pool(student)? - pool(&teacher.detach())?)?.sqr()?.mean_all()
}

/// Where a layer (n, k, h, w) looks: the mean of its squared activations, (n, h, w).
pub fn attention_map(features: &Tensor) -> Result<Tensor> {
    features.sqr()?.mean(1)
}

/// Zagoruyko & Komodakis 2017 (arXiv 1612.03928): mean squared difference of the normalised attention maps,
/// summed over the layers.
pub fn attention_transfer(student: &[Tensor], teacher: &[Tensor]) -> Result<Tensor> {
    if student.len() != teacher.len() || student.is_empty() {
        bail!("attention transfer needs as many layers of the teacher as of the student, at least one");
    }
    let mut total = map_distance(Distance::AtL2, &student[0], &teacher[0])?;
    for (s, t) in student.iter().zip(teacher).skip(1) {
        total = (total + map_distance(Distance::AtL2, s, t)?)?;
    }
    Ok(total)
}

/// Adaptive average pooling of (n, h, w) to (n, height, width), PyTorch's windows, as two matrix products.
fn adaptive_average(maps: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (n, h, w) = maps.dims3()?;
    if (h, w) == (height, width) {
        return Ok(maps.clone());
    }
    let axis = |from: usize, to: usize| -> Result<Tensor> {
        let mut m = vec![0f64; to * from];
        for i in 0..to {
            let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
            m[i * from + start..i * from + end].fill(1.0 / (end - start) as f64);
        }
        Tensor::from_vec(m, (to, from), maps.device())?.to_dtype(maps.dtype())
    };
    let wide = maps.reshape((n * h, w))?.matmul(&axis(w, width)?.t()?)?.reshape((n, h, width))?;
    axis(h, height)?.unsqueeze(0)?.broadcast_as((n, height, h))?.contiguous()?.matmul(&wide)
}

/// A scalar tensor as f64.
pub fn value(t: &Tensor) -> Result<f64> {
    t.to_dtype(DType::F64)?.to_scalar()
}
