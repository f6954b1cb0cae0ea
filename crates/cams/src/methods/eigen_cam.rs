use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter};

/// Eigen-CAM (Muhammad & Yeasin 2020, arXiv 2008.00299): the positions' projection on the first right singular vector
/// of the (positions, channels) matrix of A. It knows no class.
///
/// Signed; of the two possible signs the one that correlates positively with the channels' mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EigenCam {
    /// Subtract each channel's mean first; the paper's formula does not.
    pub centred: bool,
}

impl Default for EigenCam {
    fn default() -> Self {
        EigenCam { centred: true }
    }
}

impl EigenCam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

/// Squarings of the Gram matrix at most: two singular values that differ by one part in 2^20 are told apart.
const SQUARINGS: usize = 24;
/// A matrix whose squared norm lacks no more than this of its squared trace is of rank one.
const RANK_ONE: f64 = 1e-15;

/// `a b` of square matrices.
fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut c = vec![0.0; n * n];
    for (row, a) in c.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (x, b) in a.iter().zip(b.chunks_exact(n)) {
            row.iter_mut().zip(b).for_each(|(c, b)| *c += x * b);
        }
    }
    c
}

/// The first eigenvector of the symmetric matrix `a`, of length 1; None for a zero matrix.
fn first_eigenvector(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for _ in 0..SQUARINGS {
        let largest = (0..n).map(|i| a[i * n + i]).fold(0.0, f64::max);
        if largest == 0.0 {
            return None;
        }
        a.iter_mut().for_each(|x| *x /= largest);
        let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
        if 1.0 - a.iter().map(|x| x * x).sum::<f64>() / (trace * trace) < RANK_ONE {
            break;
        }
        a = product(&a, &a, n);
    }
    // Now of rank one: any column of it will do; the one of the largest diagonal element is the safest.
    let best = (0..n).fold(0, |b, i| if a[i * n + i] > a[b * n + b] { i } else { b });
    let u: Vec<f64> = (0..n).map(|i| a[i * n + best]).collect();
    let length = u.iter().map(|x| x * x).sum::<f64>().sqrt();
    (length > 0.0).then(|| u.into_iter().map(|x| x / length).collect())
}

/// `sigma_1 u_1` of the matrix with these `rows` of `k` numbers, by the smaller of its two Gram matrices; zeros for a
/// zero matrix, NaN for one that is not finite.
fn first_component(x: &[f64], rows: usize, k: usize) -> Vec<f64> {
    if x.iter().any(|x| !x.is_finite()) {
        return vec![f64::NAN; rows];
    }
    let at = |i: usize| &x[i * k..][..k];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let right = if k < rows {
        let mut gram = vec![0.0; k * k];
        for row in x.chunks_exact(k) {
            for (g, a) in gram.chunks_exact_mut(k).zip(row) {
                g.iter_mut().zip(row).for_each(|(g, b)| *g += a * b);
            }
        }
        first_eigenvector(gram, k)
    } else {
        let gram = (0..rows * rows).map(|ij| dot(at(ij / rows), at(ij % rows))).collect();
        first_eigenvector(gram, rows).map(|u| {
            let mut v = vec![0.0; k];
            for (i, u) in u.iter().enumerate() {
                v.iter_mut().zip(at(i)).for_each(|(v, x)| *v += u * x);
            }
            let sigma = dot(&v, &v).sqrt().max(f64::MIN_POSITIVE);
            v.into_iter().map(|v| v / sigma).collect()
        })
    };
    right.map_or_else(|| vec![0.0; rows], |v| (0..rows).map(|i| dot(at(i), &v)).collect())
}

impl Interpreter for EigenCam {
    fn signed(&self, forward: &Forward, _: &Tensor) -> Result<Explanation> {
        let (n, k, h, w) = forward.features.dims4()?;
        let positions = h * w;
        let values: Vec<f64> = forward.features.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let mut map = vec![0.0; n * positions];
        let images = values.par_chunks((k * positions).max(1));
        map.par_chunks_mut(positions.max(1)).zip(images).for_each(|(map, image)| {
            let mut x: Vec<f64> = (0..positions * k).map(|at| image[at % k * positions + at / k]).collect();
            let mean: Vec<f64> = x.chunks_exact(k).map(|row| row.iter().sum::<f64>() / k as f64).collect();
            if self.centred {
                for c in 0..k {
                    let centre = (0..positions).map(|p| x[p * k + c]).sum::<f64>() / positions as f64;
                    (0..positions).for_each(|p| x[p * k + c] -= centre);
                }
            }
            let projection = first_component(&x, positions, k);
            let centre = |v: &[f64]| v.iter().sum::<f64>() / positions as f64;
            let (a, b) = (centre(&mean), centre(&projection));
            let together: f64 = mean.iter().zip(&projection).map(|(m, p)| (m - a) * (p - b)).sum();
            let sign = if together < 0.0 { -1.0 } else { 1.0 };
            map.iter_mut().zip(projection).for_each(|(to, p)| *to = sign * p);
        });
        let map = Tensor::from_vec(map, (n, h, w), forward.features.device())?.to_dtype(forward.features.dtype())?;
        Explanation::new(map, Estimator::Exact, 0)
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn has_class(&self) -> bool {
        false
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::Not("singular vectors jump where singular values meet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows (2, 0) and (0, 1): the first singular vector is (1, 0).
    #[test]
    fn first_component_of_a_diagonal_matrix() {
        assert_eq!(first_component(&[2.0, 0.0, 0.0, 1.0], 2, 2), [2.0, 0.0]);
        // Both Gram matrices, of the same matrix with a row and with a column of zeros more.
        assert_eq!(first_component(&[2.0, 0.0, 0.0, 1.0, 0.0, 0.0], 3, 2), [2.0, 0.0, 0.0]);
        assert_eq!(first_component(&[2.0, 0.0, 0.0, 0.0, 1.0, 0.0], 2, 3), [2.0, 0.0]);
        assert!(first_component(&[f64::NAN; 4], 2, 2)[0].is_nan());
        assert_eq!(first_component(&[0.0; 6], 2, 3), [0.0, 0.0]);
    }
}
