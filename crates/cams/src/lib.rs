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
//! Your own model: `features` is everything up to the last ReLU before pooling, `head` the rest; `linear_head` gives the last layer's
//! weight and bias where the head is average pooling and one linear layer, else None. [`methods::Methods::get`] finds a method by name.
//! A map has the layer's resolution: to lay it over the image, [`maps::resize`] it, then [`maps::minmax`].
//!
//! | method | paper | evaluations beyond one pass, an image | kind | in a loss |
//! |---|---|---|---|---|
//! | [`methods::Mask`] | Fong & Vedaldi 2017 | one pass per iteration and draw of noise, forward and back | optimised | no |
//! | [`methods::Rise`] | Petsiuk et al. 2018 | one per mask | sampled, with standard error | all of it, a pass per mask |
//! | [`methods::Occlusion`] | Zeiler & Fergus 2014 | one per square, and one | exact | all of it, a pass per square |
//! | [`methods::Cam`] | Zhou et al. 2016 | 0 | exact | closed form |
//! | [`methods::GradCam`] | Selvaraju et al. 2017 | 0, or one of the head and back | exact | closed form |
//! | [`methods::GradCamPp`] | Chattopadhay et al. 2018 | the same | exact | closed form |
//! | [`methods::HiresCam`] | Draelos & Carin 2020 | the same | exact | closed form |
//! | [`methods::XgradCam`] | Fu et al. 2020 | the same | exact | closed form |
//! | [`methods::LayerCam`] | Jiang et al. 2021 | the same | exact | closed form |
//! | [`methods::AblationCam`] | Desai & Ramaswamy 2020 | 0, or one of the head a channel, and one | exact | closed form |
//! | [`methods::EigenCam`] | Muhammad & Yeasin 2020 | 0 | exact | no |
//! | [`methods::ScoreCam`] | Wang et al. 2020 | one per channel (`image`), 0 (`features`) | exact | weights constant |
//! | [`methods::ShapCam`] | Zheng et al. 2022 | 0, or sampled passes of the head | exact, det2, aumann or mc | closed form |
//! | [`methods::ShapleyCam`] | Cai 2025 | 0, or three of the head and back | exact | closed form |
//! | [`methods::Random`] | control | 0 | random | weights constant |
//!
//! "0" and "closed form" hold where pooling and a linear layer follow the explained layer ([`CamModel::linear_head`]); ShapCam's "0"
//! also behind [`CamModel::contributions`]. Elsewhere the gradient methods backpropagate through the head, and in a loss their gradients
//! are constants, unless [`Forward::second_order`] is set and the model has a [`CamModel::differentiable_gradient`]; the weights of
//! AblationCam and ShapleyCam are constants there, and sampled maps of ShapCam cannot be matched.
#![forbid(unsafe_code)]

mod class_maps;
mod forward;
mod interpreter;
pub mod maps;
mod masked;
pub mod methods;
pub mod metrics;
mod model;
pub mod ops;
pub mod random;
pub mod ranges;
pub mod score;

pub use class_maps::ClassMaps;
pub use forward::{Forward, Gradient, images_per_pass};
pub use interpreter::{Differentiable, Estimator, Explanation, Interpreter, Place};
pub use model::{CamModel, FirstLayer, LinearHead, SampleId};
pub use score::Score;
