use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::masked::{Background, Masked, add};
use crate::ranges::{MEMORY_MB, Ranges, SEED, from};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, images_per_pass, maps};

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
    /// Memory for one pass, and for masks that are kept, in MB. Where twice all of them do not fit, each is drawn again
    /// when it is needed.
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
        ("p", from(1e-6, 1.0)),
        ("tolerance", from(0.0, 10.0)),
        ("seed", SEED),
        ("memory_mb", MEMORY_MB),
    ];
}

/// Masks before the first look at an image's error. Looks are few, so that a lucky streak does not decide.
const FIRST_LOOK: usize = 100;

impl Rise {
    /// The masks for images of this size, (masks, height, width): each has a random stream of its own.
    pub fn draw(&self, size: (usize, usize), like: &Tensor) -> Result<Tensor> {
        self.draw_some(0..self.masks, size, like)
    }

    /// Some of these, by their numbers.
    fn draw_some(&self, numbers: Range<usize>, (height, width): (usize, usize), like: &Tensor) -> Result<Tensor> {
        let cell = (height.div_ceil(self.cells), width.div_ceil(self.cells));
        let mut cut = Vec::with_capacity(numbers.len());
        for i in numbers {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(i as u64);
            let grid: Vec<f64> =
                (0..self.cells * self.cells).map(|_| f64::from(u8::from(rng.random::<f64>() < self.p))).collect();
            let (y, x) = (rng.random_range(0..cell.0), rng.random_range(0..cell.1));
            let grid = Tensor::from_vec(grid, (self.cells, self.cells), like.device())?.to_dtype(like.dtype())?;
            let large = maps::resize(&grid, (self.cells + 1) * cell.0, (self.cells + 1) * cell.1)?;
            // A copy, so that what was cut off is not kept.
            cut.push(large.narrow(0, y, height)?.narrow(1, x, width)?.force_contiguous()?);
        }
        Tensor::stack(&cut, 0)
    }

    /// What it asks of masked images.
    fn asked(&self) -> Masked {
        Masked { score: self.score, fill: self.fill, memory_mb: self.memory_mb }
    }

    /// The scores of every image under given masks (m, h, w), (n, m).
    pub fn scores(&self, forward: &Forward, classes: &Tensor, masks: &Tensor) -> Result<Tensor> {
        let asked = self.asked();
        let rows = (0..forward.images.dim(0)?)
            .map(|i| asked.scores(forward, classes, masks, i, asked.background(forward, i)?.as_ref()));
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    /// One image's map and its error, (1, h, w) each, and how many masks they took.
    fn map_of(&self, forward: &Forward, classes: &Tensor, masks: &Masks, i: usize) -> Result<(Tensor, Tensor, usize)> {
        let asked = self.asked();
        let background = asked.background(forward, i)?;
        let chunk = images_per_pass(forward, self.memory_mb);
        let mut scores = Vec::new();
        let (mut taken, mut look) = (0, if self.tolerance > 0.0 { FIRST_LOOK } else { self.masks });
        loop {
            let end = look.min(self.masks);
            for first in (taken..end).step_by(chunk) {
                let some = masks(first, chunk.min(end - first))?;
                scores.push(asked.scores(forward, classes, &some, i, background.as_ref())?);
            }
            (taken, look) = (end, 2 * look);
            let (map, error) = self.estimate(masks, &Tensor::cat(&scores, 1)?, chunk)?;
            let largest = |t: &Tensor| t.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
            let range = largest(&map)? + largest(&map.neg()?)?;
            if taken == self.masks || 1.96 * largest(&error)? <= self.tolerance * range {
                return Ok((map, error, taken));
            }
        }
    }

    /// The map of given masks (m, h, w) and the scores under them (n, m).
    pub fn combine(&self, masks: &Tensor, scores: &Tensor) -> Result<Tensor> {
        let given = |first, count| masks.narrow(0, first, count);
        let rows =
            (0..scores.dim(0)?).map(|i| Ok(self.estimate(&given, &scores.narrow(0, i, 1)?, masks.dim(0)?.max(1))?.0));
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    /// The map of one image's scores (1, m) and its standard error, (1, h, w) each, from `chunk` masks at a time.
    fn estimate(&self, masks: &Masks, scores: &Tensor, chunk: usize) -> Result<(Tensor, Tensor)> {
        let m = scores.dim(1)?;
        let scores = if self.centred { scores.broadcast_sub(&scores.mean_keepdim(1)?)? } else { scores.clone() };
        let (mut sum, mut squares) = (None, None);
        for first in (0..m).step_by(chunk) {
            let count = chunk.min(m - first);
            let (some, scores) = (masks(first, count)?, scores.narrow(1, first, count)?.reshape((count, 1, 1))?);
            sum = Some(add(sum, &scores, &some)?);
            squares = Some(add(squares, &scores.detach().sqr()?, &some.sqr()?)?);
        }
        let (Some(sum), Some(squares)) = (sum, squares) else { bail!("rise needs at least one mask to make a map of") };
        let map = (sum / (m as f64 * self.p))?.contiguous()?;
        let squares = (squares / (m as f64 * self.p * self.p))?;
        let variance = maps::relu(&(squares - map.detach().sqr()?)?)?;
        Ok((map, (variance / (m.max(2) - 1) as f64)?.sqrt()?))
    }
}

/// Masks by their numbers, (count, h, w): the first one, and how many.
type Masks<'a> = dyn Fn(usize, usize) -> Result<Tensor> + 'a;

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
        let bytes = self.masks as f64 * (h * w * forward.images.dtype().size_in_bytes()) as f64;
        // Twice: drawn one by one, then put together.
        let fits = 2.0 * bytes <= self.memory_mb * 1e6;
        let kept = fits.then(|| self.draw((h, w), &forward.images)).transpose()?;
        let masks = |first: usize, count: usize| match &kept {
            Some(kept) => kept.narrow(0, first, count),
            None => self.draw_some(first..first + count, (h, w), &forward.images),
        };
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
    use crate::masked::tests::Sum;
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

    /// A mask is what it is with all the others, and a few at a time make the same map and error to the bit, whether or
    /// not all are kept.
    #[test]
    fn memory_changes_no_bit() -> Result<()> {
        let images = testkit::tensor(&[2, 1, 6, 5], 3, DType::F64, &Device::Cpu)?;
        let (forward, classes) = (Forward::new(&Sum, &images)?, Tensor::new(&[0u32, 0], &Device::Cpu)?);
        for (centred, tolerance) in [(false, 0.0), (true, 0.0), (false, 0.6)] {
            let base = Rise { score: Score::Logit, masks: 250, cells: 3, centred, tolerance, ..Rise::default() };
            let all = base.draw((6, 5), &images)?;
            let some = base.draw_some(37..41, (6, 5), &images)?;
            assert_eq!(testkit::values(&some)?, testkit::values(&all.narrow(0, 37, 4)?)?);
            let of = |memory_mb| {
                let found = Rise { memory_mb, ..base }.signed(&forward, &classes)?;
                let error = testkit::values(found.error.as_ref().expect("an error"))?;
                Ok::<_, candle_core::Error>((testkit::values(&found.map)?, error, found.evaluations))
            };
            // One mask at a time, four, and all that are wanted.
            let whole = of(256.0)?;
            assert_eq!(of(1e-6)?, whole, "{centred} {tolerance}");
            assert_eq!(of(0.01)?, whole, "{centred} {tolerance}");
            if tolerance == 0.0 {
                let by_definition = base.combine(&all, &base.scores(&forward, &classes, &all)?)?;
                assert_eq!(testkit::values(&by_definition)?, whole.0);
            }
        }
        Ok(())
    }

    /// Drawn in advance, ten million masks would take minutes and gigabytes.
    #[test]
    fn masks_that_are_not_needed_are_not_drawn() -> Result<()> {
        let image = Tensor::new(&[[[[4f64, 0.0], [0.0, 0.0]]]], &Device::Cpu)?;
        let forward = Forward::new(&Sum, &image)?;
        let rise = Rise { score: Score::Logit, masks: 10_000_000, cells: 2, tolerance: 10.0, ..Rise::default() };
        let found = rise.signed(&forward, &Tensor::new(&[0u32], &Device::Cpu)?)?;
        assert_eq!(found.evaluations, FIRST_LOOK);
        Ok(())
    }

    /// A loss sees through masks that come a few at a time.
    #[test]
    fn the_gradient_goes_through_every_chunk() -> Result<()> {
        let images = testkit::tensor(&[1, 1, 4, 3], 5, DType::F64, &Device::Cpu)?;
        let classes = Tensor::new(&[0u32], &Device::Cpu)?;
        for centred in [false, true] {
            let rise = Rise { score: Score::Logit, masks: 30, cells: 2, centred, memory_mb: 0.004, ..Rise::default() };
            let off = testkit::gradcheck(&images, 12, 1e-4, |images| {
                let forward = Forward::new(&Sum, images)?;
                assert_eq!(images_per_pass(&forward, rise.memory_mb), 4);
                rise.signed(&forward, &classes)?.map.sqr()?.sum_all()
            })?;
            assert!(off < 1e-6, "off by {off:.1e}");
        }
        Ok(())
    }
}
