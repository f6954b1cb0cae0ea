//! The list of methods. A new one is a file in `methods/` and a line here.

mod grad_cam;
mod grad_cam_pp;
mod random;
mod score_cam;
mod shap_cam;

pub use grad_cam::GradCam;
pub use grad_cam_pp::GradCamPp;
pub use random::Random;
pub use score_cam::{ScoreCam, Space};
pub use shap_cam::{Computation, Fill, ShapCam};

use crate::Interpreter;
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

            /// The method of that name, as configured.
            pub fn get(&self, name: &str) -> Option<&dyn Interpreter> {
                match name {
                    $(stringify!($key) => Some(&self.$key),)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    grad_cam: GradCam,
    grad_cam_pp: GradCamPp,
    score_cam: ScoreCam,
    shap_cam: ShapCam,
    random: Random,
}
