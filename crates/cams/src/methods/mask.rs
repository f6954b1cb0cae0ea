use candle_core::{DType, Result, Tensor, Var, bail};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::ranges::{Ranges, SEED, above, from};
use crate::{Differentiable, Estimator, Explanation, Forward, Interpreter, SampleId, Score, maps, random};

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

/// Where the optimisation of a mask starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Nothing is blurred.
    #[default]
    Ones,
    /// The smallest disc in the middle is blurred that takes 99 % of what blurring everything takes, as in the authors'
    /// code.
    Disc,
}

/// Meaningful perturbations (Fong & Vedaldi 2017, arXiv 1704.03296, eq. 4): the smallest smooth mask whose blurring
/// away takes the score down.
///
/// `argmin_m f(m^ x + (1 - m^) blur(x)) + l1 |1 - m| + tv (|d_v m|^beta + |d_h m|^beta)` over grids m in [0, 1], m^ the
/// grid resized bilinearly; `map = 1 - m^` at the image's resolution. Adam. On images of 224 pixels the authors' code
/// has `grid = 28`, `l1 = 1e-4`, `tv = 1e-2`, `reduction = "sum"`, `init = "disc"`, `jitter = 4` and blurs the mask
/// too; the widely used PyTorch port `grid = 28`, 500 iterations, `noise = 0.2` and a median filter on the blurred
/// image. The defaults are the port's penalties on a grid for images of 32 pixels, 300 iterations and no noise; they
/// are not tuned.
///
/// At m = 1, where `init = "ones"` begins and no mask may go beyond, `|1 - m|` has the derivative of its left side, -1: a cell
/// whose score gains less than its area costs stays where it is, and an image of which that holds everywhere has no map. PyTorch
/// takes 0 there, so that the port's first step moves every cell; the maps of images of which the model is all but certain differ.
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
    /// Where the optimisation starts.
    pub init: Init,
    /// Pixels by which each step may move what it sees, in each direction.
    pub jitter: usize,
    /// Standard deviation of noise on what each step sees, in the units of normalised images.
    pub noise: f64,
    /// Draws of that noise per step, each a pass of its own.
    pub noise_draws: usize,
    /// Seed of moves and noise.
    pub seed: u64,
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
            init: Init::Ones,
            jitter: 0,
            noise: 0.0,
            noise_draws: 1,
            seed: 0,
        }
    }
}

impl Mask {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("grid", from(1.0, 1024.0)),
        ("iterations", from(1.0, 1e6)),
        ("lr", above(0.0, 1e3)),
        ("l1", from(0.0, 1e6)),
        ("tv", from(0.0, 1e6)),
        ("beta", above(0.0, 100.0)),
        ("blur_size", from(1.0, 1023.0)),
        ("blur_sigma", above(0.0, 1e4)),
        ("jitter", from(0.0, 1024.0)),
        ("noise", from(0.0, 1e3)),
        ("noise_draws", from(1.0, 1e4)),
        ("seed", SEED),
    ];
}

impl Mask {
    /// What blurred pixels are: the images (n, c, h, w) under the Gaussian.
    pub fn blur(&self, images: &Tensor) -> Result<Tensor> {
        maps::blur(images, self.blur_size, self.blur_sigma)
    }

    /// Where the optimisation starts, (n, g, g).
    fn start(&self, forward: &Forward, classes: &Tensor, blurred: &Tensor) -> Result<Tensor> {
        let (n, _, _, _) = forward.images.dims4()?;
        let (g, like) = (self.grid, blurred);
        let ones = Tensor::ones((n, g, g), like.dtype(), like.device())?;
        if self.init == Init::Ones {
            return Ok(ones);
        }
        let centre = (g as f64 - 1.0) / 2.0;
        let disc = |radius: f64| -> Result<Tensor> {
            let outside = |at: usize| ((at / g) as f64 - centre).hypot((at % g) as f64 - centre) > radius;
            let cells: Vec<f64> = (0..g * g).map(|at| f64::from(u8::from(outside(at)))).collect();
            Tensor::from_vec(cells, (1, g, g), like.device())?.to_dtype(like.dtype())?.broadcast_as((n, g, g))
        };
        let score = |mask: &Tensor| -> Result<Vec<f64>> {
            let terms = self.terms(forward, classes, &mask.contiguous()?, blurred)?;
            terms.narrow(1, 0, 1)?.squeeze(1)?.detach().to_dtype(DType::F64)?.to_vec1()
        };
        // The smallest disc that takes 99 % of what blurring everything takes.
        let (all, none) = (score(&ones)?, score(&ones.zeros_like()?)?);
        let mut start: Vec<Option<Tensor>> = vec![None; n];
        for step in 1..=2 * g {
            let disc = disc(step as f64 / 2.0)?;
            for (i, score) in score(&disc)?.into_iter().enumerate() {
                if start[i].is_none() && score - none[i] <= 0.01 * (all[i] - none[i]).max(0.0) {
                    start[i] = Some(disc.narrow(0, i, 1)?);
                }
            }
        }
        let zeros = ones.zeros_like()?;
        let rows = start.into_iter().enumerate().map(|(i, disc)| disc.map_or_else(|| zeros.narrow(0, i, 1), Ok));
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    /// The images of one step and their blurred versions, as the step sees them: all moved alike, each with noise of
    /// its own.
    fn disturbed(&self, images: &Tensor, ids: &[SampleId], step: usize, draw: usize) -> Result<Tensor> {
        let mut images = images.clone();
        if self.noise > 0.0 {
            let mut noise = Vec::with_capacity(images.elem_count());
            let each = images.elem_count() / ids.len().max(1);
            for id in ids {
                let key = [self.seed, id.sample, id.view, (step * self.noise_draws + draw) as u64];
                let mut rng = random::stream(&key);
                noise.extend((0..each).map(|_| self.noise * random::normal(&mut rng)));
            }
            let noise = Tensor::from_vec(noise, images.shape(), images.device())?.to_dtype(images.dtype())?;
            images = (images + noise)?;
        }
        if self.jitter > 0 {
            let mut rng = random::stream(&[self.seed, step as u64]);
            let mut by = || rng.random_range(0..=2 * self.jitter) as isize - self.jitter as isize;
            images = maps::shift(&images, by(), by())?;
        }
        Ok(images)
    }

    /// The objective's three terms (n, 3) - score, area, roughness - for masks (n, g, g).
    pub fn terms(&self, forward: &Forward, classes: &Tensor, masks: &Tensor, blurred: &Tensor) -> Result<Tensor> {
        self.terms_of(forward, classes, (masks, blurred), |seen, _| Ok(seen.clone()), 1)
    }

    /// The same where the score is the mean over `draws` of what `disturb` makes of the masked images.
    fn terms_of(
        &self,
        forward: &Forward,
        classes: &Tensor,
        (masks, blurred): (&Tensor, &Tensor),
        disturb: impl Fn(&Tensor, usize) -> Result<Tensor>,
        draws: usize,
    ) -> Result<Tensor> {
        let (n, g, _) = masks.dims3()?;
        let (_, _, h, w) = forward.images.dims4()?;
        let large = maps::resize(masks, h, w)?.unsqueeze(1)?;
        let images = forward.images.detach();
        let seen = (images.broadcast_mul(&large)? + blurred.broadcast_mul(&large.affine(-1.0, 1.0)?)?)?;
        let score = |draw| -> Result<Tensor> {
            let logits = forward.model.head(&forward.model.features(&disturb(&seen, draw)?)?)?;
            self.score.of(&logits, classes)? / draws as f64
        };
        let mut mean = score(0)?;
        for draw in 1..draws {
            mean = (mean + score(draw)?)?;
        }
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
        Tensor::stack(&[mean, (area * self.l1)?, rough], 1)?.reshape((n, 3))
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
        if self.noise_draws == 0 || !(self.noise >= 0.0 && self.noise.is_finite()) {
            bail!(
                "mask needs noise >= 0 and at least one of noise_draws; given {} and {}",
                self.noise,
                self.noise_draws
            );
        }
        let (_, _, h, w) = forward.images.dims4()?;
        let blurred = self.blur(&forward.images.detach())?;
        let mask = Var::from_tensor(&self.start(forward, classes, &blurred)?)?;
        let draws = if self.noise > 0.0 { self.noise_draws } else { 1 };
        let (mut first, mut second) = (mask.zeros_like()?, mask.zeros_like()?);
        let (b1, b2, eps) = (0.9f64, 0.999f64, 1e-8); // Adam's own defaults (Kingma & Ba 2015)
        for step in 1..=self.iterations as i32 {
            let disturb = |seen: &Tensor, draw: usize| self.disturbed(seen, &forward.ids, step as usize, draw);
            let terms = self.terms_of(forward, classes, (mask.as_tensor(), &blurred), disturb, draws)?;
            let grads = terms.sum_all()?.backward()?;
            let Some(g) = grads.get(&mask) else { bail!("the score does not depend on the mask") };
            first = ((first * b1)? + (g * (1.0 - b1))?)?.detach();
            second = ((second * b2)? + (g.sqr()? * (1.0 - b2))?)?.detach();
            let (m, v) = ((&first / (1.0 - b1.powi(step)))?, (&second / (1.0 - b2.powi(step)))?);
            let moved = (mask.as_tensor() - (m / (v.sqrt()? + eps)?)? * self.lr)?;
            mask.set(&moved.clamp(0.0, 1.0)?.detach())?;
        }
        let map = maps::resize(&mask.as_detached_tensor(), h, w)?.affine(-1.0, 1.0)?;
        let started = if self.init == Init::Disc { 2 * self.grid + 2 } else { 0 };
        Explanation::new(map, Estimator::Optimised, self.iterations * draws + started)
    }

    fn has_relu(&self) -> bool {
        false
    }

    fn is_of_image_size(&self) -> bool {
        true
    }

    fn differentiable(&self) -> Differentiable {
        Differentiable::Not("the mask is the result of an optimisation")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CamModel, LinearHead};
    use candle_core::Device;

    /// The class's logit is the sum of the middle four pixels.
    struct Middle;

    impl CamModel for Middle {
        fn features(&self, images: &Tensor) -> Result<Tensor> {
            Ok(images.clone())
        }
        fn head(&self, features: &Tensor) -> Result<Tensor> {
            features.narrow(2, 7, 2)?.narrow(3, 7, 2)?.sum((1, 2, 3))?.unsqueeze(1)
        }
        fn linear_head(&self) -> Option<LinearHead> {
            None
        }
    }

    fn dot_in_the_middle() -> Result<Tensor> {
        let at = |p: usize| (7..=8).contains(&(p / 16)) && (7..=8).contains(&(p % 16));
        let pixels: Vec<f64> = (0..256).map(|p| f64::from(u8::from(at(p)))).collect();
        Tensor::from_vec(pixels, (1, 1, 16, 16), &Device::Cpu)
    }

    #[test]
    fn the_disc_is_the_smallest_that_hides_the_object() -> Result<()> {
        let image = dot_in_the_middle()?;
        let forward = Forward::new(&Middle, &image)?;
        let mask = Mask { score: Score::Logit, init: Init::Disc, ..Mask::default() };
        let classes = Tensor::new(&[0u32], &Device::Cpu)?;
        let start = mask.start(&forward, &classes, &mask.blur(&image)?)?.squeeze(0)?.to_vec2::<f64>()?;
        // The middle four cells hide it: the smaller discs hide nothing at all.
        for (y, row) in start.iter().enumerate() {
            for (x, cell) in row.iter().enumerate() {
                let middle = (3..=4).contains(&y) && (3..=4).contains(&x);
                // Resized, a cell reaches half a cell further; the disc has to cover that too.
                let far = (y as f64 - 3.5).hypot(x as f64 - 3.5) > 1.6;
                assert!(if middle { *cell == 0.0 } else { !far || *cell == 1.0 }, "{start:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn noise_and_jitter_change_the_mask_and_are_fixed_by_the_seed() -> Result<()> {
        let image = dot_in_the_middle()?;
        let forward = Forward::new(&Middle, &image)?;
        let classes = Tensor::new(&[0u32], &Device::Cpu)?;
        let plain = Mask { score: Score::Logit, iterations: 4, ..Mask::default() };
        let of = |mask: Mask| -> Result<Vec<f64>> { testkit::values(&mask.explain(&forward, &classes)?.map) };
        let noisy = Mask { noise: 0.3, noise_draws: 3, jitter: 2, ..plain };
        assert_eq!(of(noisy)?, of(noisy)?);
        assert_ne!(of(noisy)?, of(plain)?);
        assert_ne!(of(noisy)?, of(Mask { seed: 1, ..noisy })?);
        assert_eq!(noisy.explain(&forward, &classes)?.evaluations, 12);
        assert!(Mask { noise_draws: 0, ..noisy }.explain(&forward, &classes).is_err());
        Ok(())
    }
}
