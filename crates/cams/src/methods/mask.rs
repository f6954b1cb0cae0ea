use candle_core::{Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, Score, maps};

/// How the penalties on a mask are reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Means, as in the widely used PyTorch port.
    #[default]
    Mean,
    /// Sums, as in the authors' code.
    Sum,
}

/// Meaningful perturbations (Fong & Vedaldi 2017, arXiv 1704.03296, eq. 4): the smallest smooth mask whose blurring away takes the score down.
///
/// `argmin_m f(m^ x + (1 - m^) blur(x)) + l1 |1 - m| + tv (|d_v m|^beta + |d_h m|^beta)` over grids m in [0, 1], m^ the grid resized
/// bilinearly; `map = 1 - m^` at the image's resolution. Adam, from m = 1. The defaults are those of the PyTorch port with a coarser grid for
/// images of 32 pixels; they are not tuned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mask {
    /// What is explained.
    pub score: Score,
    /// Cells of the mask in each direction.
    pub grid: usize,
    /// Steps of Adam.
    pub iterations: usize,
    /// Its step size.
    pub lr: f64,
    /// Weight of the mask's area.
    pub l1: f64,
    /// Weight of its roughness.
    pub tv: f64,
    /// Exponent of the roughness.
    pub beta: f64,
    /// How both are reduced.
    pub reduction: Reduction,
    /// Side of the blur's Gaussian, odd.
    pub blur_size: usize,
    /// Its standard deviation.
    pub blur_sigma: f64,
}

impl Default for Mask {
    fn default() -> Self {
        Mask {
            score: Score::Prob,
            grid: 8,
            iterations: 300,
            lr: 0.1,
            l1: 0.01,
            tv: 0.2,
            beta: 3.0,
            reduction: Reduction::Mean,
            blur_size: 11,
            blur_sigma: 5.0,
        }
    }
}

impl Mask {
    /// The blurred images (n, c, h, w): a Gaussian, borders reflected.
    pub fn blur(&self, images: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = images.dims4()?;
        let axis = |len: usize| -> Result<Tensor> {
            let reach = (self.blur_size / 2) as isize;
            let weight = |d: isize| (-((d * d) as f64) / (2.0 * self.blur_sigma * self.blur_sigma)).exp();
            let total: f64 = (-reach..=reach).map(weight).sum();
            let mut m = vec![0f64; len * len];
            for i in 0..len as isize {
                for d in -reach..=reach {
                    // Reflected as often as it takes: a small image may be narrower than the Gaussian.
                    let period = (2 * len as isize - 2).max(1);
                    let at = (i + d).rem_euclid(period);
                    let at = if at >= len as isize { period - at } else { at };
                    m[i as usize * len + at as usize] += weight(d) / total;
                }
            }
            Tensor::from_vec(m, (len, len), images.device())?.to_dtype(images.dtype())
        };
        let columns = images.contiguous()?.reshape((n * c * h, w))?.matmul(&axis(w)?.t()?)?.reshape((n * c, h, w))?;
        axis(h)?.unsqueeze(0)?.broadcast_as((n * c, h, h))?.contiguous()?.matmul(&columns)?.reshape((n, c, h, w))
    }

    /// The objective's three terms (n, 3) - score, area, roughness - for masks (n, g, g).
    pub fn terms(&self, forward: &Forward, classes: &Tensor, masks: &Tensor, blurred: &Tensor) -> Result<Tensor> {
        let (n, g, _) = masks.dims3()?;
        let (_, _, h, w) = forward.images.dims4()?;
        let large = maps::resize(masks, h, w)?.unsqueeze(1)?;
        let images = forward.images.detach();
        let seen = (images.broadcast_mul(&large)? + blurred.broadcast_mul(&large.affine(-1.0, 1.0)?)?)?;
        let score = self.score.of(&forward.model.head(&forward.model.features(&seen)?)?, classes)?;
        let reduce = |t: Tensor| -> Result<Tensor> {
            let flat = t.flatten_from(1)?;
            match self.reduction {
                Reduction::Mean if flat.dim(1)? > 0 => flat.mean(1),
                _ => flat.sum(1),
            }
        };
        let area = reduce(masks.affine(-1.0, 1.0)?.abs()?)?;
        let rough = |axis: usize| -> Result<Tensor> {
            if g < 2 {
                return area.zeros_like();
            }
            // |d|^beta as (d^2)^(beta / 2): smooth at 0, where a power of |d| has no gradient for candle.
            let d = (masks.narrow(axis, 1, g - 1)? - masks.narrow(axis, 0, g - 1)?)?;
            reduce((d.sqr()? + 1e-20)?.powf(self.beta / 2.0)?)
        };
        let rough = ((rough(1)? + rough(2)?)? * self.tv)?;
        Tensor::stack(&[score, (area * self.l1)?, rough], 1)?.reshape((n, 3))
    }
}

impl Interpreter for Mask {
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        if self.grid == 0 || self.blur_size.is_multiple_of(2) || self.blur_sigma <= 0.0 {
            bail!(
                "mask needs a grid of at least one cell, an odd blur_size and blur_sigma > 0; given {}, {} and {}",
                self.grid,
                self.blur_size,
                self.blur_sigma
            );
        }
        let (n, _, h, w) = forward.images.dims4()?;
        let (dtype, device) = (forward.images.dtype(), forward.images.device());
        let blurred = self.blur(&forward.images.detach())?;
        let mask = Var::ones((n, self.grid, self.grid), dtype, device)?;
        let (mut first, mut second) = (mask.zeros_like()?, mask.zeros_like()?);
        let (b1, b2, eps) = (0.9f64, 0.999f64, 1e-8); // Adam's own defaults (Kingma & Ba 2015)
        for step in 1..=self.iterations as i32 {
            let grads = self.terms(forward, classes, &mask, &blurred)?.sum_all()?.backward()?;
            let Some(g) = grads.get(&mask) else { bail!("the score does not depend on the mask") };
            first = ((first * b1)? + (g * (1.0 - b1))?)?.detach();
            second = ((second * b2)? + (g.sqr()? * (1.0 - b2))?)?.detach();
            let (m, v) = ((&first / (1.0 - b1.powi(step)))?, (&second / (1.0 - b2.powi(step)))?);
            let moved = (mask.as_tensor() - (m / (v.sqrt()? + eps)?)? * self.lr)?;
            mask.set(&moved.clamp(0.0, 1.0)?.detach())?;
        }
        let map = maps::resize(&mask.as_detached_tensor(), h, w)?.affine(-1.0, 1.0)?;
        Explanation::new(map, Estimator::Optimised, self.iterations)
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::Not("the mask is the result of an optimisation")
    }
}
