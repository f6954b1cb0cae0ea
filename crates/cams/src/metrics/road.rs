//! The imputation of ROAD (Rong et al. 2022, arXiv 2202.00449): a removed pixel becomes a weighted mean of its neighbours, removed
//! ones among them, plus a little noise, so that the hole itself says nothing.
//!
//! The figure, with pixels in falling [`order`](super::faithfulness::order): impute the first q % (MoRF) and the last q % (LeRF) and take
//! the class's probability of both images; `(P_LeRF - P_MoRF) / 2`, mean over q = 10, 20 ... 90. High is faithful.

use crate::SampleId;
use crate::random::{normal, stream};

/// Weights of a direct and of a diagonal neighbour (section 5.1); at the border what is left of them is scaled up to 1.
const DIRECT: f64 = 1.0 / 6.0;
const DIAGONAL: f64 = 1.0 / 12.0;
/// Standard deviation of the noise, as in the authors' code.
pub const NOISE: f64 = 0.01;
/// The system is solved to this part of what it starts with.
const TOLERANCE: f64 = 1e-9;

/// `image` (c, h, w), row-major, with the pixels `removed` (positions y w + x, each once) replaced in every channel. `noise` is a
/// standard deviation in the image's units ([`NOISE`] in the authors' code), drawn for each image anew from `seed` and `id`.
pub fn impute(
    image: &[f64],
    [c, h, w]: [usize; 3],
    removed: &[usize],
    noise: f64,
    seed: u64,
    id: SampleId,
) -> Vec<f64> {
    let mut place = vec![usize::MAX; h * w];
    removed.iter().enumerate().for_each(|(i, p)| place[*p] = i);
    let neighbours: Vec<Vec<(usize, f64)>> = removed.iter().map(|p| neighbours(*p, h, w)).collect();
    let mut rng = stream(&[seed, id.sample, id.view]);
    let mut out = image.to_vec();
    for plane in out.chunks_exact_mut((h * w).max(1)).take(c) {
        let known: Vec<f64> = neighbours
            .iter()
            .map(|of| of.iter().filter(|(p, _)| place[*p] == usize::MAX).map(|(p, weight)| weight * plane[*p]).sum())
            .collect();
        let found = solve(&neighbours, &place, &known);
        for (p, value) in removed.iter().zip(found) {
            plane[*p] = value + noise * normal(&mut rng);
        }
    }
    out
}

/// A pixel's neighbours and their weights.
fn neighbours(p: usize, h: usize, w: usize) -> Vec<(usize, f64)> {
    let (y, x) = ((p / w) as isize, (p % w) as isize);
    let around = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dy, dx))).filter(|step| *step != (0, 0));
    let there = around.filter(|(dy, dx)| (0..h as isize).contains(&(y + dy)) && (0..w as isize).contains(&(x + dx)));
    let weight = |dy: isize, dx: isize| if dy == 0 || dx == 0 { DIRECT } else { DIAGONAL };
    there.map(|(dy, dx)| (((y + dy) * w as isize + x + dx) as usize, weight(dy, dx))).collect()
}

/// `sum_j w_ij (x_i - x_j) = 0` at every removed pixel, by conjugate gradients: symmetric, and positive as long as some
/// pixel is known. Where none is, everything becomes 0.
fn solve(neighbours: &[Vec<(usize, f64)>], place: &[usize], known: &[f64]) -> Vec<f64> {
    let n = neighbours.len();
    let times = |x: &[f64]| -> Vec<f64> {
        let row = |(i, of): (usize, &Vec<(usize, f64)>)| {
            let all: f64 = of.iter().map(|(_, weight)| weight).sum();
            let removed = of.iter().filter(|(p, _)| place[*p] != usize::MAX);
            all * x[i] - removed.map(|(p, weight)| weight * x[place[*p]]).sum::<f64>()
        };
        neighbours.iter().enumerate().map(row).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut x, mut residual) = (vec![0.0; n], known.to_vec());
    let mut direction = residual.clone();
    let mut square = dot(&residual, &residual);
    let end = square * TOLERANCE * TOLERANCE;
    for _ in 0..10 * n.max(10) {
        if square <= end || square == 0.0 {
            break;
        }
        let along = times(&direction);
        let rate = square / dot(&direction, &along);
        x.iter_mut().zip(&direction).for_each(|(x, d)| *x += rate * d);
        residual.iter_mut().zip(&along).for_each(|(r, a)| *r -= rate * a);
        let next = dot(&residual, &residual);
        direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / square * *d);
        square = next;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SampleId = SampleId { sample: 0, view: 0 };

    /// A plane is what lies between its neighbours, away from the border: it is restored exactly.
    #[test]
    fn a_plane_is_restored() {
        let image: Vec<f64> = (0..64).map(|p| 2.0 * f64::from(p / 8) - f64::from(p % 8) + 3.0).collect();
        let removed: Vec<usize> = (0..64).filter(|p| (2..6).contains(&(p / 8)) && (1..7).contains(&(p % 8))).collect();
        let found = impute(&image, [1, 8, 8], &removed, 0.0, 0, ID);
        testkit::assert_close("plane", &found, &image, 1e-7);
    }

    #[test]
    fn one_pixel_by_hand() {
        let image = [1.0, 2.0, 3.0, 4.0, 99.0, 6.0, 7.0, 8.0, 9.0];
        let found = impute(&image, [1, 3, 3], &[4], 0.0, 0, ID);
        assert!(
            (found[4] - (2.0 + 4.0 + 6.0 + 8.0) / 6.0 - (1.0 + 3.0 + 7.0 + 9.0) / 12.0).abs() < 1e-9,
            "{}",
            found[4]
        );
        // At the corner the three neighbours' weights are scaled up to 1.
        let corner = impute(&image, [1, 3, 3], &[0], 0.0, 0, ID);
        assert!((corner[0] - (2.0 / 6.0 + 4.0 / 6.0 + 99.0 / 12.0) / (5.0 / 12.0)).abs() < 1e-9, "{}", corner[0]);
        assert_eq!(corner[1..], image[1..]);
    }

    #[test]
    fn nothing_known_is_zero_and_noise_is_small() {
        let all: Vec<usize> = (0..9).collect();
        assert_eq!(impute(&[5.0; 9], [1, 3, 3], &all, 0.0, 0, ID), vec![0.0; 9]);
        let noisy = impute(&[5.0; 9], [1, 3, 3], &[4], NOISE, 7, ID);
        assert!(noisy[4] != 5.0 && (noisy[4] - 5.0).abs() < 0.06);
        assert_eq!(noisy, impute(&[5.0; 9], [1, 3, 3], &[4], NOISE, 7, ID));
    }
}
