//! Images of which parts are missing, and what a model says of them: what RISE and occlusion have in common.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Forward, Score, images_per_pass, maps};

/// What an absent pixel gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// 0 in the network's input, the mean colour.
    #[default]
    Zero,
    /// The image blurred by a Gaussian of 11 pixels, sigma 5.
    Blur,
}

/// What is asked of masked images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masked {
    /// The score.
    pub score: Score,
    /// What absent pixels get.
    pub fill: Background,
    /// Memory for one pass, in MB.
    pub memory_mb: f64,
}

impl Masked {
    /// What an image's absent pixels get, where that is not 0.
    pub fn background(&self, forward: &Forward, i: usize) -> Result<Option<Tensor>> {
        match self.fill {
            Background::Zero => Ok(None),
            Background::Blur => maps::blur(&forward.images.narrow(0, i, 1)?, 11, 5.0).map(Some),
        }
    }

    /// The scores of image `i` under masks (m, h, w), whose ones are present and whose zeros show the background, (1, m):
    /// as many masked copies a pass as memory allows.
    pub fn scores(
        &self,
        forward: &Forward,
        classes: &Tensor,
        masks: &Tensor,
        i: usize,
        background: Option<&Tensor>,
    ) -> Result<Tensor> {
        let image = forward.images.narrow(0, i, 1)?;
        let m = masks.dim(0)?;
        let chunk = images_per_pass(forward, self.memory_mb);
        let mut row = Vec::new();
        for first in (0..m).step_by(chunk) {
            let count = chunk.min(m - first);
            let masks = masks.narrow(0, first, count)?.unsqueeze(1)?;
            let mut masked = image.broadcast_mul(&masks)?;
            if let Some(background) = background {
                masked = (masked + background.broadcast_mul(&masks.affine(-1.0, 1.0)?)?)?;
            }
            let logits = forward.model.head(&forward.model.features(&masked)?)?;
            row.push(self.score.of(&logits, &classes.narrow(0, i, 1)?.broadcast_as(count)?.contiguous()?)?);
        }
        Tensor::cat(&row, 0)?.unsqueeze(0)
    }
}

/// A sum (1, h, w), where one has begun, and weights (m, 1, 1) times masks (m, h, w). What there was is the first
/// summand, so that a CPU adds mask by mask, with the same rounding however many come at a time.
pub(crate) fn add(sum: Option<Tensor>, weights: &Tensor, masks: &Tensor) -> Result<Tensor> {
    // Not matrix products: they may be rounded differently in a batch of another size or on more threads.
    let product = weights.broadcast_mul(masks)?;
    match sum {
        Some(sum) => Tensor::cat(&[&sum, &product], 0)?.sum_keepdim(0),
        None => product.sum_keepdim(0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// A model of one class, whose logit is the sum of squares.
    pub(crate) struct Sum;

    impl crate::CamModel for Sum {
        fn features(&self, images: &Tensor) -> Result<Tensor> {
            Ok(images.clone())
        }
        fn head(&self, features: &Tensor) -> Result<Tensor> {
            features.sqr()?.sum((1, 2, 3))?.unsqueeze(1)
        }
        fn linear_head(&self) -> Option<crate::LinearHead> {
            None
        }
    }

    /// Nothing masked is the image, everything masked is its background.
    #[test]
    fn backgrounds() -> Result<()> {
        let image = Tensor::new(&[[[[4f64, 0.0], [0.0, 0.0]]]], &Device::Cpu)?;
        let forward = Forward::new(&Sum, &image)?;
        let masks =
            Tensor::cat(&[Tensor::ones((1, 2, 2), DType::F64, &Device::Cpu)?, image.zeros_like()?.squeeze(0)?], 0)?;
        let class = Tensor::new(&[0u32], &Device::Cpu)?;
        let blurred = maps::blur(&image, 11, 5.0)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!(blurred > 0.0 && blurred < 16.0);
        for (fill, nothing) in [(Background::Zero, 0.0), (Background::Blur, blurred)] {
            let asked = Masked { score: Score::Logit, fill, memory_mb: 256.0 };
            let background = asked.background(&forward, 0)?;
            let scores = asked.scores(&forward, &class, &masks, 0, background.as_ref())?;
            assert_eq!(scores.to_vec2::<f64>()?, [[16.0, nothing]]);
        }
        Ok(())
    }
}
