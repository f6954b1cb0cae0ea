use anyhow::Result;
use cams::ops::pool;
use cams::ranges::{Ranges, from};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Inputs, Part, Term};
use crate::nn::Model;

/// Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068, its distance-wise and angle-wise losses):
/// the figure that a batch's images form in the space of their features.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rkd {
    /// Weight of the distances between two images.
    pub distance: f64,
    /// Weight of the angles between three.
    pub angle: f64,
}

impl Default for Rkd {
    fn default() -> Self {
        Rkd { distance: 25.0, angle: 50.0 }
    }
}

impl Rkd {
    pub(super) const ABOUT: &str =
        "relational KD: distances of two and angles of three images of a batch, by pooled features";
    pub(super) const RANGES: Ranges = &[("distance", from(0.0, 1e6)), ("angle", from(0.0, 1e6))];
}

impl Term for Rkd {
    fn parts(&self, _: &dyn Model) -> Result<Vec<Part>> {
        Ok(vec![Part::Logits, Part::Pooled])
    }

    fn is_of_activations(&self) -> bool {
        true
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(geometry(&pool(inputs.pass.at("last")?)?, inputs.teacher()?.get(&Part::Pooled)?, self)?)
    }
}

/// `distance mean_ij h(d_ij - D_ij) + angle mean_ijk h(c_ijk - C_ijk)` of features (n, k) and (n, other k): d are the
/// distances between images over their mean (of those that are not 0), c the cosines of the angles at image j between i
/// and k, capitals the teacher's, h Huber's loss with its corner at 1. The means are over all n^2 and n^3 tuples, as the
/// usual weights, 25 and 50, take them. In f64, and given back in the student's type.
pub fn geometry(student: &Tensor, teacher: &Tensor, options: &Rkd) -> candle_core::Result<Tensor> {
    let (n, others) = (student.dim(0)?, teacher.dim(0)?);
    if n != others {
        candle_core::bail!("{n} images of the student's and {others} of the teacher's are no pairs");
    }
    let (own, other) = (gram(student)?, gram(&teacher.detach())?);
    let (value, gradient) = compare(&Figure::new(&own)?, &Figure::new(&other)?, options);
    let gradient = Tensor::from_vec(gradient, own.shape(), &Device::Cpu)?.to_device(own.device())?;
    // The value is known and so is its gradient: a term that is 0 carries it.
    let carrier = ((&own - own.detach())? * gradient)?.sum_all()?;
    (carrier + value)?.to_dtype(student.dtype())
}

/// Products of the rows, less their mean, which neither distances nor angles know of.
fn gram(features: &Tensor) -> candle_core::Result<Tensor> {
    let rows = features.to_dtype(DType::F64)?;
    let rows = rows.broadcast_sub(&rows.mean_keepdim(0)?)?;
    rows.matmul(&rows.t()?)
}

/// What the products say of the images.
struct Figure {
    /// How many they are.
    n: usize,
    /// (n, n).
    products: Vec<f64>,
    /// One over the distances (n, n), 0 where two images are one point.
    closeness: Vec<f64>,
    /// Mean of the distances that are not 0, and how many they are.
    mean: f64,
    pairs: f64,
}

impl Figure {
    fn new(gram: &Tensor) -> candle_core::Result<Figure> {
        let n = gram.dim(0)?;
        let products: Vec<f64> = gram.flatten_all()?.to_vec1()?;
        let squares = |at: usize| products[at * (n + 1)];
        let closeness: Vec<f64> = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let squared = squares(i) + squares(j) - 2.0 * products[at];
                // What is left of the subtraction of equal numbers is no distance; what is no number stays none.
                if squared <= 1e-13 * (squares(i) + squares(j)) { 0.0 } else { squared.sqrt().recip() }
            })
            .collect();
        let apart = closeness.iter().filter(|c| **c != 0.0);
        let (sum, pairs) = apart.fold((0.0, 0.0), |(sum, pairs), c| (sum + c.recip(), pairs + 1.0));
        Ok(Figure { n, products, closeness, mean: if pairs > 0.0 { sum / pairs } else { 1.0 }, pairs })
    }

    /// A distance over their mean.
    fn distance(&self, at: usize) -> f64 {
        if self.closeness[at] != 0.0 { (self.closeness[at] * self.mean).recip() } else { 0.0 }
    }
}

/// Huber's loss from its own slope, which is x within [-1, 1].
fn huber(x: f64) -> (f64, f64) {
    let slope = x.clamp(-1.0, 1.0);
    (slope * (x - slope / 2.0), slope)
}

/// The loss, and its gradient with respect to the student's products.
fn compare(own: &Figure, other: &Figure, options: &Rkd) -> (f64, Vec<f64>) {
    let n = own.n;
    let count = (n * n) as f64;
    let of_angles = if options.angle > 0.0 { angles(own, other) } else { Angles::none(n) };
    let angle = options.angle / (count * n as f64);
    let (mut value, mut to_products) = (of_angles.value * angle, of_angles.to_products);
    to_products.iter_mut().for_each(|g| *g *= angle);

    // Of the distances: each by itself, and through their mean.
    let distance = options.distance / count;
    let mut slopes = vec![0.0; n * n];
    for (at, slope) in slopes.iter_mut().enumerate() {
        let (loss, of) = huber(own.distance(at) - other.distance(at));
        value += loss * distance;
        *slope = of * distance;
    }
    let through_mean: f64 = slopes.iter().enumerate().map(|(at, s)| s * own.distance(at)).sum();
    for at in (0..n * n).filter(|at| own.closeness[*at] != 0.0) {
        let of_distance = (slopes[at] - through_mean / own.pairs) / own.mean + angle * of_angles.to_distances[at];
        // The square is G_ii + G_jj - 2 G_ij.
        let of_square = of_distance * own.closeness[at] / 2.0;
        to_products[at / n * (n + 1)] += of_square;
        to_products[at % n * (n + 1)] += of_square;
        to_products[at] -= 2.0 * of_square;
    }
    (value, to_products)
}

/// A sum over angles, and its derivatives.
struct Angles {
    value: f64,
    /// By the products where they stand in the numerator, (n, n).
    to_products: Vec<f64>,
    /// By the distances in the denominator, (n, n).
    to_distances: Vec<f64>,
}

impl Angles {
    fn none(n: usize) -> Angles {
        Angles { value: 0.0, to_products: vec![0.0; n * n], to_distances: vec![0.0; n * n] }
    }

    /// Adds the angles at image j. The cosine between i and k is `(G_ik - G_ij - G_jk + G_jj) / (d_ij d_jk)`.
    fn add_corner(&mut self, j: usize, own: &Figure, other: &Figure) {
        let n = own.n;
        let (p, near) = (&own.products[j * n..][..n], &own.closeness[j * n..][..n]);
        let (q, near_other) = (&other.products[j * n..][..n], &other.closeness[j * n..][..n]);
        for i in 0..n {
            let (products, others) = (&own.products[i * n..][..n], &other.products[i * n..][..n]);
            let (mut through_products, mut through_distance) = (0.0, 0.0);
            for k in 0..n {
                let scale = near[i] * near[k];
                let cosine = (products[k] - p[i] - p[k] + p[j]) * scale;
                let its = (others[k] - q[i] - q[k] + q[j]) * near_other[i] * near_other[k];
                let (loss, slope) = huber(cosine - its);
                self.value += loss;
                self.to_products[i * n + k] += slope * scale;
                through_products += slope * scale;
                through_distance += slope * cosine;
            }
            // What i is to j, k is too: the sum over i and k meets each of these twice.
            self.to_products[i * n + j] -= through_products;
            self.to_products[j * n + i] -= through_products;
            self.to_products[j * n + j] += through_products;
            self.to_distances[j * n + i] -= 2.0 * through_distance * near[i];
        }
    }

    fn add(mut self, more: &Angles) -> Angles {
        let add = |to: &mut [f64], x: &[f64]| to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
        self.value += more.value;
        add(&mut self.to_products, &more.to_products);
        add(&mut self.to_distances, &more.to_distances);
        self
    }
}

/// Into so many parts the corners are divided, whatever the number of threads: the bits do not depend on it.
const PARTS: usize = 8;

/// `sum_jik h(c_ijk - C_ijk)`.
fn angles(own: &Figure, other: &Figure) -> Angles {
    let n = own.n;
    let corners: Vec<usize> = (0..n).collect();
    let parts: Vec<Angles> = corners
        .par_chunks(n.div_ceil(PARTS).max(1))
        .map(|corners| {
            let mut sum = Angles::none(n);
            corners.iter().for_each(|j| sum.add_corner(*j, own, other));
            sum
        })
        .collect();
    parts.iter().fold(Angles::none(n), Angles::add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::distance::value;
    use candle_core::Var;
    use testkit::values;

    fn points(rows: &[[f64; 2]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    /// A right triangle of sides 3, 4, 5 and one of sides 1, 1, sqrt 2, the right angle at the first point of both.
    #[test]
    fn two_triangles_by_hand() -> Result<()> {
        let (student, teacher) =
            (points(&[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), points(&[[7.0, 7.0], [8.0, 7.0], [7.0, 8.0]]));
        let of = |distance, angle| value(&geometry(&student, &teacher, &Rkd { distance, angle })?);
        let root = 2f64.sqrt();
        let mean = (2.0 + root) / 3.0;
        let distances: f64 =
            [(3.0, 1.0), (4.0, 1.0), (5.0, root)].iter().map(|(a, b)| (a / 4.0 - b / mean).powi(2)).sum();
        assert!((of(1.0, 0.0)? - distances / 9.0).abs() < 1e-14);
        let angles = (0.6 - root / 2.0).powi(2) + (0.8 - root / 2.0).powi(2);
        assert!((of(0.0, 1.0)? - angles / 27.0).abs() < 1e-14);
        assert!((of(25.0, 50.0)? - 25.0 * distances / 9.0 - 50.0 * angles / 27.0).abs() < 1e-12);
        Ok(())
    }

    /// Neither moving, turning nor growing changes a figure.
    #[test]
    fn a_figure_is_itself_wherever_it_lies() -> Result<()> {
        let figure = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [-1.0, 2.0]];
        let moved = figure.map(|[x, y]| [1e3 - 2.0 * y, 2.0 * x - 5.0]);
        assert!(value(&geometry(&points(&figure), &points(&moved), &Rkd::default())?)? < 1e-18);
        Ok(())
    }

    #[test]
    fn other_images_are_no_pairs() {
        let (three, two) = (points(&[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), points(&[[0.0, 0.0], [3.0, 0.0]]));
        for (student, teacher) in [(&three, &two), (&two, &three)] {
            assert!(geometry(student, teacher, &Rkd::default()).unwrap_err().to_string().contains("no pairs"));
        }
    }

    /// In either model, whatever is asked of it.
    #[test]
    fn what_is_no_number_is_seen() -> Result<()> {
        let good = points(&[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]);
        for (bad, distance, angle) in [(f64::NAN, 25.0, 50.0), (f64::INFINITY, 25.0, 50.0), (f64::NAN, 1.0, 0.0)] {
            let (bad, options) = (points(&[[0.0, 0.0], [3.0, bad], [0.0, 4.0]]), Rkd { distance, angle });
            assert!(!value(&geometry(&bad, &good, &options)?)?.is_finite());
            assert!(!value(&geometry(&good, &bad, &options)?)?.is_finite());
        }
        Ok(())
    }

    /// One image, no difference between images, two alike: numbers, not NaN.
    #[test]
    fn points_that_coincide_have_finite_gradients() -> Result<()> {
        let teacher = points(&[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]);
        for student in [[[1.0, 2.0]; 3], [[1.0, 2.0], [1.0, 2.0], [5.0, 0.1]]] {
            for n in 1..=3 {
                let var = Var::from_tensor(&points(&student[..n]))?;
                let term = geometry(var.as_tensor(), &teacher.narrow(0, 0, n)?, &Rkd::default())?;
                assert!(value(&term)?.is_finite());
                let gradient = values(term.backward()?.get(&var).expect("it is used"))?;
                assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
            }
        }
        Ok(())
    }
}
