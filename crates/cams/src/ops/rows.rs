use candle_core::{Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::{Array, Gradients, Rule, apply2, are_plain, axpy, dot, length};

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
