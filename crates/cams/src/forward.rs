//! One forward pass, and gradients taken from it.

use candle_core::{Result, Tensor, Var, bail};

use crate::ops::weighted_sum;
use crate::{CamModel, Estimator, Explanation, SampleId, Score};

/// One forward pass, made once and shared by every method.
pub struct Forward<'m> {
    /// The model.
    pub model: &'m dyn CamModel,
    /// Normalised images (n, c, h, w).
    pub images: Tensor,
    /// Activations (n, k, h', w').
    pub features: Tensor,
    /// Logits (n, classes).
    pub logits: Tensor,
    /// Where each image comes from.
    pub ids: Vec<SampleId>,
    /// Whether gradients through the head are to be differentiable once more, where the model can
    /// ([`CamModel::differentiable_gradient`]); else they are constants.
    pub second_order: bool,
}

impl<'m> Forward<'m> {
    /// Runs the model; images are numbered in order.
    pub fn new(model: &'m dyn CamModel, images: &Tensor) -> Result<Self> {
        let ids = (0..images.dim(0)? as u64).map(|sample| SampleId { sample, view: 0 }).collect();
        Self::with_ids(model, images, ids)
    }

    /// Runs the model on images of known origin.
    pub fn with_ids(model: &'m dyn CamModel, images: &Tensor, ids: Vec<SampleId>) -> Result<Self> {
        let features = model.features(images)?;
        let logits = model.head(&features)?;
        Ok(Forward { model, images: images.clone(), features, logits, ids, second_order: false })
    }

    /// Gradient of the scores with respect to the activations: (n, k), the same at every position and differentiable
    /// once more, where the head is linear; else (n, k, h, w), constant unless
    /// the model can do better ([`CamModel::differentiable_gradient`]).
    pub fn gradient(&self, score: Score, classes: &Tensor) -> Result<Gradient> {
        let Some(head) = self.model.linear_head() else {
            let constant = self.gradient_at(&self.features, score, classes)?;
            if !self.second_order {
                return Ok(Gradient::AtPositions(constant));
            }
            let again = self.model.differentiable_gradient(&self.features, &constant, score, classes)?;
            return Ok(Gradient::AtPositions(again.unwrap_or(constant)));
        };
        let (_, _, h, w) = self.features.dims4()?;
        let positions = (h * w) as f64;
        if score == Score::Logit {
            return Ok(Gradient::Uniform((head.class_weight(classes)? / positions)?));
        }
        Ok(Gradient::Uniform((head.channels(&score.gradient(&self.logits, classes)?)? / positions)?))
    }

    /// Gradient of the scores at other activations (n, k, h, w) of the same images, through the head, as a constant.
    pub fn gradient_at(&self, features: &Tensor, score: Score, classes: &Tensor) -> Result<Tensor> {
        let features = Var::from_tensor(&features.detach())?;
        let scores = score.of(&self.model.head(&features)?, classes)?;
        match scores.sum_all()?.backward()?.get(&features) {
            Some(gradient) => Ok(gradient.detach()),
            None => bail!("the model's head does not depend on its features in a way that candle can follow"),
        }
    }

    /// Refuses classes that do not fit the images or the logits.
    pub fn check_classes(&self, classes: &Tensor) -> Result<()> {
        let (n, count) = self.logits.dims2()?;
        if classes.dims() != [n] {
            bail!("{n} images need {n} classes to explain, {:?} given", classes.dims());
        }
        let given = classes.to_dtype(candle_core::DType::I64)?.to_vec1::<i64>()?;
        if let Some(wrong) = given.iter().find(|c| **c < 0 || **c >= count as i64) {
            bail!("class {wrong} cannot be explained: the model has classes 0 to {}", count as i64 - 1);
        }
        Ok(())
    }
}

/// The gradient of a score with respect to the activations.
pub enum Gradient {
    /// (n, k): the same at every position.
    Uniform(Tensor),
    /// (n, k, h, w).
    AtPositions(Tensor),
}

impl Gradient {
    /// How a map made from it came about.
    pub fn estimator(&self) -> Estimator {
        match self {
            Gradient::Uniform(_) => Estimator::Exact,
            Gradient::AtPositions(_) => Estimator::Gradient,
        }
    }
    /// Whether a loss sees more in it than a constant.
    pub fn is_tracked(&self) -> bool {
        match self {
            Gradient::Uniform(g) | Gradient::AtPositions(g) => g.track_op(),
        }
    }
    /// Passes of the head that it took.
    pub fn evaluations(&self) -> usize {
        usize::from(matches!(self, Gradient::AtPositions(_)))
    }
    /// Its mean over positions, (n, k).
    pub fn mean(&self) -> Result<Tensor> {
        match self {
            Gradient::Uniform(g) => Ok(g.clone()),
            Gradient::AtPositions(g) => g.mean((2, 3)),
        }
    }
    /// The map `sum_k f(G_k(p)) A_k(p)`.
    pub fn map(&self, features: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Explanation> {
        let map = match self {
            Gradient::Uniform(g) => weighted_sum(&f(g)?, features)?,
            Gradient::AtPositions(g) => (f(g)? * features)?.sum(1)?,
        };
        Explanation::new(map, self.estimator(), self.evaluations())
    }
}

/// Images that fit into one pass of a model under a budget in MB: an image and its activations, and four times as much
/// for what lies between them.
pub fn images_per_pass(forward: &Forward, megabytes: f64) -> usize {
    let elements = |t: &Tensor| t.elem_count() / t.dims().first().copied().unwrap_or(1).max(1);
    let bytes =
        5 * (elements(&forward.images) + elements(&forward.features)) * forward.features.dtype().size_in_bytes();
    ((megabytes * 1e6 / bytes.max(1) as f64) as usize).max(1)
}
