//! How much a map calls important. A map that is 1 everywhere drops nothing and says nothing: faithfulness alone
//! favours it.

use super::agreement::pearson;
use super::is_finite;

/// Mean of a mask in [0, 1] (Poppi et al. 2021, equation 5); None of one that is not finite.
pub fn complexity(mask: &[f64]) -> Option<f64> {
    is_finite(mask).then(|| mask.iter().sum::<f64>() / mask.len().max(1) as f64)
}

/// Entropy in nats of a map, behind a ReLU, as a distribution over its positions; None of a map without any, or that is
/// not finite.
pub fn entropy(map: &[f64]) -> Option<f64> {
    let total: f64 = map.iter().map(|v| v.max(0.0)).sum();
    let part = |v: &f64| {
        let p = v.max(0.0) / total;
        if p > 0.0 { -p * p.ln() } else { 0.0 }
    };
    (total > 0.0 && total.is_finite() && is_finite(map)).then(|| map.iter().map(part).sum())
}

/// How alike a map and the map of the image under it are, 0 to 1 (Poppi et al. 2021, equation 4).
pub fn coherency(map: &[f64], of_masked: &[f64]) -> Option<f64> {
    pearson(map, of_masked).map(|r| (r + 1.0) / 2.0)
}

/// Harmonic mean of coherency, 1 - complexity and 1 - drop, all 0 to 1 (Poppi et al. 2021, equation 6); 0 where one of
/// them is.
pub fn adcc(coherency: f64, complexity: f64, drop: f64) -> f64 {
    let parts = [coherency, 1.0 - complexity, 1.0 - drop];
    if parts.iter().any(|p| *p <= 0.0) { 0.0 } else { 3.0 / parts.iter().map(|p| 1.0 / p).sum::<f64>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        assert_eq!(complexity(&[0.0, 1.0, 0.5, 0.5]), Some(0.5));
        assert!((entropy(&[1.0, 1.0, -3.0, 0.0]).unwrap() - 2f64.ln()).abs() < 1e-15);
        assert_eq!(entropy(&[0.0, -1.0]), None);
        assert!(coherency(&[0.0, 1.0, 2.0], &[2.0, 1.0, 0.0]).unwrap() < 1e-15);
        assert!((adcc(1.0, 0.5, 0.5) - 3.0 / 5.0).abs() < 1e-15);
        assert_eq!(adcc(1.0, 1.0, 0.0), 0.0);
    }

    #[test]
    fn what_is_not_finite_has_no_figure() {
        for broken in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(complexity(&[0.5, broken]), None);
            assert_eq!(entropy(&[1.0, 1.0, broken]), None);
            assert_eq!(coherency(&[0.0, 1.0, broken], &[2.0, 1.0, 0.0]), None);
        }
    }
}
