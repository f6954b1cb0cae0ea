use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Interpreter, Score, maps};

/// LayerCAM (Jiang et al. 2021, IEEE TIP 30, eq. 6): `map = ReLU(sum_k ReLU(G_k(p)) A_k(p))`, `G = d y / d A`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayerCam {
    /// What is explained.
    pub score: Score,
}

impl LayerCam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for LayerCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        forward.gradient(self.score, classes)?.map(&forward.features, maps::relu)
    }

    fn is_of_gradients(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
