//! The loss terms, each a free function, unweighted; means over the batch.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::ops::log_softmax;

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

/// `T^2 / n sum_i KL(softmax(teacher / T) || softmax(student / T))` (Hinton et al. 2015), (n, classes) each, for any T.
///
/// At large T the divergence is a difference of nearly equal numbers, T^2 times too small to be seen among them. With
/// `d = (s - t) / T`, p the teacher's probabilities and `e = d - sum_j p_j d_j` it is `log(1 + sum_j p_j (exp(e_j) - 1 - e_j))`, a sum of
/// positive numbers that vanish like 1 / T^2; this form is used where no e is large. In f64, and given back in the student's type.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let n = student.dim(0)? as f64;
    let soft = |t: &Tensor| t.to_dtype(DType::F64)? / temperature;
    let (s, t) = (soft(student)?, soft(&teacher.detach())?);
    let (log_p, log_q) = (log_softmax(&t, D::Minus1)?, log_softmax(&s, D::Minus1)?);
    let p = log_p.exp()?;
    let far = (&p * (&log_p - log_q)?)?.sum(D::Minus1)?;
    let d = (s - t)?;
    let e = d.broadcast_sub(&(&p * &d)?.sum_keepdim(D::Minus1)?)?;
    let near = (&p * exp_minus_line(&e.clamp(-NEAR, NEAR)?)?)?.sum(D::Minus1)?;
    let near = (&near * log1p_over(&near)?)?;
    let is_near = e.detach().abs()?.max(D::Minus1)?.lt(NEAR)?;
    let kl = is_near.where_cond(&near, &far)?.sum_all()?;
    (kl * (temperature * temperature / n))?.to_dtype(student.dtype())
}

/// Up to here the series below are exact to rounding.
const NEAR: f64 = 0.1;

/// `exp(x) - 1 - x` for |x| up to [`NEAR`]: `x^2 (1/2! + x/3! + x^2/4! + ...)`.
fn exp_minus_line(x: &Tensor) -> Result<Tensor> {
    let mut sum = x.affine(0.0, 1.0 / 39_916_800.0)?; // 1/11!
    for inverse in [3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0] {
        sum = (sum * x)?.affine(1.0, 1.0 / inverse)?;
    }
    sum * x.sqr()?
}

/// `log(1 + y) / y` for y from 0 to about 0.006, which [`NEAR`] bounds: `1 - y/2 + y^2/3 - ...`.
fn log1p_over(y: &Tensor) -> Result<Tensor> {
    let mut sum = y.affine(0.0, 1.0 / 7.0)?;
    for inverse in [-6.0, 5.0, -4.0, 3.0, -2.0, 1.0] {
        sum = (sum * y)?.affine(1.0, 1.0 / inverse)?;
    }
    Ok(sum)
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use testkit::{gradcheck, tensor};

    /// In 40 digits, by Python's mpmath: logits 3 i - 8 and 5 - i^2 / 4 + sin(i), i from 0 to 9.
    const EXACT: [(f64, f64); 7] = [
        (0.05, 1.200000637683905),
        (0.5, 11.810963972026),
        (1.0, 22.735703091575),
        (4.0, 67.384061776868),
        (100.0, 113.109885148857),
        (1e4, 114.426780047191),
        (1e6, 114.439067766386),
    ];

    #[test]
    fn distillation_is_right_at_every_temperature() -> Result<()> {
        let device = Device::Cpu;
        let student: Vec<f64> = (0..10).map(|i| 3.0 * f64::from(i) - 8.0).collect();
        let teacher: Vec<f64> = (0..10).map(|i| 5.0 - f64::from(i * i) / 4.0 + f64::from(i).sin()).collect();
        for (temperature, exact) in EXACT {
            for (dtype, allowed) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
                let row = |v: &[f64]| Tensor::new(v, &device)?.unsqueeze(0)?.to_dtype(dtype);
                let found = value(&distillation(&row(&student)?, &row(&teacher)?, temperature)?)?;
                assert!(
                    (found - exact).abs() <= allowed * exact,
                    "T = {temperature}, {dtype:?}: {found}, exactly {exact}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn distillation_s_gradient_is_its_slope() -> Result<()> {
        let draw = |seed| tensor(&[4, 6], seed, DType::F64, &Device::Cpu);
        let (student, teacher) = ((draw(1)? * 5.0)?, (draw(2)? * 5.0)?);
        for temperature in [0.05, 1.0, 4.0, 40.0, 60.0, 1e3, 1e5] {
            let worst = gradcheck(&student, 24, 1e-4, |s| distillation(s, &teacher, temperature))?;
            assert!(worst < 1e-6, "T = {temperature}: off by {worst:.1e}");
        }
        Ok(())
    }
}
