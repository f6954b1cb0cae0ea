//! `[loss]`: the terms, their weights over time, and how maps are compared.

use cams::ranges::{Range, Ranges, from};
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

impl WeightSchedule {
    /// Where it ends, if it does.
    fn end(self) -> Option<f64> {
        match self {
            WeightSchedule::Constant => None,
            WeightSchedule::Ramp(end) | WeightSchedule::CutOff(end) => Some(end),
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

/// Of a term's weight.
const WEIGHT: Range = from(0.0, f64::MAX);

/// Of the end of a schedule, in epochs.
const EPOCH: Range = from(0.0, 1e6);

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

impl Loss {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("weights.ce", WEIGHT),
        ("weights.kd", WEIGHT),
        ("weights.explanation", WEIGHT),
        ("weights.attention", WEIGHT),
        ("schedule.ce", EPOCH),
        ("schedule.kd", EPOCH),
        ("schedule.explanation", EPOCH),
        ("schedule.attention", EPOCH),
        ("temperature", from(0.05, 1e6)),
        ("label_smoothing", from(0.0, 0.999_999_999)),
    ];
}

impl Loss {
    /// The terms' weights at a point in time, in epochs from 0.
    pub fn weights_at(&self, epoch: f64) -> Weights {
        let (w, s) = (&self.weights, &self.schedule);
        Weights {
            ce: w.ce * s.ce.factor(epoch),
            kd: w.kd * s.kd.factor(epoch),
            explanation: w.explanation * s.explanation.factor(epoch),
            attention: w.attention * s.attention.factor(epoch),
        }
    }

    /// The first of these steps, `steps` of them an epoch, at which no term has a weight.
    pub fn first_idle_step(&self, steps: usize, total: usize) -> Option<usize> {
        // Weights vanish at the start, while they ramp up, and where they are cut off.
        let s = &self.schedule;
        let ends = [s.ce, s.kd, s.explanation, s.attention].into_iter().filter_map(WeightSchedule::end);
        let mut looked: Vec<usize> = ends.map(|end| (end * steps as f64).ceil() as usize).chain([0]).collect();
        looked.sort_unstable();
        looked.into_iter().find(|step| {
            let w = self.weights_at(*step as f64 / steps as f64);
            *step < total && [w.ce, w.kd, w.explanation, w.attention].iter().all(|w| *w == 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_runs_out_is_seen_from_the_start() {
        let mut loss = Loss { weights: Weights { ce: 1.0, kd: 1.0, ..Weights::default() }, ..Loss::default() };
        assert_eq!(loss.first_idle_step(10, 40), None);
        loss.schedule.ce = WeightSchedule::CutOff(2.5);
        assert_eq!(loss.first_idle_step(10, 40), None);
        loss.schedule.kd = WeightSchedule::CutOff(1.0);
        assert_eq!(loss.first_idle_step(10, 40), Some(25));
        assert_eq!(loss.first_idle_step(10, 25), None);
        loss.schedule =
            Schedules { ce: WeightSchedule::CutOff(0.0), kd: WeightSchedule::Ramp(1.0), ..Schedules::default() };
        assert_eq!(loss.first_idle_step(10, 40), Some(0));
    }
}
