use anyhow::{Context, Result};
use cams::methods::Methods;
use candle_core::Tensor;

use super::{Inputs, Loss, Part, Term};
use crate::nn::Model;

/// Binary cross-entropy of every class, for images that may show several.
pub struct Bce;

impl Bce {
    pub(super) const ABOUT: &str = "binary cross-entropy of every class, where an image may show several";

    pub(super) fn new(_: &Loss, _: &Methods) -> Result<Bce> {
        Ok(Bce)
    }
}

impl Term for Bce {
    fn parts(&self, _: &dyn Model) -> Result<Vec<Part>> {
        Ok(vec![])
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        let shown = inputs.shown.context(
            "loss.weights.bce is for data whose images may show several classes (voc2007): use loss.weights.ce here",
        )?;
        Ok(binary_cross_entropy(&inputs.pass.logits, shown)?)
    }
}

/// Mean over images and classes of `-log p` where a class is shown and `-log(1 - p)` where it is not, p the sigmoid of
/// its logit; both (n, classes). Negative entries of `shown` count neither way.
pub fn binary_cross_entropy(logits: &Tensor, shown: &Tensor) -> candle_core::Result<Tensor> {
    let shown = shown.to_dtype(logits.dtype())?;
    let said = shown.ge(0.0)?.to_dtype(logits.dtype())?;
    let count = said.sum_all()?.maximum(1.0)?;
    // log(1 + exp(z)) - y z without an overflow.
    let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    ((softplus - (logits * &shown)?)? * said)?.sum_all()?.div(&count)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn values_and_gradients_by_hand() -> Result<()> {
        let logits = Var::new(&[[2f64, -3.0, 900.0], [-900.0, 0.5, 0.0]], &Device::Cpu)?;
        let shown = Tensor::new(&[[1f64, 0.0, 1.0], [0.0, -1.0, 1.0]], &Device::Cpu)?;
        let found = binary_cross_entropy(logits.as_tensor(), &shown)?;
        let expected = ((1.0 + (-2f64).exp()).ln() + (1.0 + (-3f64).exp()).ln() + 2f64.ln()) / 5.0;
        assert!((found.to_scalar::<f64>()? - expected).abs() < 1e-15);
        let gradient = found.backward()?.get(&logits).context("no gradient")?.flatten_all()?.to_vec1::<f64>()?;
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let by_hand = [sigmoid(2.0) - 1.0, sigmoid(-3.0), 0.0, 0.0, 0.0, -0.5].map(|g| g / 5.0);
        assert!(gradient.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-15), "{gradient:?}");
        Ok(())
    }
}
