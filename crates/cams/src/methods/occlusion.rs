use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::masked::{Background, Masked, add};
use crate::ranges::{MEMORY_MB, Ranges, above};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, images_per_pass};

/// Occlusion (Zeiler & Fergus 2014, arXiv 1311.2901, section 4.2) at the image's resolution: how far the score falls
/// when a square that slides over the image covers a pixel,
/// `S(p) = mean over the squares W that cover p of f(x) - f(x without W)`.
///
/// Squares start at multiples of the stride; the last of each direction ends at the border, so that all of the image is
/// covered (captum cuts it off there; where strides divide, the two agree). Sides are shares, for images of any
/// size: squares of s pixels every t on a side of n are `window = s / n`, `stride = t / s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Occlusion {
    /// What is explained. The probability is the paper's; where a model is sure, no square moves it; the logit still
    /// falls.
    pub score: Score,
    /// Side of the square, as a share of the image's shorter side.
    pub window: f64,
    /// Step between squares, as a share of the square's side.
    pub stride: f64,
    /// What covered pixels get.
    pub fill: Background,
    /// Memory for one pass, in MB.
    pub memory_mb: f64,
}

impl Default for Occlusion {
    fn default() -> Self {
        Occlusion { score: Score::Prob, window: 0.25, stride: 0.5, fill: Background::Zero, memory_mb: 256.0 }
    }
}

impl Occlusion {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[("window", above(0.0, 1.0)), ("stride", above(0.0, 1.0)), ("memory_mb", MEMORY_MB)];

    /// The squares on an image of this size: rows and columns of each.
    fn squares(&self, (height, width): (usize, usize)) -> Vec<(Range<usize>, Range<usize>)> {
        let pixels = |share: f64, of: usize| ((share * of as f64).round() as usize).clamp(1, of);
        let side = pixels(self.window, height.min(width));
        let stride = pixels(self.stride, side);
        let starts = |length: usize| (0..length - side).step_by(stride).chain([length - side]);
        let square = |y, x| (y..y + side, x..x + side);
        starts(height).flat_map(|y| starts(width).map(move |x| square(y, x))).collect()
    }
}

/// Squares as ones on zeros, (count, h, w).
fn drawn(squares: &[(Range<usize>, Range<usize>)], (h, w): (usize, usize), like: &Tensor) -> Result<Tensor> {
    let mut values = vec![0.0f64; squares.len() * h * w];
    for ((rows, columns), image) in squares.iter().zip(values.chunks_exact_mut(h * w)) {
        rows.clone().for_each(|y| image[y * w..][columns.clone()].fill(1.0));
    }
    Tensor::from_vec(values, (squares.len(), h, w), like.device())?.to_dtype(like.dtype())
}

impl Interpreter for Occlusion {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        let Occlusion { score, window, stride, fill, memory_mb } = *self;
        let (n, _, h, w) = forward.images.dims4()?;
        if !above(0.0, 1.0).holds(window) || !above(0.0, 1.0).holds(stride) || h * w == 0 {
            bail!(
                "occlusion needs images of at least one pixel, and a window and a stride above 0 and at most 1; given {h} x {w} pixels, window = {window}, stride = {stride}"
            );
        }
        let asked = Masked { score, fill, memory_mb };
        // Not from the pass that is explained: in training that one normalises otherwise than these.
        let nothing_covered = Tensor::ones((1, h, w), forward.images.dtype(), forward.images.device())?;
        let whole = |i| asked.scores(forward, classes, &nothing_covered, i, None)?.squeeze(0);
        let whole = (0..n).map(whole).collect::<Result<Vec<_>>>()?;
        let backgrounds = (0..n).map(|i| asked.background(forward, i)).collect::<Result<Vec<_>>>()?;
        let squares = self.squares((h, w));
        let (mut sums, mut times) = (vec![None; n], Tensor::zeros_like(&nothing_covered)?);
        for some in squares.chunks(images_per_pass(forward, memory_mb)) {
            let covered = drawn(some, (h, w), &forward.images)?;
            let present = covered.affine(-1.0, 1.0)?;
            times = (times + covered.sum_keepdim(0)?)?;
            for (i, sum) in sums.iter_mut().enumerate() {
                let scores = asked.scores(forward, classes, &present, i, backgrounds[i].as_ref())?;
                let falls = whole[i].broadcast_sub(&scores.squeeze(0)?)?.reshape((some.len(), 1, 1))?;
                *sum = Some(add(sum.take(), &falls, &covered)?);
            }
        }
        let sums: Vec<Tensor> = sums.into_iter().flatten().collect();
        let map = Tensor::cat(&sums, 0)?.broadcast_div(&times)?;
        Explanation::new(map, Estimator::Perturbation, squares.len() + 1)
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
    use candle_core::{DType, Device};

    /// Four squares of two pixels on three by three: a fall is what is covered.
    #[test]
    fn four_squares_by_hand() -> Result<()> {
        let images = Tensor::new(&[[[[1f64, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]]], &Device::Cpu)?;
        let (forward, classes) = (Forward::new(&Sum, &images)?, Tensor::new(&[0u32], &Device::Cpu)?);
        // Of the squares, row by row: 10, 13, 9, 10.
        let expected = [[10.0, 11.5, 13.0], [9.5, 10.5, 11.5], [9.0, 9.5, 10.0]];
        for memory_mb in [256.0, 1e-6] {
            let method = Occlusion { score: Score::Logit, window: 0.6, memory_mb, ..Occlusion::default() };
            let found = method.signed(&forward, &classes)?;
            assert_eq!(found.map.to_vec3::<f64>()?, [expected]);
            assert_eq!(found.evaluations, 5);
        }
        Ok(())
    }

    /// The fall is one between two passes of the same kind: the pass that is explained may be another's, as in training.
    #[test]
    fn the_logits_of_the_explained_pass_do_not_matter() -> Result<()> {
        let images = testkit::tensor(&[2, 1, 4, 4], 3, DType::F64, &Device::Cpu)?;
        let (mut forward, classes) = (Forward::new(&Sum, &images)?, Tensor::new(&[0u32, 0], &Device::Cpu)?);
        let method = Occlusion { score: Score::Logit, ..Occlusion::default() };
        let before = testkit::values(&method.signed(&forward, &classes)?.map)?;
        forward.logits = (forward.logits + 1.0)?;
        assert_eq!(testkit::values(&method.signed(&forward, &classes)?.map)?, before);
        let blurred = Occlusion { fill: Background::Blur, ..method };
        assert_ne!(testkit::values(&blurred.signed(&forward, &classes)?.map)?, before);
        Ok(())
    }

    #[test]
    fn what_cannot_be_covered_is_said() -> Result<()> {
        let images = testkit::tensor(&[1, 1, 4, 4], 3, DType::F64, &Device::Cpu)?;
        let (forward, classes) = (Forward::new(&Sum, &images)?, Tensor::new(&[0u32], &Device::Cpu)?);
        for (window, stride) in [(0.0, 0.5), (0.5, 1.5), (f64::NAN, 0.5)] {
            let method = Occlusion { window, stride, ..Occlusion::default() };
            let error = method.signed(&forward, &classes).unwrap_err().to_string();
            assert!(error.contains("4 x 4") && error.contains(&format!("window = {window}")), "{error}");
        }
        Ok(())
    }

    /// The last square of each direction ends at the border, whatever the stride.
    #[test]
    fn all_of_the_image_is_covered() -> Result<()> {
        let of = |window, stride, size| Occlusion { window, stride, ..Occlusion::default() }.squares(size);
        assert_eq!(of(0.25, 0.5, (32, 32)).len(), 49);
        assert_eq!(of(1.0, 1.0, (5, 5)), [(0..5, 0..5)]);
        let squares = of(0.5, 1.0, (4, 7));
        assert_eq!(squares.len(), 2 * 4);
        assert_eq!(squares.last(), Some(&(2..4, 5..7)));
        assert_eq!(of(1e-9, 1e-9, (2, 3)).len(), 6, "a pixel at a time at least");
        let like = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
        for (window, stride, size) in [(0.3, 1.0, (11, 17)), (0.5, 0.7, (9, 5)), (0.25, 0.5, (32, 32))] {
            let times = testkit::values(&drawn(&of(window, stride, size), size, &like)?.sum(0)?)?;
            assert!(times.iter().all(|t| *t >= 1.0), "{window} {stride} {size:?}");
        }
        Ok(())
    }

    /// A loss sees through all the passes.
    #[test]
    fn the_gradient_is_that_of_finite_differences() -> Result<()> {
        let images = testkit::tensor(&[1, 1, 4, 3], 5, DType::F64, &Device::Cpu)?;
        let classes = Tensor::new(&[0u32], &Device::Cpu)?;
        let method = Occlusion { score: Score::Logit, window: 0.5, memory_mb: 0.004, ..Occlusion::default() };
        let off = testkit::gradcheck(&images, 12, 1e-4, |images| {
            method.signed(&Forward::new(&Sum, images)?, &classes)?.map.sqr()?.sum_all()
        })?;
        assert!(off < 1e-6, "off by {off:.1e}");
        Ok(())
    }
}
