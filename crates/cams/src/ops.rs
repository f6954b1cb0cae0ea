//! What maps and heads are made of, as ops over plain slices, parallel over images.
//!
//! On the CPU candle's own ops would do, but not at their price: a batch of small products is one call of a matrix
//! product an image, whose threads may wait for each other for longer than they compute, and a mean over positions
//! walks memory by strides. Each op in this folder reads the activations once. Elsewhere, and in other types than f32 and f64,
//! the same is written in candle's ops.

mod class_maps;
mod energy;
mod pool;
mod rows;
mod sliced;
mod weighted_sum;

use candle_core::WithDType;
pub use class_maps::class_maps;
pub use energy::energy;
pub use pool::pool;
pub use rows::rows;
use sliced::apply1;
pub(crate) use sliced::{Array, Gradients, Rule, apply2, are_plain};
pub use weighted_sum::weighted_sum;

/// `to += a x`.
fn axpy<T: WithDType>(a: T, x: &[T], to: &mut [T]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += a * *x);
}

/// Sum of products in eight lanes, so that it does not wait for each addition; always in this order.
fn dot<T: WithDType>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let mut sum = T::zero();
    a.remainder().iter().zip(b.remainder()).for_each(|(a, b)| sum += *a * *b);
    for (a, b) in a.zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += *a * *b);
    }
    lanes.iter().for_each(|lane| sum += *lane);
    sum
}

/// Chunks of at least one element: an empty axis makes no chunks at all.
pub(crate) fn length(axes: &[usize]) -> usize {
    axes.iter().product::<usize>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Result, Tensor, Var};
    use testkit::{assert_close, gradcheck, tensor, values};

    const SHAPES: [[usize; 4]; 4] = [[3, 5, 3, 4], [1, 1, 1, 1], [2, 1, 5, 5], [4, 17, 1, 3]];

    fn t(shape: &[usize], seed: u64) -> Tensor {
        tensor(shape, seed, DType::F64, &Device::Cpu).unwrap()
    }

    type Op = fn(&Tensor, &Tensor) -> Result<Tensor>;
    type Case = (&'static str, Op, Op, Vec<usize>, Vec<usize>);

    /// Each op, the same in candle's ops, and the shapes of its inputs.
    fn all([n, k, h, w]: [usize; 4]) -> [Case; 5] {
        let features = vec![n, k, h, w];
        [
            (
                "weighted_sum",
                weighted_sum,
                |a, f| a.unsqueeze(2)?.unsqueeze(3)?.broadcast_mul(f)?.sum(1),
                vec![n, k],
                features.clone(),
            ),
            ("pool", |_, f| pool(f), |_, f| f.mean((2, 3)), vec![1], features.clone()),
            ("energy", |_, f| energy(f), |_, f| f.sqr()?.mean(1), vec![1], features.clone()),
            (
                "class_maps",
                class_maps,
                |m, f| m.unsqueeze(0)?.unsqueeze(3)?.unsqueeze(4)?.broadcast_mul(&f.unsqueeze(1)?)?.sum(2),
                vec![4, k],
                features,
            ),
            ("rows", rows, |x, m| x.unsqueeze(2)?.broadcast_mul(&m.unsqueeze(0)?)?.sum(1), vec![n, k], vec![k, 9]),
        ]
    }

    #[test]
    fn ops_are_candles_and_their_gradients_differences() -> Result<()> {
        for shape in SHAPES {
            for (name, ours, candles, a, b) in all(shape) {
                let (a, b) = (t(&a, 1), t(&b, 2));
                let what = format!("{name} {shape:?}");
                let out = ours(&a, &b)?;
                let expected = candles(&a, &b)?;
                assert_eq!(out.dims(), expected.dims(), "{what}");
                assert_close(&what, &values(&out)?, &values(&expected)?, 1e-12);
                let single = ours(&a.to_dtype(DType::F32)?, &b.to_dtype(DType::F32)?)?;
                assert_close(&what, &values(&single)?, &values(&expected)?, 1e-6);
                let weight = t(out.dims(), 3);
                let loss = |a: &Tensor, b: &Tensor| (ours(a, b)? * &weight)?.sum_all();
                if !["pool", "energy"].contains(&name) {
                    let worst = gradcheck(&a, 100, 1e-4, |a| loss(a, &b))?;
                    assert!(worst < 1e-8, "{what}: first input's gradient is off by {worst:.1e}");
                }
                let worst = gradcheck(&b, 100, 1e-4, |b| loss(&a, b))?;
                assert!(worst < 1e-8, "{what}: last input's gradient is off by {worst:.1e}");
            }
        }
        Ok(())
    }

    /// No images, no channels, no positions: nothing, and gradients of the inputs' own shapes.
    #[test]
    fn empty_axes_are_no_accident() -> Result<()> {
        for shape in [[0, 3, 2, 2], [2, 0, 2, 2], [2, 3, 0, 2]] {
            for (name, ours, _, a, b) in all(shape) {
                let (a, b) = (Var::from_tensor(&t(&a, 1))?, Var::from_tensor(&t(&b, 2))?);
                let out = ours(&a, &b)?;
                let nothing = name != "rows" || shape[0] * shape[1] == 0;
                assert!(!nothing || values(&out)?.iter().all(|v| *v == 0.0), "{name} {shape:?}");
                let grads = out.sum_all()?.backward()?;
                let gradient = grads.get(&b).expect("the last input is used");
                assert_eq!(gradient.dims(), b.dims(), "{name} {shape:?}");
                if !["pool", "energy"].contains(&name) {
                    let gradient = grads.get(&a).expect("the first input is used");
                    assert_eq!(gradient.dims(), a.dims(), "{name} {shape:?}");
                }
            }
        }
        Ok(())
    }

    /// An image's values and gradient do not depend on the others, to the bit.
    #[test]
    fn an_image_is_the_same_alone() -> Result<()> {
        for (name, ours, _, a, b) in all([5, 6, 3, 3]) {
            if name == "rows" {
                let (x, matrix) = (t(&a, 1), t(&b, 2));
                let alone = ours(&x.narrow(0, 3, 1)?, &matrix)?;
                assert_eq!(values(&ours(&x, &matrix)?.narrow(0, 3, 1)?)?, values(&alone)?, "{name}");
                continue;
            }
            let (first, features) = (t(&a, 1), t(&b, 2));
            let own = if name == "weighted_sum" { first.narrow(0, 3, 1)? } else { first.clone() };
            let run = |first: &Tensor, features: &Tensor| -> Result<(Tensor, Tensor)> {
                let features = Var::from_tensor(features)?;
                let out = ours(first, &features)?;
                let grads = out.sqr()?.sum_all()?.backward()?;
                Ok((out, grads.get(&features).expect("used").clone()))
            };
            let ((all, d_all), (one, d_one)) = (run(&first, &features)?, run(&own, &features.narrow(0, 3, 1)?)?);
            assert_eq!(values(&all.narrow(0, 3, 1)?)?, values(&one)?, "{name}");
            assert_eq!(values(&d_all.narrow(0, 3, 1)?)?, values(&d_one)?, "{name}");
        }
        Ok(())
    }

    /// A view of other memory, as `narrow` and `t` make, is what its values say.
    #[test]
    fn strides_and_offsets_are_followed() -> Result<()> {
        let (alpha, features) = (t(&[4, 3], 4), t(&[5, 3, 4, 2], 5));
        let (view, mut weight) = (features.narrow(0, 1, 4)?.transpose(2, 3)?, Var::from_tensor(&alpha.t()?)?);
        let expected = weighted_sum(&alpha, &view.contiguous()?)?;
        assert_eq!(values(&weighted_sum(&weight.t()?, &view)?)?, values(&expected)?);
        let grads = weighted_sum(&weight.t()?, &view)?.sum_all()?.backward()?;
        let sums = values(&view.sum((2, 3))?.t()?)?;
        assert_close("gradient", &values(grads.get(&weight).unwrap())?, &sums, 1e-12);
        weight = Var::zeros((2, 2), DType::F64, &Device::Cpu)?;
        let error = weighted_sum(&weight, &view).unwrap_err().to_string();
        assert!(error.contains("need weights (4, 3)"), "{error}");
        Ok(())
    }

    #[test]
    fn bits_do_not_depend_on_the_threads() -> Result<()> {
        let of = |threads: usize| -> Result<Vec<Vec<u64>>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut bits = Vec::new();
                for (_, ours, _, a, b) in all([7, 5, 3, 3]) {
                    let (a, b) = (Var::from_tensor(&t(&a, 6))?, Var::from_tensor(&t(&b, 7))?);
                    let out = ours(&a, &b)?;
                    let grads = out.sqr()?.sum_all()?.backward()?;
                    let tensors = [Some(&out), grads.get(&a), grads.get(&b)];
                    for t in tensors.into_iter().flatten() {
                        bits.push(values(t)?.iter().map(|v| v.to_bits()).collect());
                    }
                }
                Ok(bits)
            })
        };
        let one = of(1)?;
        assert!(one == of(2)? && one == of(3)?);
        Ok(())
    }
}
