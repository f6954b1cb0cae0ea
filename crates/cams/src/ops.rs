//! What maps and heads are made of, as ops over plain slices, parallel over images.
//!
//! On the CPU candle's own ops would do, but not at their price: a batch of small products is one call of a matrix
//! product an image, whose threads may wait for each other for longer than they compute, and a mean over positions
//! walks memory by strides. Each op here reads the activations once. Elsewhere, and in other types than f32 and f64,
//! the same is written in candle's ops.

mod energy;
mod sliced;

use candle_core::{Result, Tensor, WithDType, bail};
pub use energy::energy;
use rayon::prelude::*;
use sliced::apply1;
pub(crate) use sliced::{Array, Gradients, Rule, apply2, are_plain};

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

/// The mean over positions: (n, k, h, w) to (n, k).
pub fn pool(features: &Tensor) -> Result<Tensor> {
    features.dims4()?;
    if are_plain(&[features]) { apply1(features, Pool) } else { features.mean((2, 3)) }
}

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

/// `x M`: (n, a) and (a, b) to (n, b), every row by itself. A matrix product may round a row differently in a batch of
/// another size, and what is said about an image must not depend on its neighbours.
pub fn rows(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    let (_, a) = x.dims2()?;
    if matrix.dims2()?.0 != a {
        bail!("rows of {a} numbers cannot be multiplied by a matrix {:?}", matrix.dims());
    }
    if are_plain(&[x, matrix]) {
        return apply2(x, matrix, Rows);
    }
    x.unsqueeze(2)?.broadcast_mul(&matrix.unsqueeze(0)?)?.sum(1)
}

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

struct Rows;

impl Rule for Rows {
    const NAME: &'static str = "rows";

    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize> {
        vec![inputs[0][0], inputs[1][1]]
    }

    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]) {
        let (x, matrix) = (&inputs[0], &inputs[1]);
        let (a, b) = (length(&matrix.dims[..1]), length(&matrix.dims[1..]));
        out.par_chunks_mut(b).zip(x.values.par_chunks(a)).for_each(|(out, x)| {
            x.iter().zip(matrix.values.chunks_exact(b)).for_each(|(x, row)| axpy(*x, row, out));
        });
    }

    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], wanted: &[bool]) -> Gradients<T> {
        let (x, matrix) = (&inputs[0], &inputs[1]);
        let (a, b) = (length(&matrix.dims[..1]), length(&matrix.dims[1..]));
        let of_x = wanted[0].then(|| {
            let mut of = vec![T::zero(); x.values.len()];
            of.par_chunks_mut(a).zip(g.par_chunks(b)).for_each(|(of, g)| {
                of.iter_mut().zip(matrix.values.chunks_exact(b)).for_each(|(of, row)| *of = dot(g, row));
            });
            of
        });
        let of_matrix = wanted[1].then(|| {
            let mut of = vec![T::zero(); matrix.values.len()];
            for (x, g) in x.values.chunks_exact(a).zip(g.chunks_exact(b)) {
                of.chunks_exact_mut(b).zip(x).for_each(|(of, x)| axpy(*x, g, of));
            }
            of
        });
        vec![of_x, of_matrix]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
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
                let gradient = grads.get(&b).expect("the second input is used");
                assert_eq!(gradient.dims(), b.dims(), "{name} {shape:?}");
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
