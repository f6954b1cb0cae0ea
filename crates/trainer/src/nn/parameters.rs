//! A network's parameters: two flat vectors, the trunk's and the classifier's.
//!
//! Two and not one: candle adds whatever gradient reaches a tensor over the whole of it, and the classifier's few
//! thousand numbers would each time be padded to millions. In files they are one vector, the trunk's first.

use cams::LinearHead;
use candle_core::{DType, Result, Tensor, Var};

use crate::models::Architecture;

/// See the module.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// All but the classifier's.
    pub trunk: Tensor,
    /// `fc.weight` (classes, k), then `fc.bias` (classes,), flat.
    pub classifier: Tensor,
    /// Rows of the classifier.
    pub classes: usize,
}

impl Parameters {
    /// `flat` as parameters of `architecture`, and, if they are `trained`, the variables they are.
    pub fn new(flat: &Tensor, architecture: &Architecture, trained: bool) -> Result<(Parameters, Vec<Var>)> {
        let (fc, classes) = (architecture.fc, architecture.classes);
        let (trunk, classifier) = (flat.narrow(0, 0, fc)?, flat.narrow(0, fc, flat.elem_count() - fc)?);
        if !trained {
            return Ok((Parameters { trunk, classifier, classes }, vec![]));
        }
        let vars = vec![Var::from_tensor(&trunk)?, Var::from_tensor(&classifier)?];
        let (trunk, classifier) = (vars[0].as_tensor().clone(), vars[1].as_tensor().clone());
        Ok((Parameters { trunk, classifier, classes }, vars))
    }

    /// The same numbers, of which nothing is recorded.
    pub fn detach(&self) -> Parameters {
        Parameters { trunk: self.trunk.detach(), classifier: self.classifier.detach(), classes: self.classes }
    }

    /// Pooling and classifier, as functions of the parameters.
    pub fn head(&self) -> Result<LinearHead> {
        let classes = self.classes;
        let weights = self.classifier.elem_count() - classes;
        let weight = self.classifier.narrow(0, 0, weights)?.reshape((classes, weights / classes))?;
        Ok(LinearHead { weight, bias: self.classifier.narrow(0, weights, classes)? })
    }

    /// As plain numbers, the trunk's first.
    pub fn values(&self) -> Result<Vec<f32>> {
        let values = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
        Ok([values(&self.trunk)?, values(&self.classifier)?].concat())
    }
}
