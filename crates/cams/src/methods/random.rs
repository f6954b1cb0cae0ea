use candle_core::{Result, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ops::weighted_sum;
use crate::ranges::{Ranges, SEED};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter};

/// The control (RandomCAM of pytorch-grad-cam): `map = ReLU(sum_k alpha_k A_k)`, `alpha_k ~ U(-1, 1)` by the seed and the image's
/// [`SampleId::sample`](crate::SampleId), so the same for every view and class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Random {
    /// Seed of the weights.
    pub seed: u64,
}

impl Random {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("seed", SEED)];
}

impl Interpreter for Random {
    fn signed(&self, forward: &Forward, _: &Tensor) -> Result<Explanation> {
        let (n, k, _, _) = forward.features.dims4()?;
        let mut alpha = Vec::with_capacity(n * k);
        for id in &forward.ids {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(id.sample);
            alpha.extend((0..k).map(|_| rng.random_range(-1.0..1.0f64)));
        }
        let alpha = Tensor::from_vec(alpha, (n, k), forward.features.device())?.to_dtype(forward.features.dtype())?;
        let map = weighted_sum(&alpha, &forward.features)?;
        Explanation::new(map, Estimator::Random, 0)
    }

    fn has_class(&self) -> bool {
        false
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::WeightsConstant
    }
}
