use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::ops::weighted_sum;
use crate::ranges::Ranges;
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter};

/// CAM (Zhou et al. 2016, arXiv 1512.04150, eq. 2): `map = sum_k W_ck A_k`, signed. Needs pooling and a linear layer
/// behind A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cam {}

impl Cam {
    /// What its numbers may be: it has none.
    pub const RANGES: Ranges = &[];
}

impl Interpreter for Cam {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let Some(head) = forward.model.linear_head() else {
            bail!(
                "cam is defined only where average pooling and a linear layer follow the explained layer: use layer = \"last\", or grad_cam"
            );
        };
        let map = weighted_sum(&head.class_weight(classes)?, &forward.features)?;
        Explanation::new(map, Estimator::Exact, 0)
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn needs_linear_head(&self) -> bool {
        true
    }

    fn sees_class_maps_alone(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ClosedForm
    }
}
