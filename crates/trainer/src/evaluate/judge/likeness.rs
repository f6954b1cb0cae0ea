//! How alike the methods' maps of an image are.

use cams::metrics::pearson;

use super::Maps;
use crate::report::statistics::median;

/// How alike a map is to the others of its image.
pub const LIKENESS: &str = "likeness";

/// How alike each map is to the other methods' of the same image: the median of its correlations with them, by methods
/// and images. None of a single method, and of a map that is the same everywhere, as that of ones is, or not finite.
pub(super) fn likenesses(all: &[Maps], n: usize) -> Vec<Vec<Option<f64>>> {
    let mut likenesses = vec![vec![None; n]; all.len()];
    for i in 0..n {
        let mut with: Vec<Vec<f64>> = vec![vec![]; all.len()];
        for a in 0..all.len() {
            for b in 0..a {
                if let Some(r) = pearson(&all[a].large[i], &all[b].large[i]) {
                    with[a].push(r);
                    with[b].push(r);
                }
            }
        }
        for (likenesses, with) in likenesses.iter_mut().zip(with) {
            likenesses[i] = median(&with);
        }
    }
    likenesses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Outcome;

    /// Of an even number of correlations the mean of the two in the middle, of an odd one the one in the middle.
    #[test]
    fn a_likeness_is_a_median() {
        let outcome = Outcome::constant("a", 1, [1, 4], 0.0);
        let maps = |of: &[[f64; 4]]| -> Vec<Option<f64>> {
            let maps = of.iter().map(|map| Maps { outcome: &outcome, large: vec![map.to_vec()], method: None });
            likenesses(&maps.collect::<Vec<_>>(), 1).iter().map(|of_images| of_images[0]).collect()
        };
        // Correlations of the first with the others: 1, 0, and -1.
        let (a, orthogonal) = ([1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]);
        let opposite = a.map(|v: f64| -v);
        assert_eq!(maps(&[a, a, orthogonal]), [Some(0.5), Some(0.5), Some(0.0)]);
        assert_eq!(maps(&[a, a, orthogonal, opposite])[0], Some(0.0));
        assert_eq!(maps(&[a]), [None]);
        // Neither a map that is the same everywhere nor one that is not finite is like another.
        assert_eq!(maps(&[a, a, [1.0; 4], [1.0, f64::NAN, 0.0, 0.0]]), [Some(1.0), Some(1.0), None, None]);
    }
}
