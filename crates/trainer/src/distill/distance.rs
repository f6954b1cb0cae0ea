//! Distances of maps, and of anything that is pooled from them; means over the batch.

use cams::maps::adaptive_average;
use candle_core::{DType, Result, Tensor, bail};

use super::terms::Distance;

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

/// A scalar tensor as f64.
pub fn value(t: &Tensor) -> Result<f64> {
    t.to_dtype(DType::F64)?.to_scalar()
}
