use candle_core::{Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::{Array, Gradients, Rule, apply2, are_plain, axpy, dot, length};

/// Every class's CAM, `sum_k W_ck A_k`: weight (classes, k) and activations (n, k, h, w) to (n, classes, h, w).
pub fn class_maps(weight: &Tensor, features: &Tensor) -> Result<Tensor> {
    let (n, k, h, w) = features.dims4()?;
    let (classes, of) = weight.dims2()?;
    if of != k {
        bail!("activations of {k} channels need weights (classes, {k}), {:?} given", weight.dims());
    }
    if are_plain(&[weight, features]) {
        return apply2(weight, features, ClassMaps);
    }
    let weight = weight.unsqueeze(0)?.broadcast_as((n, classes, k))?.contiguous()?;
    weight.matmul(&features.flatten_from(2)?)?.reshape((n, classes, h, w))
}

struct ClassMaps;

impl Rule for ClassMaps {
    const NAME: &'static str = "class_maps";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        let features = inputs[1];
        vec![features[0], inputs[0][0], features[2], features[3]]
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (weight, features) = (&inputs[0], &inputs[1]);
        let (k, positions) = (length(&features.dims[1..2]), length(&features.dims[2..]));
        let maps = length(&weight.dims[..1]) * positions;
        out.par_chunks_mut(maps).zip(features.values.par_chunks(k * positions)).for_each(|(maps, image)| {
            for (c, channel) in image.chunks_exact(positions).enumerate() {
                let column = weight.values.iter().skip(c).step_by(k);
                maps.chunks_exact_mut(positions).zip(column).for_each(|(map, w)| axpy(*w, channel, map));
            }
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], wanted: &[bool]) -> Gradients<T> {
        let (weight, features) = (&inputs[0], &inputs[1]);
        let (k, positions) = (length(&features.dims[1..2]), length(&features.dims[2..]));
        let maps = length(&weight.dims[..1]) * positions;
        let of_weight = wanted[0].then(|| {
            // Each image's share by itself, then summed in their order: the threads cannot change the bits.
            let images = g.par_chunks(maps).zip(features.values.par_chunks(k * positions));
            let shares: Vec<Vec<T>> = images
                .map(|(g, image)| {
                    let rows = g.chunks_exact(positions);
                    rows.flat_map(|g| image.chunks_exact(positions).map(move |channel| dot(g, channel))).collect()
                })
                .collect();
            let mut sum = vec![T::zero(); weight.values.len()];
            shares.iter().for_each(|share| axpy(T::one(), share, &mut sum));
            sum
        });
        let of_features = wanted[1].then(|| {
            let mut of = vec![T::zero(); features.values.len()];
            of.par_chunks_mut(k * positions).zip(g.par_chunks(maps)).for_each(|(of, g)| {
                for (c, of) in of.chunks_exact_mut(positions).enumerate() {
                    let column = weight.values.iter().skip(c).step_by(k);
                    g.chunks_exact(positions).zip(column).for_each(|(g, w)| axpy(*w, g, of));
                }
            });
            of
        });
        vec![of_weight, of_features]
    }
}
