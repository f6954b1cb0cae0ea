//! Distances of maps, and of anything that is pooled from them; means over the batch.

use cams::maps::adaptive_average;
use cams::ops::energy;
use candle_core::{DType, Result, Tensor, bail};

use super::terms::{Distance, divergences};

/// The distance of two maps (n, h, w), mean over the batch, a scalar; the teacher's map is a constant. Where sizes differ both are
/// average-pooled to the smaller height and the smaller width. With `u(E) = E / sqrt(sum_p E(p)^2 + 1e-12)`:
/// - `raw_l2`: `sum_p (E_s - E_t)^2` (Grad-CAM++, Chattopadhay et al. 2018);
/// - `at_l2`: `mean_p (u(E_s) - u(E_t))^2` (attention transfer, Zagoruyko & Komodakis 2017, arXiv 1612.03928);
/// - `cosine`: `1 - sum_p u(E_s) u(E_t)` (e2KD, arXiv 2402.03119).
///
/// # Errors
/// For the distances that compare every class's map: those are [`all_class_pooled`] and [`region_kl`].
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
        Distance::AllClassPooled | Distance::RegionKl => bail!("{distance} compares every class's map, not one"),
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

/// Sides of the grids of [`region_kl`].
const GRIDS: [usize; 3] = [1, 2, 4];

/// SDD (Wei et al., CVPR 2024): a cell's logits are the mean of the classes' CAMs (n, classes, h, w), classifier's bias and
/// all, over the cell. `T^2 / (cells n) sum_i sum_cells w KL(softmax(teacher / T) || softmax(student / T))` over the cells of
/// grids of 1x1, 2x2 and 4x4 (no finer than the maps); w is 2 where the teacher is right in the cell and wrong about the whole image, or the other way
/// round, else 1. `labels` are (n,).
pub fn region_kl(student: &Tensor, teacher: &Tensor, labels: &Tensor, temperature: f64) -> Result<Tensor> {
    // (cells, n, classes), the whole image first.
    let cells = |maps: &Tensor| -> Result<Tensor> {
        let (n, c, h, w) = maps.dims4()?;
        let maps = maps.reshape((n * c, h, w))?;
        let grids = GRIDS.map(|side| adaptive_average(&maps, side.min(h), side.min(w))?.reshape((n, c, ())));
        Tensor::cat(&grids.into_iter().collect::<Result<Vec<_>>>()?, 2)?.permute((2, 0, 1))?.contiguous()
    };
    let (student, teacher) = (cells(student)?, cells(&teacher.detach())?);
    let (count, n, classes) = student.dims3()?;
    let right = teacher.argmax(2)?.broadcast_eq(&labels.to_dtype(DType::U32)?.unsqueeze(0)?)?;
    let weights = (right.broadcast_ne(&right.narrow(0, 0, 1)?)?.to_dtype(DType::F64)? + 1.0)?;
    let rows = |t: Tensor| t.reshape((count * n, classes));
    let kl = divergences(&rows(student.clone())?, &rows(teacher)?, temperature)?;
    let sum = (kl * weights.flatten_all()?)?.sum_all()?;
    (sum * (temperature.powi(2) / (count * n) as f64))?.to_dtype(student.dtype())
}

/// Where a layer (n, k, h, w) looks: the mean of its squared activations, (n, h, w).
pub fn attention_map(features: &Tensor) -> Result<Tensor> {
    energy(features)
}

/// A scalar tensor as f64.
pub fn value(t: &Tensor) -> Result<f64> {
    t.to_dtype(DType::F64)?.to_scalar()
}
