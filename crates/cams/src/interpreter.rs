//! What a method is, and what it gives.

use candle_core::{Result, Tensor};

use crate::{Forward, maps};

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
    /// (n, h, w), not normalised: at the layer's resolution, or at the image's where the method says so
    /// ([`Interpreter::is_of_image_size`]: Mask, RISE, occlusion).
    pub map: Tensor,
    /// How each image's map was computed, (n,).
    pub estimators: Vec<Estimator>,
    /// Standard error or error estimate of every value, (n, h, w), where the method has one.
    pub error: Option<Tensor>,
    /// Forward evaluations of the network or of its head beyond the one in [`Forward`], of the image that took most.
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
    /// The whole map, by a first-order closed form; needs a [`LinearHead`](crate::LinearHead).
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
            (Differentiable::ThroughPasses, Place::Inner { .. }) => None,
            (_, Place::Inner { second_order: true }) if !self.is_of_gradients() => Some(
                "is differentiable with constant channel weights only: say so with loss.gradient = \"stop_grad\"".into(),
            ),
            _ => None,
        }
    }

    /// Whether at inner layers the map is made of gradients alone, so that it can be differentiated in full where the
    /// gradients can.
    fn is_of_gradients(&self) -> bool {
        false
    }

    /// Whether with a linear head every class's CAM is all that the map depends on, so that it follows from
    /// [`ClassMaps`](crate::ClassMaps).
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

    /// The map as the method defines it, see [`Explanation::map`]; `classes` (n,) say which class of each image is explained.
    ///
    /// # Errors
    /// If there is not one class per image, if the model has no such class, and as [`signed`](Self::signed).
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
