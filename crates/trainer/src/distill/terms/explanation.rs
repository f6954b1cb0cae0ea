use anyhow::{Context, Result, bail, ensure};
use cams::methods::Methods;
use cams::{Differentiable, Interpreter, ops};
use candle_core::Tensor;

use super::{Control, Distance, Inputs, Loss, MapGradient, Part, Term, place};
use crate::distill::distance::{all_class_pooled, map_distance, region_kl};
use crate::distill::output::{MapOf, TeacherOutput};
use crate::error::unknown;
use crate::nn::{Model, linear_head};

/// Distance of the student's explanation maps from the teacher's (Grad-CAM++, eq. 27 and 28, for any method).
pub struct Matching {
    map: MapOf,
    distance: Distance,
    gradient: MapGradient,
    control: Control,
    temperature: f64,
}

impl Matching {
    pub(super) const ABOUT: &str =
        "distance of student and teacher maps: raw_l2, at_l2, cosine; of all classes': all_class_pooled, region_kl";

    pub(super) fn new(loss: &Loss, methods: &Methods) -> Result<Matching> {
        let l = loss;
        let method = methods.get(&l.interpreter);
        let method = method.ok_or_else(|| unknown("interpreter", &l.interpreter, Methods::NAMES))?;
        if l.distance.compares_all_classes() {
            ensure!(
                l.control != Control::Random,
                "loss.control = \"random\" makes one map an image, loss.distance = \"{}\" compares one per class: \
                 use another distance, or control = \"shuffled\"",
                l.distance
            );
        } else if let Some(why) = method.refuses(place(&l.layer, l.gradient)) {
            let at = if l.layer == "last" { String::new() } else { format!(" at loss.layer = \"{}\"", l.layer) };
            bail!("loss.interpreter = \"{}\"{at} {why}", l.interpreter);
        }
        Ok(Matching {
            map: loss.map(methods),
            distance: l.distance,
            gradient: l.gradient,
            control: l.control,
            temperature: l.temperature,
        })
    }

    /// What the teacher makes of its own pass: the control's map, or the method's.
    fn target_map(&self) -> MapOf {
        let random = self.control == Control::Random;
        MapOf { method: if random { "random".into() } else { self.map.method.clone() }, ..self.map.clone() }
    }

    /// What the student's map is matched with: (n, h, w), or (n, classes, h, w) where all classes are compared.
    fn target(&self, inputs: &Inputs, output: &TeacherOutput, classes: &Tensor) -> Result<Tensor> {
        let found = match (output.find(&Part::Map(Box::new(self.target_map()))), output.class_maps()) {
            (Some(map), _) => map.clone(),
            (None, Some(all)) if self.distance.compares_all_classes() => all.maps,
            (None, Some(all)) => self.map.of(&all.forward(output.logits()?, inputs.ids.to_vec()), classes)?,
            (None, None) => bail!("the teacher was not asked for a map"),
        };
        Ok(if self.control == Control::Shuffled { roll(&found)? } else { found })
    }
}

impl Term for Matching {
    /// The teacher's map, or every class's CAM where the map follows from these: then all methods and scores share one
    /// part.
    fn parts(&self, teacher: &dyn Model) -> Result<Vec<Part>> {
        let method = self.map.interpreter()?;
        let follows = self.map.layer == "last" && method.sees_class_maps_alone() && linear_head(teacher).is_ok();
        let follows = self.control != Control::Random && (follows || self.distance.compares_all_classes());
        Ok(vec![Part::Logits, if follows { Part::ClassMaps } else { Part::Map(Box::new(self.target_map())) }])
    }

    fn layers(&self, _: &[String]) -> Vec<String> {
        vec![self.map.layer.clone()]
    }

    fn is_of_activations(&self) -> bool {
        let stopped = self.map.layer != "last" && self.gradient == MapGradient::StopGrad;
        let alone = |method: &dyn Interpreter| match method.differentiable() {
            Differentiable::WeightsConstant => true,
            Differentiable::ThroughPasses => false,
            _ => stopped,
        };
        !self.distance.compares_all_classes() && self.map.interpreter().is_ok_and(alone)
    }

    fn value(&self, inputs: &Inputs) -> Result<Tensor> {
        let output = inputs.teacher()?;
        let classes = self.map.classes(inputs.labels, output.logits()?)?;
        let target = self.target(inputs, output, &classes)?;
        if self.distance.compares_all_classes() {
            let head = linear_head(inputs.student)?;
            let own = ops::class_maps(&head.weight, inputs.pass.at("last")?)?;
            if self.distance == Distance::AllClassPooled {
                return Ok(all_class_pooled(&own, &target)?);
            }
            // The mean of a map and the bias is the logit.
            let with = |maps: &Tensor, bias: &Tensor| maps.broadcast_add(&bias.reshape((1, (), 1, 1))?);
            let bias = output.bias.as_ref().context("the teacher's classifier is no linear layer behind a mean")?;
            return Ok(region_kl(&with(&own, &head.bias)?, &with(&target, bias)?, inputs.labels, self.temperature)?);
        }
        let cut = inputs.student.cut(&self.map.layer)?;
        let mut forward = inputs.pass.seen(&*cut, &self.map.layer, inputs.ids)?;
        forward.second_order = self.gradient == MapGradient::Double;
        let own = self.map.of(&forward, &classes)?;
        map_distance(self.distance, &own, &target).context("comparing the maps of student and teacher")
    }
}

/// Every image gets the map of the next one in the batch, the last the first one's.
fn roll(maps: &Tensor) -> Result<Tensor> {
    let n = maps.dim(0)?;
    if n < 2 {
        return Ok(maps.clone());
    }
    Ok(Tensor::cat(&[maps.narrow(0, 1, n - 1)?, maps.narrow(0, 0, 1)?], 0)?)
}
