//! The settings of the loss beside the terms themselves: how maps are compared, and weights over time.

use std::fmt;

use cams::methods::Methods;
use cams::ranges::{Range, Ranges, from};
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Loss, NAMES, Weights};
use crate::distill::output::MapOf;

/// How the student's and the teacher's maps are compared; the formulas are those of
/// [`distance`](crate::distill::distance).
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
    /// Divergence of the softened classes in each cell of every class's CAM (SDD); does not use the interpreter.
    RegionKl,
}

impl Distance {
    /// Whether it compares every class's CAM, whatever the interpreter.
    pub fn compares_all_classes(self) -> bool {
        matches!(self, Distance::AllClassPooled | Distance::RegionKl)
    }
}

impl fmt::Display for Distance {
    /// As it is written in a settings file.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

/// Which class is explained: `"label"`, `"teacher_top1"`, or a class's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// The label.
    #[default]
    Label,
    /// The teacher's most probable class.
    TeacherTop1,
    /// This one, of every image.
    Number(u32),
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Class::Label => serializer.serialize_str("label"),
            Class::TeacherTop1 => serializer.serialize_str("teacher_top1"),
            Class::Number(n) => serializer.serialize_u32(*n),
        }
    }
}

impl<'de> Deserialize<'de> for Class {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Class, D::Error> {
        struct Given;
        impl Visitor<'_> for Given {
            type Value = Class;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "\"label\", \"teacher_top1\" or a class's number")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Class, E> {
                match name {
                    "label" => Ok(Class::Label),
                    "teacher_top1" => Ok(Class::TeacherTop1),
                    // The teacher, whose answers may be stored, is asked before the student has said anything.
                    "top1" => Err(E::custom(
                        "\"top1\" would be the class that the student names, which the teacher's map cannot follow: expected \
                         \"label\", \"teacher_top1\" or a class's number",
                    )),
                    _ => match name.parse() {
                        Ok(number) => Ok(Class::Number(number)),
                        Err(_) => Err(E::unknown_variant(name, &["label", "teacher_top1", "a class's number"])),
                    },
                }
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<Class, E> {
                u32::try_from(n).map(Class::Number).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<Class, E> {
                u32::try_from(n).map(Class::Number).map_err(|_| E::invalid_value(Unexpected::Unsigned(n), &self))
            }
        }
        deserializer.deserialize_any(Given)
    }
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

impl Weights {
    /// One term alone, with weight 1.
    pub fn only(name: &str) -> Option<Weights> {
        let mut weights = Weights::default();
        NAMES.iter().for_each(|other| *weights.get_mut(other).unwrap_or(&mut 0.0) = 0.0);
        *weights.get_mut(name)? = 1.0;
        Some(weights)
    }
}

/// A table sets the weights that it names; a word means that term alone.
impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Weights, D::Error> {
        struct Given;
        impl<'de> Visitor<'de> for Given {
            type Value = Weights;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a table of weights, as in {{ ce = 0.1, kd = 0.9 }}, or the name of the only term")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Weights, E> {
                Weights::only(name).ok_or_else(|| E::unknown_variant(name, NAMES))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Weights, A::Error> {
                let mut weights = Weights::default();
                while let Some(name) = map.next_key::<String>()? {
                    match weights.get_mut(&name) {
                        Some(weight) => *weight = map.next_value()?,
                        None => return Err(A::Error::unknown_field(&name, NAMES)),
                    }
                }
                Ok(weights)
            }
        }
        deserializer.deserialize_any(Given)
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
    pub(crate) fn end(self) -> Option<f64> {
        match self {
            WeightSchedule::Constant => None,
            WeightSchedule::Ramp(end) | WeightSchedule::CutOff(end) => Some(end),
        }
    }
}

/// Of a term's weight.
const WEIGHT: Range = from(0.0, f64::MAX);

/// Of the end of a schedule, in epochs.
const EPOCH: Range = from(0.0, 1e6);

/// Of a softening temperature: beyond it the losses are no longer what they are at its ends.
pub(super) const TEMPERATURE: Range = from(0.05, 1e6);

impl Loss {
    /// What its numbers may be.
    pub const RANGES: Ranges = &[
        ("weights", WEIGHT),
        ("schedule", EPOCH),
        ("temperature", TEMPERATURE),
        ("label_smoothing", from(0.0, 0.999_999_999)),
    ];

    /// The map that it speaks of, matched or only shown.
    pub fn map(&self, methods: &Methods) -> MapOf {
        MapOf {
            methods: methods.clone(),
            method: self.interpreter.clone(),
            layer: self.layer.clone(),
            class: self.class,
            relu: self.relu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_sets_what_it_names_and_a_word_is_the_only_term() {
        let of = |text: &str| toml::from_str::<Loss>(text).map(|l| l.weights.each()[..2].to_vec());
        assert_eq!(of("weights = { kd = 0.5 }").unwrap(), [("ce", 1.0), ("kd", 0.5)]);
        assert_eq!(of("weights = 'kd'").unwrap(), [("ce", 0.0), ("kd", 1.0)]);
        assert!(of("weights = 'kt'").unwrap_err().to_string().contains("unknown variant `kt`"));
        assert!(of("weights = { kt = 1.0 }").unwrap_err().to_string().contains("unknown field `kt`"));
    }
}
