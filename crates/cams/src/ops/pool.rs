use candle_core::{Result, Tensor, WithDType};
use rayon::prelude::*;

use super::{Array, Gradients, Rule, apply1, are_plain, dot, length};

/// The mean over positions: (n, k, h, w) to (n, k).
pub fn pool(features: &Tensor) -> Result<Tensor> {
    features.dims4()?;
    if are_plain(&[features]) { apply1(features, Pool) } else { features.mean((2, 3)) }
}

struct Pool;

impl Rule for Pool {
    const NAME: &'static str = "pool";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        inputs[0][..2].to_vec()
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (k, positions) = (length(&inputs[0].dims[1..2]), length(&inputs[0].dims[2..]));
        let (ones, scale) = (vec![T::one(); positions], T::from_f64(1.0 / positions as f64));
        out.par_chunks_mut(k).zip(inputs[0].values.par_chunks(k * positions)).for_each(|(out, image)| {
            let channels = image.chunks_exact(positions);
            out.iter_mut().zip(channels).for_each(|(out, channel)| *out = dot(channel, &ones) * scale);
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], _: &[bool]) -> Gradients<T> {
        let (k, positions) = (length(&inputs[0].dims[1..2]), length(&inputs[0].dims[2..]));
        let scale = T::from_f64(1.0 / positions as f64);
        let mut of = vec![T::zero(); inputs[0].values.len()];
        of.par_chunks_mut(k * positions).zip(g.par_chunks(k)).for_each(|(of, g)| {
            of.chunks_exact_mut(positions).zip(g).for_each(|(of, g)| of.fill(*g * scale));
        });
        vec![Some(of)]
    }
}
