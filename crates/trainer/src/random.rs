//! Named streams of random numbers: every draw is a function of a seed, a purpose and an index.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is used for. Two purposes never share numbers.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Purpose {
    /// A network's initial weights.
    Init = 1,
    /// The order of an epoch's images.
    Order = 2,
    /// One view of one image.
    View = 3,
    /// A procedural image.
    Planted = 4,
    /// Which images are held out for validation.
    Split = 5,
    /// Fixed inputs of a benchmark.
    Bench = 6,
    /// What a training pass drops.
    Dropout = 7,
    /// Resampled values.
    Bootstrap = 8,
    /// Weights that take the place of learned ones.
    Anew = 9,
}

/// The stream for `purpose` number `index` under `seed`.
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}
