//! A network's parameters: two flat vectors, the trunk's and the classifier's.
//!
//! Two and not one: candle adds whatever gradient reaches a tensor over the whole of it, and the classifier's few
//! thousand numbers would each time be padded to millions. In files they are one vector, the trunk's first.

use candle_core::{DType, Result, Tensor, Var};

use super::classifier::Tail;
use crate::models::Architecture;

/// See the module.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// All but the classifier's.
    pub trunk: Tensor,
    /// The classifier's, flat.
    pub classifier: Tensor,
}

impl Parameters {
    /// `flat` as parameters of `architecture`, and, if they are `trained`, the variables they are.
    pub fn new(flat: &Tensor, architecture: &Architecture, trained: bool) -> Result<(Parameters, Vec<Var>)> {
        let at = architecture.trunk;
        let (trunk, classifier) = (flat.narrow(0, 0, at)?, flat.narrow(0, at, flat.elem_count() - at)?);
        if !trained {
            return Ok((Parameters { trunk, classifier }, vec![]));
        }
        let vars = vec![Var::from_tensor(&trunk)?, Var::from_tensor(&classifier)?];
        let (trunk, classifier) = (vars[0].as_tensor().clone(), vars[1].as_tensor().clone());
        Ok((Parameters { trunk, classifier }, vars))
    }

    /// The same numbers, of which nothing is recorded.
    pub fn detach(&self) -> Parameters {
        Parameters { trunk: self.trunk.detach(), classifier: self.classifier.detach() }
    }

    /// What stands behind the trunk, as functions of the parameters.
    pub fn tail(&self, architecture: &Architecture) -> Tail {
        Tail::new(&architecture.classifier, self.classifier.clone(), architecture.trunk)
    }

    /// As plain numbers, the trunk's first.
    pub fn values(&self) -> Result<Vec<f32>> {
        let values = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
        Ok([values(&self.trunk)?, values(&self.classifier)?].concat())
    }
}
