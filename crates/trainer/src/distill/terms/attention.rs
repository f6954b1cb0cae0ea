use anyhow::{Result, ensure};
use cams::methods::Methods;
use candle_core::{Tensor, bail};

use super::{Distance, Inputs, Loss, Part, Term};
use crate::distill::distance::{attention_map, map_distance};
use crate::nn::Model;

/// Activation attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928) at both models' attention layers.
pub struct AttentionTransfer;

impl AttentionTransfer {
    pub(super) const ABOUT: &str =
        "activation attention transfer at the models' attention layers (layer1, layer2, layer3)";

    pub(super) fn new(_: &Loss, _: &Methods) -> Result<AttentionTransfer> {
        Ok(AttentionTransfer)
    }
}

impl Term for AttentionTransfer {
    fn parts(&self, teacher: &dyn Model) -> Result<Vec<Part>> {
        let layers = teacher.attention_layers();
        ensure!(
            !layers.is_empty(),
            "loss.weights.attention: the teacher names no layers whose attention is transferred"
        );
        Ok([vec![Part::Logits], layers.into_iter().map(Part::Attention).collect()].concat())
    }

    fn layers(&self, attention: &[String]) -> Vec<String> {
        attention.to_vec()
    }

    fn is_of_activations(&self) -> bool {
        true
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        let own = inputs.student.attention_layers();
        let own = own.iter().map(|layer| Ok(attention_map(inputs.pass.at(layer)?)?)).collect::<Result<Vec<_>>>()?;
        let teacher = inputs.teacher()?.attention();
        Ok(attention_transfer(&own, &teacher)?)
    }
}

/// Mean squared difference of the attention maps (n, h, w) divided by their norm, summed over the layers.
pub fn attention_transfer(student: &[Tensor], teacher: &[Tensor]) -> candle_core::Result<Tensor> {
    if student.len() != teacher.len() || student.is_empty() {
        bail!(
            "attention transfer needs as many layers of the teacher as of the student, at least one; these have {} and {}",
            teacher.len(),
            student.len()
        );
    }
    let mut total = map_distance(Distance::AtL2, &student[0], &teacher[0])?;
    for (s, t) in student.iter().zip(teacher).skip(1) {
        total = (total + map_distance(Distance::AtL2, s, t)?)?;
    }
    Ok(total)
}
