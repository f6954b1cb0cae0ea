use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;
use crate::{Differentiable, Explanation, Forward, Interpreter, Score};

/// HiResCAM (Draelos & Carin 2020, arXiv 2011.08891): `map = ReLU(sum_k G_k(p) A_k(p))`, `G = d y / d A`.
///
/// Where G is the same at every position it is Grad-CAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HiresCam {
    /// What is explained.
    pub score: Score,
}

impl HiresCam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for HiresCam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        forward.gradient(self.score, classes)?.map(&forward.features, |g| Ok(g.clone()))
    }

    fn is_of_gradients(&self) -> bool {
        true
    }

    fn sees_class_maps_alone(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
