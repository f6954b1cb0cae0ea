//! How alike two maps are. Plain numbers in, plain numbers out.

use super::is_finite;

/// Pearson correlation; None if either side is constant, where there is nothing to correlate.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let sums = a.iter().zip(b).fold([0.0; 3], |[ab, aa, bb], (x, y)| {
        let (x, y) = (x - ma, y - mb);
        [ab + x * y, aa + x * x, bb + y * y]
    });
    let scale = sums[1].sqrt() * sums[2].sqrt();
    // Rounding leaves a little of a constant that is not a number of the machine's.
    let noise = |mean: f64, square: f64| square.sqrt() <= 1e-12 * n.sqrt() * mean.abs();
    let defined = scale > 0.0 && scale.is_finite() && !noise(ma, sums[1]) && !noise(mb, sums[2]);
    defined.then(|| (sums[0] / scale).clamp(-1.0, 1.0))
}

/// Spearman correlation: Pearson's, of the ranks; equal values share their mean rank. None too of a map that is not
/// finite, although it has ranks.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if is_finite(a) && is_finite(b) { pearson(&ranks(a), &ranks(b)) } else { None }
}

/// Ranks from 0, equal values at the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    for group in order.chunk_by(|&i, &j| values[i] == values[j]) {
        group.iter().for_each(|&i| ranks[i] = at as f64 + (group.len() - 1) as f64 / 2.0);
        at += group.len();
    }
    ranks
}

/// Cosine of the angle between two maps; None if either is zero.
pub fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = dot(a, a).sqrt() * dot(b, b).sqrt();
    (scale > 0.0 && scale.is_finite()).then(|| (dot(a, b) / scale).clamp(-1.0, 1.0))
}

/// Intersection over union of the highest `share` of each map's positions (at least one), 0 to 1. The maps have the same length and
/// are finite ([`is_finite`]): of others the number means nothing. Among equal values at the border each counts
/// with the part of them that fits, so that a flat map does not gain by the order of its positions.
pub fn top_overlap(a: &[f64], b: &[f64], share: f64) -> f64 {
    let count = ((share * a.len() as f64).round() as usize).clamp(1, a.len().max(1));
    let (a, b) = (membership(a, count), membership(b, count));
    let sums = a.iter().zip(&b).fold((0.0, 0.0), |(i, u), (a, b)| (i + a.min(*b), u + a.max(*b)));
    if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 }
}

/// How much of each position is among the highest `count`, 0 to 1.
fn membership(values: &[f64], count: usize) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|x, y| y.total_cmp(x));
    let Some(border) = sorted.get(count - 1).copied() else { return vec![] };
    let above = values.iter().filter(|v| **v > border).count();
    let equal = values.iter().filter(|v| **v == border).count();
    let part = (count - above) as f64 / equal.max(1) as f64;
    let of = |v: &f64| match v.total_cmp(&border) {
        std::cmp::Ordering::Greater => 1.0,
        _ if *v == border => part,
        _ => 0.0,
    };
    values.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_by_hand() {
        assert!((pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).unwrap() - 1.0).abs() < 1e-15);
        // Deviations (-1, 0, 1) and (-4, -1, 5) over 3: 9 / sqrt(2 * 42).
        let r = pearson(&[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0]).unwrap();
        assert!((r - 9.0 / (2.0f64 * 42.0).sqrt()).abs() < 1e-15);
        assert!((spearman(&[1.0, 2.0, 3.0, 10.0], &[1.0, 4.0, 9.0, 16.0]).unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
    }

    #[test]
    fn a_constant_map_correlates_with_nothing() {
        let other = [1.0, 2.0, 5.0];
        for constant in [[0.0; 3], [0.1; 3], [1e9 / 3.0; 3]] {
            assert_eq!(pearson(&constant, &other), None);
            assert_eq!(pearson(&other, &constant), None);
            assert_eq!(spearman(&constant, &constant), None);
        }
        assert_eq!(cosine(&[0.0; 3], &other), None);
    }

    #[test]
    fn what_is_not_finite_correlates_with_nothing() {
        let other = [1.0, 2.0, 5.0];
        for broken in [[f64::NAN, 1.0, 2.0], [f64::NAN; 3], [1.0, f64::INFINITY, 2.0]] {
            assert_eq!((pearson(&broken, &other), pearson(&other, &broken)), (None, None));
            assert_eq!((spearman(&broken, &other), spearman(&other, &broken)), (None, None));
            assert_eq!(cosine(&broken, &other), None);
        }
    }

    #[test]
    fn the_top_shares_its_border() {
        assert_eq!(top_overlap(&[4.0, 3.0, 2.0, 1.0, 0.0], &[9.0, 3.0, 2.0, 1.0, 0.0], 0.2), 1.0);
        assert_eq!(top_overlap(&[4.0, 3.0, 2.0, 1.0, 0.0], &[0.0, 3.0, 2.0, 1.0, 9.0], 0.2), 0.0);
        // A flat map has a fifth of each position: a fifth in common of 1 + 4/5 in all.
        let flat = top_overlap(&[0.0; 5], &[9.0, 3.0, 2.0, 1.0, 0.0], 0.2);
        assert!((flat - 0.2 / 1.8).abs() < 1e-15);
    }
}
