//! `[loss]`: the terms, their weights over time, and how maps are compared.

use serde::{Deserialize, Serialize};

/// How the student's and the teacher's maps are compared; the formulas are those of [`crate::loss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Sum over positions of the squared difference (Grad-CAM++, eq. 27).
    #[default]
    RawL2,
    /// Mean squared difference of the maps divided by their norm (attention transfer).
    AtL2,
    /// One minus the cosine (e2KD).
    Cosine,
    /// Squared difference of every class's CAM, pooled to 2x2 (CAT-KD); does not use the interpreter.
    AllClassPooled,
}

/// Which class is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The label.
    #[default]
    Label,
    /// The teacher's most probable class.
    TeacherTop1,
}

/// What the gradient of a map at an inner layer takes into account. At the last layer closed forms cover everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapGradient {
    /// The activations and, through second derivatives, the channel weights.
    #[default]
    Double,
    /// The activations alone.
    StopGrad,
}

/// What stands in for the teacher's map, to see whether the explanation matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Nothing: the teacher's own map.
    #[default]
    None,
    /// The teacher's channels weighted at random, fixed for each image.
    Random,
    /// The map of the next image of the batch.
    Shuffled,
}

/// A value for each term.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Cross-entropy.
    pub ce: f64,
    /// Knowledge distillation.
    pub kd: f64,
    /// Explanation matching.
    pub explanation: f64,
    /// Attention transfer.
    pub attention: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { ce: 1.0, kd: 0.0, explanation: 0.0, attention: 0.0 }
    }
}

/// How a weight changes over the epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightSchedule {
    /// Not at all.
    #[default]
    Constant,
    /// From 0, linearly, to the full weight at this epoch.
    Ramp(f64),
    /// Full weight before this epoch, 0 from then on.
    CutOff(f64),
}

impl WeightSchedule {
    /// Factor at a point in time, in epochs from 0.
    pub fn factor(self, epoch: f64) -> f64 {
        match self {
            WeightSchedule::Constant => 1.0,
            WeightSchedule::Ramp(end) => (epoch / end.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0),
            WeightSchedule::CutOff(end) => f64::from(epoch < end),
        }
    }
}

/// `[loss.schedule]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedules {
    /// Cross-entropy.
    pub ce: WeightSchedule,
    /// Knowledge distillation.
    pub kd: WeightSchedule,
    /// Explanation matching.
    pub explanation: WeightSchedule,
    /// Attention transfer.
    pub attention: WeightSchedule,
}

/// `[loss]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Weights of the terms.
    pub weights: Weights,
    /// How they change.
    pub schedule: Schedules,
    /// Softening of both outputs in the KD term.
    pub temperature: f64,
    /// Method of the maps.
    pub interpreter: String,
    /// How maps are compared.
    pub distance: Distance,
    /// Class explained.
    pub class: Class,
    /// Layer explained.
    pub layer: String,
    /// What the map's gradient takes into account at inner layers.
    pub gradient: MapGradient,
    /// ReLU on both maps before the distance.
    pub relu: bool,
    /// Control experiment.
    pub control: Control,
    /// Label smoothing of the cross-entropy.
    pub label_smoothing: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Loss {
            weights: Weights::default(),
            schedule: Schedules::default(),
            temperature: 4.0,
            interpreter: "grad_cam".into(),
            distance: Distance::RawL2,
            class: Class::Label,
            layer: "last".into(),
            gradient: MapGradient::Double,
            relu: true,
            control: Control::None,
            label_smoothing: 0.0,
        }
    }
}
