//! Explanation maps of image classifiers: which positions of a feature map speak for a class.
//!
//! A model is seen as two halves, cut at the layer to explain: `logits = head(features(images))`
//! ([`CamModel`]). One [`Forward`] pass is enough for every method; each method is a plain struct of its
//! hyper-parameters that implements [`Interpreter`].
//!
//! ```
//! use cams::{CamModel, Forward, Interpreter, LinearHead, methods::GradCam};
//! use candle_core::{Device, Result, Tensor};
//!
//! struct Gap(LinearHead); // average pooling and a linear layer on the pixels themselves
//! impl CamModel for Gap {
//!     fn features(&self, images: &Tensor) -> Result<Tensor> { Ok(images.clone()) }
//!     fn head(&self, features: &Tensor) -> Result<Tensor> { self.0.logits(features) }
//!     fn linear_head(&self) -> Option<LinearHead> { Some(self.0.clone()) }
//! }
//! # fn main() -> Result<()> {
//! let weight = Tensor::new(&[[1f32, 0.], [0., 2.]], &Device::Cpu)?; // (classes, channels)
//! let model = Gap(LinearHead { bias: weight.zeros_like()?.narrow(0, 0, 1)?.squeeze(0)?, weight });
//! let images = Tensor::new(&[[[[1f32, 0.]], [[0., 1.]]]], &Device::Cpu)?; // (1, 2, 1, 2)
//! let forward = Forward::new(&model, &images)?;
//! let map = GradCam::default().explain(&forward, &Tensor::new(&[1u32], &Device::Cpu)?)?.map;
//! assert_eq!(map.to_vec3::<f32>()?, [[[0., 1.]]]); // class 1 is explained by the right pixel
//! # Ok(())
//! # }
//! ```
//!
//! | method | paper | evaluations beyond one pass, an image | kind | in a loss |
//! |---|---|---|---|---|
//! | [`methods::Mask`] | Fong & Vedaldi 2017 | one pass an iteration and draw of noise, forward and back | optimised | no |
//! | [`methods::Rise`] | Petsiuk et al. 2018 | one a mask | sampled, with standard error | all of it, a pass a mask |
//! | [`methods::Cam`] | Zhou et al. 2016 | 0 | exact | closed form |
//! | [`methods::GradCam`] | Selvaraju et al. 2017 | 0, or one of the head and back | exact | closed form |
//! | [`methods::GradCamPp`] | Chattopadhay et al. 2018 | the same | exact | closed form |
//! | [`methods::HiresCam`] | Draelos & Carin 2020 | the same | exact | closed form |
//! | [`methods::XgradCam`] | Fu et al. 2020 | the same | exact | closed form |
//! | [`methods::LayerCam`] | Jiang et al. 2021 | the same | exact | closed form |
//! | [`methods::AblationCam`] | Desai & Ramaswamy 2020 | 0, or one of the head a channel | exact | closed form |
//! | [`methods::EigenCam`] | Muhammad & Yeasin 2020 | 0 | exact | no |
//! | [`methods::ScoreCam`] | Wang et al. 2020 | one a channel (`image`), 0 (`features`) | exact | weights constant |
//! | [`methods::ShapCam`] | Zheng et al. 2022 | 0 with a linear head, else sampled passes of the head | exact, det2, aumann or mc | closed form |
//! | [`methods::ShapleyCam`] | Cai 2025 | 0, or three of the head and back | exact | closed form |
//! | [`methods::Random`] | control | 0 | random | weights constant |
//!
//! "0" and "closed form" hold where pooling and a linear layer follow the explained layer ([`CamModel::linear_head`]); elsewhere
//! gradients are taken through the head and, in a loss, are constants.
#![forbid(unsafe_code)]

mod class_maps;
pub mod maps;
pub mod methods;
pub mod metrics;
pub mod ops;
pub mod random;
pub mod ranges;
pub mod score;

use candle_core::{Result, Tensor, Var, bail};
pub use class_maps::ClassMaps;
use ops::weighted_sum;
pub use score::Score;

/// A classifier cut at the layer to explain: `logits = head(features(images))`.
pub trait CamModel {
    /// Normalised images (n, c, h, w) to activations (n, k, h', w').
    fn features(&self, images: &Tensor) -> Result<Tensor>;
    /// Activations (n, k, h', w') to logits (n, classes).
    fn head(&self, features: &Tensor) -> Result<Tensor>;
    /// Some exactly when `head(A)` is the mean over positions of A, then a linear layer: the closed forms hold.
    fn linear_head(&self) -> Option<LinearHead>;
    /// Some where the head begins with a linear layer over all positions, as a VGG's does: what coalitions of positions add up
    /// there needs no pass through that layer.
    fn first_layer(&self) -> Option<FirstLayer> {
        None
    }
    /// What follows [`first_layer`](Self::first_layer): its outputs (n, hidden) to logits (n, classes).
    fn behind_first_layer(&self, _hidden: &Tensor) -> Result<Tensor> {
        bail!("a model with a first layer says what follows it")
    }
    /// `gradient` (n, k, h, w), the score's at `features`, as a tensor that can be differentiated once more, with respect to the
    /// features and the model's parameters. None: it is a constant.
    fn differentiable_gradient(
        &self,
        _features: &Tensor,
        _gradient: &Tensor,
        _score: Score,
        _classes: &Tensor,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// Each channel's mean over the training set, (k,), where it is known.
    fn mean_features(&self) -> Option<Tensor> {
        None
    }
}

impl<M: CamModel + ?Sized> CamModel for &M {
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        (**self).features(images)
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        (**self).head(features)
    }
    fn linear_head(&self) -> Option<LinearHead> {
        (**self).linear_head()
    }
    fn first_layer(&self) -> Option<FirstLayer> {
        (**self).first_layer()
    }
    fn behind_first_layer(&self, hidden: &Tensor) -> Result<Tensor> {
        (**self).behind_first_layer(hidden)
    }
    fn differentiable_gradient(
        &self,
        features: &Tensor,
        gradient: &Tensor,
        score: Score,
        classes: &Tensor,
    ) -> Result<Option<Tensor>> {
        (**self).differentiable_gradient(features, gradient, score, classes)
    }
    fn mean_features(&self) -> Option<Tensor> {
        (**self).mean_features()
    }
}

/// `hidden = sum_p weight_p A(p) + bias`.
#[derive(Clone, Debug)]
pub struct FirstLayer {
    /// (hidden, k, h, w).
    pub weight: Tensor,
    /// (hidden,).
    pub bias: Tensor,
}

/// `logits = weight mean_p A(p) + bias`.
#[derive(Clone, Debug)]
pub struct LinearHead {
    /// (classes, k).
    pub weight: Tensor,
    /// (classes,).
    pub bias: Tensor,
}

impl LinearHead {
    /// Activations (n, k, h, w) to logits (n, classes).
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        ops::rows(&ops::pool(features)?, &self.weight.t()?)?.broadcast_add(&self.bias)
    }
    /// `v W` for every image: (n, classes) to (n, k).
    pub fn channels(&self, v: &Tensor) -> Result<Tensor> {
        ops::rows(v, &self.weight)
    }
    /// The classes' rows of the weight, (n, k).
    pub fn class_weight(&self, classes: &Tensor) -> Result<Tensor> {
        self.weight.index_select(classes, 0)
    }
}

/// Which image, and which augmented view of it: the key of every random stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleId {
    /// Index in its data set.
    pub sample: u64,
    /// Index of its augmented view.
    pub view: u64,
}

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

    /// Gradient of the scores with respect to the activations: (n, k), the same at every position and differentiable once more,
    /// where the head is linear; else (n, k, h, w), constant unless
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

/// How a map was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// By a formula that holds exactly for this model.
    Exact,
    /// From gradients.
    Gradient,
    /// From scores of masked inputs, all of them.
    Perturbation,
    /// Shapley values to second order of the coalitions' spread.
    Det2,
    /// Shapley values along the diagonal, from no player to all (Aumann & Shapley 1974).
    Aumann,
    /// From masks or permutations drawn at random.
    Mc,
    /// By minimising an objective.
    Optimised,
    /// Drawn at random.
    Random,
}

impl Estimator {
    /// The word used in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Estimator::Exact => "exact",
            Estimator::Gradient => "gradient",
            Estimator::Perturbation => "perturbation",
            Estimator::Det2 => "det2",
            Estimator::Aumann => "aumann",
            Estimator::Mc => "mc",
            Estimator::Optimised => "optimised",
            Estimator::Random => "random",
        }
    }
}

/// A map and how it came about.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// (n, h, w) at the layer's own resolution, not normalised.
    pub map: Tensor,
    /// How each image's map was computed, (n,).
    pub estimators: Vec<Estimator>,
    /// Standard error or error estimate of every value, (n, h, w), where the method has one.
    pub error: Option<Tensor>,
    /// Forward evaluations of the network or of its head, an image, beyond the one in [`Forward`].
    pub evaluations: usize,
}

impl Explanation {
    /// Maps that all came about in one way.
    pub fn new(map: Tensor, estimator: Estimator, evaluations: usize) -> Result<Self> {
        let estimators = vec![estimator; map.dim(0)?];
        Ok(Explanation { map, estimators, error: None, evaluations })
    }
}

/// Whether a method's map can be matched in a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differentiable {
    /// The whole map, by a first-order closed form; needs a [`LinearHead`].
    ClosedForm,
    /// Through the activations; the channels' weights are constants.
    WeightsConstant,
    /// The whole map, through every pass it takes.
    ThroughPasses,
    /// Not at all, and why.
    Not(&'static str),
}

impl Differentiable {
    /// The fact as words.
    pub fn sentence(self) -> String {
        match self {
            Differentiable::ClosedForm => "differentiable in closed form at the last layer".into(),
            Differentiable::WeightsConstant => {
                "differentiable through the activations, channel weights held constant".into()
            }
            Differentiable::ThroughPasses => "differentiable through every pass it takes, at their cost".into(),
            Differentiable::Not(why) => format!("not differentiable: {why}"),
        }
    }
}

/// Where in a model a loss matches maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In front of average pooling and a linear layer, where closed forms hold.
    Last,
    /// At any other layer.
    Inner {
        /// Whether the channel weights' gradient is wanted too.
        second_order: bool,
    },
}

/// A method. Its fields are its hyper-parameters.
pub trait Interpreter: Send + Sync {
    /// The map before any final ReLU.
    ///
    /// # Errors
    /// If the method's conditions do not hold for this model or layer, with the reason.
    fn signed(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation>;

    /// Whether the method's definition ends with a ReLU.
    fn has_relu(&self) -> bool {
        true
    }

    /// What a loss can do with it.
    fn differentiable(&self) -> Differentiable;

    /// Settles what is left to the method, for use inside a loss; `given` says which of its fields a user has set.
    fn settle_in_loss(&mut self, _given: &dyn Fn(&str) -> bool) {}

    /// Why a loss cannot match the map there, and what would do; None if it can.
    fn refuses(&self, place: Place) -> Option<String> {
        match (self.differentiable(), place) {
            (Differentiable::Not(why), _) => Some(format!("cannot be matched: not differentiable: {why}")),
            (_, Place::Last) => None,
            (_, Place::Inner { .. }) if self.needs_linear_head() => Some(
                "is not defined: it needs average pooling and a linear layer behind the layer; use \"last\", or grad_cam".into(),
            ),
            (_, Place::Inner { second_order: true }) if !self.is_of_gradients() => Some(
                "is differentiable with constant channel weights only: say so with loss.gradient = \"stop_grad\"".into(),
            ),
            _ => None,
        }
    }

    /// Whether at inner layers the map is made of gradients alone, so that it can be differentiated in full where the gradients can.
    fn is_of_gradients(&self) -> bool {
        false
    }

    /// Whether with a linear head every class's CAM is all that the map depends on, so that it follows from [`ClassMaps`].
    fn sees_class_maps_alone(&self) -> bool {
        false
    }

    /// Whether the method is defined only where average pooling and a linear layer follow the explained layer.
    fn needs_linear_head(&self) -> bool {
        false
    }

    /// Whether the map has the size of the image, not of the layer.
    fn is_of_image_size(&self) -> bool {
        false
    }

    /// Whether the map depends on the class.
    fn has_class(&self) -> bool {
        true
    }

    /// The map as the method defines it: `classes` (n,) in, (n, h, w) out.
    fn explain(&self, forward: &Forward, classes: &Tensor) -> Result<Explanation> {
        forward.check_classes(classes)?;
        let mut explanation = self.signed(forward, classes)?;
        if self.has_relu() {
            explanation.map = maps::relu(&explanation.map)?;
        }
        Ok(explanation)
    }

    /// The maps of all classes at once, (n, classes, h, w), with the ReLU that the definition has.
    fn explain_all(&self, forward: &Forward) -> Result<Tensor> {
        let (n, count) = forward.logits.dims2()?;
        let of = |c| Ok(self.explain(forward, &Tensor::full(c as u32, n, forward.logits.device())?)?.map);
        Tensor::stack(&(0..count).map(of).collect::<Result<Vec<_>>>()?, 1)
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
