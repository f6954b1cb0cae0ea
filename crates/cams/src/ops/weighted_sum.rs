use candle_core::{Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::{Array, Gradients, Rule, apply2, are_plain, axpy, dot, length};

/// `sum_k alpha_k A_k`: weights (n, k) and activations (n, k, h, w) to a map (n, h, w).
pub fn weighted_sum(alpha: &Tensor, features: &Tensor) -> Result<Tensor> {
    let (n, k, h, w) = features.dims4()?;
    if alpha.dims() != [n, k] {
        bail!("activations {:?} need weights ({n}, {k}), {:?} given", features.dims(), alpha.dims());
    }
    if are_plain(&[alpha, features]) {
        return apply2(alpha, features, WeightedSum);
    }
    alpha.unsqueeze(1)?.matmul(&features.flatten_from(2)?)?.reshape((n, h, w))
}

struct WeightedSum;

impl Rule for WeightedSum {
    const NAME: &'static str = "weighted_sum";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        let features = inputs[1];
        vec![features[0], features[2], features[3]]
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (alpha, features) = (&inputs[0], &inputs[1]);
        let (k, positions) = (length(&features.dims[1..2]), length(&features.dims[2..]));
        let images = alpha.values.par_chunks(k).zip(features.values.par_chunks(k * positions));
        out.par_chunks_mut(positions).zip(images).for_each(|(map, (alpha, image))| {
            alpha.iter().zip(image.chunks_exact(positions)).for_each(|(a, channel)| axpy(*a, channel, map));
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], wanted: &[bool]) -> Gradients<T> {
        let (alpha, features) = (&inputs[0], &inputs[1]);
        let (k, positions) = (length(&features.dims[1..2]), length(&features.dims[2..]));
        let mut of_alpha = wanted[0].then(|| vec![T::zero(); alpha.values.len()]);
        let mut of_features = wanted[1].then(|| vec![T::zero(); features.values.len()]);
        if let Some(of) = &mut of_alpha {
            let images = g.par_chunks(positions).zip(features.values.par_chunks(k * positions));
            of.par_chunks_mut(k).zip(images).for_each(|(of, (g, image))| {
                of.iter_mut().zip(image.chunks_exact(positions)).for_each(|(of, channel)| *of = dot(g, channel));
            });
        }
        if let Some(of) = &mut of_features {
            let images = g.par_chunks(positions).zip(alpha.values.par_chunks(k));
            of.par_chunks_mut(k * positions).zip(images).for_each(|(of, (g, alpha))| {
                for (of, a) in of.chunks_exact_mut(positions).zip(alpha) {
                    of.iter_mut().zip(g).for_each(|(of, g)| *of = *a * *g);
                }
            });
        }
        vec![of_alpha, of_features]
    }
}
