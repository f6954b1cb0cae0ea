//! Random streams by key: what is drawn for an image depends on neither its neighbours nor the threads.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The stream of a key: other numbers, another stream.
pub fn stream(key: &[u64]) -> ChaCha8Rng {
    // Each part of the key seeds the generator that mixes in the next one.
    let seed = key.iter().fold(0u64, |seed, part| ChaCha8Rng::seed_from_u64(seed ^ part).random::<u64>());
    ChaCha8Rng::seed_from_u64(seed)
}

/// One standard normal number (Box & Muller 1958).
pub fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_streams_of_their_own() {
        let first = |key: &[u64]| stream(key).random::<u64>();
        assert_eq!(first(&[1, 2, 3]), first(&[1, 2, 3]));
        for other in [[1, 2, 4], [2, 1, 3], [1, 3, 2], [0, 2, 3]] {
            assert_ne!(first(&[1, 2, 3]), first(&other));
        }
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut rng = stream(&[7]);
        let drawn: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = drawn.iter().sum::<f64>() / 20_000.0;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }
}
