use anyhow::Result;
use cams::methods::Methods;
use candle_core::{DType, Tensor};

use super::{Inputs, Loss, Part, Term};
use crate::nn::Model;

/// Similarity-preserving distillation (Tung & Mori, ICCV 2019, arXiv 1907.09682): images that are alike to the teacher are
/// to be alike to the student, by the activations at `last`.
pub struct Sp;

impl Sp {
    pub(super) const ABOUT: &str =
        "similarity-preserving KD: which images of a batch are alike, by the activations at last";

    pub(super) fn new(_: &Loss, _: &Methods) -> Result<Sp> {
        Ok(Sp)
    }
}

impl Term for Sp {
    fn parts(&self, _: &dyn Model) -> Result<Vec<Part>> {
        Ok(vec![Part::Logits, Part::Features])
    }

    fn is_of_activations(&self) -> bool {
        true
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(similarity(inputs.pass.at("last")?, inputs.teacher()?.get(&Part::Features)?)?)
    }
}

/// `1 / n^2 ||G - H||^2` of activations (n, ...), of any shape behind n: G are the products of each image's with every
/// image's, rows divided by their norm, H the teacher's. From the products on in f64, and given back in the student's type.
pub fn similarity(student: &Tensor, teacher: &Tensor) -> candle_core::Result<Tensor> {
    let n = student.dim(0)? as f64;
    let difference = (rows(student)? - rows(&teacher.detach())?)?;
    (difference.sqr()?.sum_all()? / (n * n))?.to_dtype(student.dtype())
}

fn rows(activations: &Tensor) -> candle_core::Result<Tensor> {
    let half = matches!(activations.dtype(), DType::BF16 | DType::F16);
    let flat = activations.flatten_from(1)?.to_dtype(if half { DType::F32 } else { activations.dtype() })?;
    let products = flat.matmul(&flat.t()?)?.to_dtype(DType::F64)?;
    // An image whose activations are all 0 has no direction: its row stays 0, with a slope that is no quotient of 0.
    let squares = products.sqr()?.sum_keepdim(1)?;
    let empty = squares.eq(0.0)?.to_dtype(DType::F64)?;
    products.broadcast_div(&(squares + empty)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::distance::value;
    use candle_core::{Device, Var};
    use testkit::values;

    #[test]
    fn what_is_no_number_is_seen() -> Result<()> {
        let good = Tensor::new(&[[1f32, 2.0], [3.0, 5.0]], &Device::Cpu)?;
        for bad in [f32::NAN, f32::INFINITY] {
            let bad = Tensor::new(&[[1f32, 2.0], [3.0, bad]], &Device::Cpu)?;
            assert!(!value(&similarity(&bad, &good)?)?.is_finite() && !value(&similarity(&good, &bad)?)?.is_finite());
        }
        Ok(())
    }

    #[test]
    fn two_images_by_hand() -> Result<()> {
        let device = Device::Cpu;
        // Products (1, 1; 1, 2) and (9, 0; 0, 4), of one and of two numbers an image.
        let student = Tensor::new(&[[[1f64], [0.0]], [[1.0], [1.0]]], &device)?;
        let teacher = Tensor::new(&[[3f64, 0.0, 0.0], [0.0, 0.0, 2.0]], &device)?;
        let (a, b) = (0.5f64.sqrt(), 0.2f64.sqrt());
        let expected = ((a - 1.0).powi(2) + a * a + b * b + (2.0 * b - 1.0).powi(2)) / 4.0;
        assert!((value(&similarity(&student, &teacher)?)? - expected).abs() < 1e-14);
        Ok(())
    }

    #[test]
    fn an_image_without_activations_has_a_small_gradient() -> Result<()> {
        let student = Var::new(&[[0f32, 0.0], [1.0, 2.0]], &Device::Cpu)?;
        let term = similarity(student.as_tensor(), &Tensor::new(&[[1f32], [2.0]], &Device::Cpu)?)?;
        assert!(value(&term)?.is_finite());
        let gradient = values(term.backward()?.get(&student).expect("it is used"))?;
        assert!(gradient.iter().all(|g| g.abs() < 10.0), "{gradient:?}");
        Ok(())
    }
}
