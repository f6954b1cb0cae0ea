//! Figures of maps: how alike two are, how faithful one is to its model, whether it finds the object, how complex it
//! is. What is not defined is None. A function that returns a plain number takes finite maps only: check with [`is_finite`].
//!
//! | figure | module | source |
//! |---|---|---|
//! | Pearson, Spearman, cosine, overlap of the highest part | [`agreement`] | |
//! | Average Drop and Increase, insertion and deletion | [`faithfulness`] | Chattopadhay et al. 2018; Petsiuk et al. 2018 |
//! | ROAD | [`road`] | Rong et al. 2022 |
//! | energy in the box, pointing game | [`localization`] | Wang et al. 2020; Zhang et al. 2018 |
//! | complexity, entropy, ADCC | [`complexity`] | Poppi et al. 2021 |

pub mod agreement;
pub mod complexity;
pub mod faithfulness;
pub mod localization;
pub mod road;

pub use agreement::{cosine, pearson, ranks, spearman, top_overlap};

/// Whether a map is made of numbers alone. Of any other there is no figure: comparisons, `max(NaN, 0)` and a model's own
/// ReLU make of it what looks like one.
pub fn is_finite(map: &[f64]) -> bool {
    map.iter().all(|value| value.is_finite())
}
