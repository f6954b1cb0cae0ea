//! The terms of the loss. A new one is a file in `terms/` and a line in the list below: that gives it a weight, a
//! schedule, a table of options, its place in `trainer list` and in the checks.

mod attention;
mod bce;
mod ce;
mod dist;
mod dkd;
mod explanation;
mod kd;
mod rkd;
mod settings;
mod sp;

use anyhow::{Context, Result};
pub use attention::{AttentionTransfer, attention_transfer};
pub use bce::{Bce, binary_cross_entropy};
use cams::methods::Methods;
use cams::ranges::Ranges;
use cams::{Place, SampleId};
use candle_core::Tensor;
pub use ce::{CrossEntropy, cross_entropy};
pub use dist::{Dist, relations};
pub use dkd::{Dkd, decoupled};
pub use explanation::Matching;
pub use kd::{Distillation, distillation, divergences, standardised};
pub use rkd::{Rkd, geometry};
use serde::{Deserialize, Serialize};
pub use settings::{Class, Control, Distance, MapGradient, WeightSchedule};
pub use sp::{Sp, similarity};

use super::output::{Part, TeacherOutput};
use crate::nn::{Model, Pass};

/// What a term sees of a step.
pub struct Inputs<'a> {
    /// The student.
    pub student: &'a dyn Model,
    /// Its pass, recorded.
    pub pass: &'a Pass,
    /// (n,) u32, on the student's device.
    pub labels: &'a Tensor,
    /// Which images, and which views of them.
    pub ids: &'a [SampleId],
    /// Which classes each shows (n, classes), where that may be several: 1, 0, or
    /// [`UNSAID`](crate::data::UNSAID).
    pub shown: Option<&'a Tensor>,
    /// What the teacher says, if it was asked.
    pub teacher: Option<&'a TeacherOutput>,
}

impl<'a> Inputs<'a> {
    /// The teacher's output, for a term that needs it.
    pub fn teacher(&self) -> Result<&'a TeacherOutput> {
        self.teacher.context("this term of the loss needs a teacher")
    }
}

/// A term, as it takes part in a run: a mean over the batch, unweighted.
pub trait Term: Send + Sync {
    /// What it asks this teacher for; nothing if it needs none.
    fn parts(&self, _teacher: &dyn Model) -> Result<Vec<Part>> {
        Ok(vec![Part::Logits])
    }

    /// Whether it needs a teacher.
    fn needs_teacher(&self) -> bool {
        true
    }

    /// Layers at which it looks into a model (student or teacher), beside `last`; `attention` are that model's
    /// attention layers.
    fn layers(&self, _attention: &[String]) -> Vec<String> {
        vec![]
    }

    /// Whether it speaks of activations alone, so that nothing of it reaches a student whose trunk is not trained.
    fn is_of_activations(&self) -> bool {
        false
    }

    /// Its value, a scalar that can be differentiated.
    fn value(&self, inputs: &Inputs) -> Result<Tensor>;
}

/// What the list says of a term.
pub struct Entry {
    /// Its name: of its weight, of its schedule and in metrics.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The keys of `[loss]` that are its options, beside those of its own table `[loss.<name>]`.
    pub keys: &'static [&'static str],
    /// Whether it has a table of its own.
    pub has_table: bool,
}

/// The one list: it makes `[loss.weights]`, `[loss.schedule]`, the terms' own tables, their ranges, and the terms
/// themselves.
macro_rules! terms {
    (
        in_loss { $($key:ident: $term:ident = $weight:literal, $keys:expr;)* }
        with_table { $($table:ident: $of:ident = $start:literal;)* }
    ) => {
        /// A weight for each term.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize)]
        #[allow(missing_docs)]
        pub struct Weights { $(pub $key: f64,)* $(pub $table: f64,)* }

        impl Default for Weights {
            fn default() -> Self {
                Weights { $($key: $weight,)* $($table: $start,)* }
            }
        }

        impl Weights {
            /// (name, weight) of every term, in the order in which they are added up.
            pub fn each(&self) -> Vec<(&'static str, f64)> {
                vec![$((stringify!($key), self.$key),)* $((stringify!($table), self.$table),)*]
            }

            /// The weight of a term.
            pub fn get_mut(&mut self, name: &str) -> Option<&mut f64> {
                match name {
                    $(stringify!($key) => Some(&mut self.$key),)*
                    $(stringify!($table) => Some(&mut self.$table),)*
                    _ => None,
                }
            }
        }

        /// `[loss.schedule]`: how the weights change.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[allow(missing_docs)]
        pub struct Schedules { $(pub $key: WeightSchedule,)* $(pub $table: WeightSchedule,)* }

        impl Schedules {
            /// Every term's, in the order of [`Weights::each`].
            pub fn each(&self) -> Vec<WeightSchedule> {
                vec![$(self.$key,)* $(self.$table,)*]
            }
        }

        /// `[loss]`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Loss {
            /// Weights of the terms.
            pub weights: Weights,
            /// How they change.
            pub schedule: Schedules,
            /// Softening of both outputs in L_KD, and in the regions of `region_kl`.
            pub temperature: f64,
            /// Whether L_KD compares standardised logits.
            pub logit_std: bool,
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
            $(#[allow(missing_docs)] pub $table: $of,)*
        }

        impl Default for Loss {
            fn default() -> Self {
                Loss {
                    weights: Weights::default(),
                    schedule: Schedules::default(),
                    temperature: 4.0,
                    logit_std: false,
                    interpreter: "grad_cam".into(),
                    distance: Distance::RawL2,
                    class: Class::Label,
                    layer: "last".into(),
                    gradient: MapGradient::Double,
                    relu: true,
                    control: Control::None,
                    label_smoothing: 0.0,
                    $($table: $of::default(),)*
                }
            }
        }

        impl Loss {
            /// What the numbers of the terms' own tables may be.
            pub const TABLES: &'static [(&'static str, Ranges)] = &[$((stringify!($table), $of::RANGES),)*];
        }

        /// The terms' names.
        pub const NAMES: &[&str] = &[$(stringify!($key),)* $(stringify!($table),)*];

        /// Every term.
        pub const LIST: &[Entry] = &[
            $(Entry { name: stringify!($key), about: $term::ABOUT, keys: $keys, has_table: false },)*
            $(Entry { name: stringify!($table), about: $of::ABOUT, keys: &[], has_table: true },)*
        ];

        /// The terms that have a weight, by their place in the list, built from their settings and checked.
        pub(super) fn build(loss: &Loss, methods: &Methods) -> Result<Vec<(usize, Box<dyn Term>)>> {
            let weights = loss.weights.each();
            let mut terms: Vec<(usize, Box<dyn Term>)> = vec![];
            let mut at = 0;
            $(
                if weights[at].1 > 0.0 {
                    terms.push((at, Box::new($term::new(loss, methods)?)));
                }
                at += 1;
            )*
            $(
                if weights[at].1 > 0.0 {
                    terms.push((at, Box::new(loss.$table)));
                }
                at += 1;
            )*
            debug_assert_eq!(at, LIST.len());
            Ok(terms)
        }
    };
}

terms! {
    in_loss {
        ce: CrossEntropy = 1.0, &["label_smoothing"];
        kd: Distillation = 0.0, &["temperature", "logit_std"];
        explanation: Matching = 0.0, &["interpreter", "distance", "class", "layer", "gradient", "relu", "control", "temperature"];
        attention: AttentionTransfer = 0.0, &[];
        bce: Bce = 0.0, &[];
        sp: Sp = 0.0, &[];
    }
    with_table {
        dkd: Dkd = 0.0;
        dist: Dist = 0.0;
        rkd: Rkd = 0.0;
    }
}

/// Where a loss at `layer` looks.
fn place(layer: &str, gradient: MapGradient) -> Place {
    match layer {
        "last" => Place::Last,
        _ => Place::Inner { second_order: gradient == MapGradient::Double },
    }
}
