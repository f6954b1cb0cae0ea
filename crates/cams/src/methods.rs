//! The list of methods. A new one is a file in `methods/` and a line here.

mod ablation_cam;
mod cam;
mod eigen_cam;
mod grad_cam;
mod grad_cam_pp;
mod hires_cam;
mod layer_cam;
mod mask;
mod occlusion;
mod random;
mod rise;
mod score_cam;
mod shap_cam;
mod shapley_cam;
mod xgrad_cam;

pub use ablation_cam::AblationCam;
pub use cam::Cam;
pub use eigen_cam::EigenCam;
pub use grad_cam::GradCam;
pub use grad_cam_pp::GradCamPp;
pub use hires_cam::HiresCam;
pub use layer_cam::LayerCam;
pub use mask::{Init, Mask, Reduction};
pub use occlusion::Occlusion;
pub use random::Random;
pub use rise::Rise;
pub use score_cam::{ScoreCam, Space};
pub use shap_cam::{Computation, Fill, ShapCam};
pub use shapley_cam::ShapleyCam;
pub use xgrad_cam::XgradCam;

use crate::Interpreter;
pub use crate::masked::Background;
use crate::ranges::Ranges;
use serde::{Deserialize, Serialize};

/// The one list: it makes the configuration's tables, the look-up by name and the names themselves.
macro_rules! methods {
    ($($key:ident: $method:ident),* $(,)?) => {
        /// Every method with its hyper-parameters, as configured by `[interpreter.<method>]` tables.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Methods {
            $(#[allow(missing_docs)] pub $key: $method,)*
        }

        impl Methods {
            /// The methods' names, in the order of the list.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($key)),*];

            /// What each method's numbers may be.
            pub const RANGES: &'static [(&'static str, Ranges)] = &[$((stringify!($key), $method::RANGES)),*];

            /// The method of that name, as configured.
            pub fn get(&self, name: &str) -> Option<&dyn Interpreter> {
                match name {
                    $(stringify!($key) => Some(&self.$key),)*
                    _ => None,
                }
            }

            /// Settles, for use inside a loss, what is left to the methods; `given` says whether a user has set a
            /// method's field.
            pub fn settle_in_loss(&mut self, given: &dyn Fn(&str, &str) -> bool) {
                $(self.$key.settle_in_loss(&|field| given(stringify!($key), field));)*
            }
        }
    };
}

methods! {
    mask: Mask,
    rise: Rise,
    occlusion: Occlusion,
    cam: Cam,
    grad_cam: GradCam,
    grad_cam_pp: GradCamPp,
    hires_cam: HiresCam,
    xgrad_cam: XgradCam,
    layer_cam: LayerCam,
    ablation_cam: AblationCam,
    eigen_cam: EigenCam,
    score_cam: ScoreCam,
    shap_cam: ShapCam,
    shapley_cam: ShapleyCam,
    random: Random,
}
