use candle_core::{DType, Result, Tensor, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ranges::{MEMORY_MB, Ranges, SEED, above, from};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, images_per_pass, maps};

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

/// RISE (Petsiuk et al. 2018, arXiv 1806.07421, eq. 5): `S = 1 / (N p) sum_i f(x * M_i) M_i` at the image's resolution.
///
/// A mask is a grid of `cells` x `cells` zeros and ones (one with probability `p`), resized bilinearly to one cell more
/// than the image and cut out at a random place. All images see the same masks. The error is the standard error of the
/// mean over masks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rise {
    /// What is explained.
    pub score: Score,
    /// Number of masks, N.
    pub masks: usize,
    /// Cells in each direction.
    pub cells: usize,
    /// Probability that a cell is kept.
    pub p: f64,
    /// What absent pixels get.
    pub fill: Background,
    /// An image takes no more masks once the 95 % intervals of its map are within this share of its range, which is
    /// looked at after 100, 200, 400, ... masks; 0: it takes them all.
    pub tolerance: f64,
    /// Subtract the mean score first: without it the map carries a large constant. Not in the definition.
    pub centred: bool,
    /// Seed of the masks.
    pub seed: u64,
    /// Memory for one pass, in MB.
    pub memory_mb: f64,
}

impl Default for Rise {
    fn default() -> Self {
        Rise {
            score: Score::Prob,
            masks: 2000,
            cells: 8,
            p: 0.5,
            fill: Background::Zero,
            tolerance: 0.0,
            centred: false,
            seed: 0,
            memory_mb: 256.0,
        }
    }
}

impl Rise {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("masks", from(2.0, 1e7)),
        ("cells", from(1.0, 1024.0)),
        ("p", above(0.0, 1.0)),
        ("tolerance", from(0.0, 10.0)),
        ("seed", SEED),
        ("memory_mb", MEMORY_MB),
    ];
}

/// Masks before the first look at an image's error. Looks are few, so that a lucky streak does not decide.
const FIRST_LOOK: usize = 100;

impl Rise {
    /// The masks for images of this size, (masks, height, width): each has a random stream of its own.
    pub fn draw(&self, (height, width): (usize, usize), like: &Tensor) -> Result<Tensor> {
        let cell = (height.div_ceil(self.cells), width.div_ceil(self.cells));
        let mut cut = Vec::with_capacity(self.masks);
        for i in 0..self.masks {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(i as u64);
            let grid: Vec<f64> =
                (0..self.cells * self.cells).map(|_| f64::from(u8::from(rng.random::<f64>() < self.p))).collect();
            let (y, x) = (rng.random_range(0..cell.0), rng.random_range(0..cell.1));
            let grid = Tensor::from_vec(grid, (self.cells, self.cells), like.device())?.to_dtype(like.dtype())?;
            let large = maps::resize(&grid, (self.cells + 1) * cell.0, (self.cells + 1) * cell.1)?;
            cut.push(large.narrow(0, y, height)?.narrow(1, x, width)?);
        }
        Tensor::stack(&cut, 0)
    }

    /// The scores of every image under given masks (m, h, w), (n, m).
    pub fn scores(&self, forward: &Forward, classes: &Tensor, masks: &Tensor) -> Result<Tensor> {
        let rows = (0..forward.images.dim(0)?)
            .map(|i| self.scores_of(forward, classes, masks, i, self.background(forward, i)?.as_ref()));
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    /// What an image's absent pixels get, where that is not 0.
    fn background(&self, forward: &Forward, i: usize) -> Result<Option<Tensor>> {
        match self.fill {
            Background::Zero => Ok(None),
            Background::Blur => maps::blur(&forward.images.narrow(0, i, 1)?, 11, 5.0).map(Some),
        }
    }

    /// Those of one image, (1, m): as many masked copies a pass as memory allows.
    fn scores_of(
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

    /// One image's map and its error, (1, h, w) each, and how many masks they took.
    fn map_of(&self, forward: &Forward, classes: &Tensor, masks: &Tensor, i: usize) -> Result<(Tensor, Tensor, usize)> {
        let background = self.background(forward, i)?;
        let mut scores = Vec::new();
        let (mut taken, mut look) = (0, if self.tolerance > 0.0 { FIRST_LOOK } else { self.masks });
        loop {
            let count = look.min(self.masks) - taken;
            scores.push(self.scores_of(forward, classes, &masks.narrow(0, taken, count)?, i, background.as_ref())?);
            (taken, look) = (taken + count, 2 * look);
            let (seen, scores) = (masks.narrow(0, 0, taken)?, Tensor::cat(&scores, 1)?);
            let map = self.combine(&seen, &scores)?;
            let error = self.standard_error(&seen, &scores, &map)?;
            let largest = |t: &Tensor| t.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
            let range = largest(&map)? + largest(&map.neg()?)?;
            if taken == self.masks || 1.96 * largest(&error)? <= self.tolerance * range {
                return Ok((map, error, taken));
            }
        }
    }

    /// The map of given masks (m, h, w) and the scores under them (n, m).
    pub fn combine(&self, masks: &Tensor, scores: &Tensor) -> Result<Tensor> {
        let (m, h, w) = masks.dims3()?;
        let n = scores.dim(0)?;
        let scores = if self.centred { scores.broadcast_sub(&scores.mean_keepdim(1)?)? } else { scores.clone() };
        // Not matrix products: they may be rounded differently in a batch of another size or on more threads.
        let masks = masks.reshape((m, h * w))?;
        let rows = (0..n).map(|i| scores.narrow(0, i, 1)?.reshape((m, 1))?.broadcast_mul(&masks)?.sum_keepdim(0));
        (Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?.reshape((n, h, w))? / (m as f64 * self.p))?.contiguous()
    }

    /// The standard error of [`combine`](Self::combine).
    fn standard_error(&self, masks: &Tensor, scores: &Tensor, map: &Tensor) -> Result<Tensor> {
        let (m, h, w) = masks.dims3()?;
        let n = scores.dim(0)?;
        let scores = if self.centred { scores.broadcast_sub(&scores.mean_keepdim(1)?)? } else { scores.clone() };
        let (scores, masks) = (scores.detach().sqr()?, masks.sqr()?.reshape((m, h * w))?);
        let rows = (0..n).map(|i| scores.narrow(0, i, 1)?.reshape((m, 1))?.broadcast_mul(&masks)?.sum_keepdim(0));
        let square =
            (Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?.reshape((n, h, w))? / (m as f64 * self.p * self.p))?;
        let variance = maps::relu(&(square - map.detach().sqr()?)?)?;
        (variance / (m.max(2) - 1) as f64)?.sqrt()
    }
}

impl Interpreter for Rise {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        if self.masks == 0 || self.cells == 0 || !(self.p > 0.0 && self.p <= 1.0) || self.tolerance.is_nan() {
            bail!(
                "rise needs at least one mask, one cell, 0 < p <= 1 and a tolerance; given masks = {}, cells = {}, p = {}, \
                 tolerance = {}",
                self.masks,
                self.cells,
                self.p,
                self.tolerance
            );
        }
        let (_, _, h, w) = forward.images.dims4()?;
        let masks = self.draw((h, w), &forward.images)?;
        let (mut all, mut errors, mut evaluations) = (Vec::new(), Vec::new(), 0);
        for i in 0..forward.images.dim(0)? {
            let (map, error, taken) = self.map_of(forward, classes, &masks, i)?;
            all.push(map);
            errors.push(error);
            evaluations = evaluations.max(taken);
        }
        let mut explanation = Explanation::new(Tensor::cat(&all, 0)?, Estimator::Mc, evaluations)?;
        explanation.error = Some(Tensor::cat(&errors, 0)?);
        Ok(explanation)
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn is_of_image_size(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::ThroughPasses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn masks_are_of_the_image_and_average_to_p() -> Result<()> {
        let like = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
        let rise = Rise { masks: 400, cells: 4, p: 0.3, ..Rise::default() };
        let masks = rise.draw((30, 32), &like)?;
        assert_eq!(masks.dims(), [400, 30, 32]);
        let mean = masks.mean_all()?.to_scalar::<f64>()?;
        assert!((mean - 0.3).abs() < 0.02, "{mean}");
        let values: Vec<f64> = masks.flatten_all()?.to_vec1()?;
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)) && values.iter().any(|v| *v > 0.1 && *v < 0.9));
        Ok(())
    }

    /// Two masks by hand: f = 1 under the left half, 3 under the right one, p = 1/2.
    #[test]
    fn two_masks_by_hand() -> Result<()> {
        let masks = Tensor::new(&[[[1f64, 0.0]], [[0.0, 1.0]]], &Device::Cpu)?;
        let scores = Tensor::new(&[[1f64, 3.0]], &Device::Cpu)?;
        let rise = Rise::default();
        assert_eq!(rise.combine(&masks, &scores)?.to_vec3::<f64>()?, [[[1.0, 3.0]]]);
        let centred = Rise { centred: true, ..rise };
        assert_eq!(centred.combine(&masks, &scores)?.to_vec3::<f64>()?, [[[-1.0, 1.0]]]);
        Ok(())
    }

    /// Nothing masked is the image, everything masked is its background.
    #[test]
    fn backgrounds() -> Result<()> {
        struct Sum;
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
        let image = Tensor::new(&[[[[4f64, 0.0], [0.0, 0.0]]]], &Device::Cpu)?;
        let forward = Forward::new(&Sum, &image)?;
        let masks =
            Tensor::cat(&[Tensor::ones((1, 2, 2), DType::F64, &Device::Cpu)?, image.zeros_like()?.squeeze(0)?], 0)?;
        let class = Tensor::new(&[0u32], &Device::Cpu)?;
        let blurred = maps::blur(&image, 11, 5.0)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!(blurred > 0.0 && blurred < 16.0);
        for (fill, background) in [(Background::Zero, 0.0), (Background::Blur, blurred)] {
            let rise = Rise { score: Score::Logit, fill, ..Rise::default() };
            assert_eq!(rise.scores(&forward, &class, &masks)?.to_vec2::<f64>()?, [[16.0, background]]);
        }
        Ok(())
    }
}
