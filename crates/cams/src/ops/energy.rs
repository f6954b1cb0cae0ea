use candle_core::{Result, Tensor, WithDType};
use rayon::prelude::*;

use super::{Array, Gradients, Rule, apply1, are_plain, length};

/// The attention map of Zagoruyko & Komodakis (2017, arXiv 1612.03928), not normalised: `mean_k A_k(p)^2`, (n, k, h, w) to (n, h, w).
/// The same bits as candle's `sqr` and `mean`, in one walk over memory.
pub fn energy(features: &Tensor) -> Result<Tensor> {
    features.dims4()?;
    if are_plain(&[features]) { apply1(features, Energy) } else { features.sqr()?.mean(1) }
}

struct Energy;

impl Rule for Energy {
    const NAME: &'static str = "energy";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        vec![inputs[0][0], inputs[0][2], inputs[0][3]]
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (k, positions) = (length(&inputs[0].dims[1..2]), length(&inputs[0].dims[2..]));
        let scale = T::from_f64(1.0 / k as f64);
        out.par_chunks_mut(positions).zip(inputs[0].values.par_chunks(k * positions)).for_each(|(map, image)| {
            for channel in image.chunks_exact(positions) {
                map.iter_mut().zip(channel).for_each(|(to, x)| *to += *x * *x);
            }
            map.iter_mut().for_each(|to| *to *= scale);
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], _: &[bool]) -> Gradients<T> {
        let (k, positions) = (length(&inputs[0].dims[1..2]), length(&inputs[0].dims[2..]));
        let (scale, two) = (T::from_f64(1.0 / k as f64), T::from_f64(2.0));
        let mut of = vec![T::zero(); inputs[0].values.len()];
        let images = g.par_chunks(positions).zip(inputs[0].values.par_chunks(k * positions));
        of.par_chunks_mut(k * positions).zip(images).for_each(|(of, (g, image))| {
            for (of, channel) in of.chunks_exact_mut(positions).zip(image.chunks_exact(positions)) {
                of.iter_mut().zip(channel.iter().zip(g)).for_each(|(of, (x, g))| *of = *x * (*g * scale) * two);
            }
        });
        vec![Some(of)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use testkit::{tensor, values};

    /// To the bit: runs of before go on as they were.
    #[test]
    fn energy_and_its_gradient_are_candles() -> Result<()> {
        for shape in [[3, 5, 3, 4], [1, 1, 1, 1], [4, 33, 7, 5]] {
            for dtype in [DType::F32, DType::F64] {
                let features = tensor(&shape, 1, dtype, &Device::Cpu)?;
                let weight = tensor(&[shape[0], shape[2], shape[3]], 2, dtype, &Device::Cpu)?;
                let of = |op: fn(&Tensor) -> Result<Tensor>| -> Result<[Vec<f64>; 2]> {
                    let x = Var::from_tensor(&features)?;
                    let out = op(x.as_tensor())?;
                    let grads = (&out * &weight)?.sum_all()?.backward()?;
                    Ok([values(&out)?, values(grads.get(&x).expect("it is used"))?])
                };
                assert_eq!(of(energy)?, of(|x| x.sqr()?.mean(1))?, "{shape:?} {dtype:?}");
            }
        }
        Ok(())
    }
}
