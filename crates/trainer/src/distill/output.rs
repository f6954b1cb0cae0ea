//! What a teacher says about a batch: which tensors a loss asks for, and how they are made.

use anyhow::{Context, Result};
use cams::methods::Methods;
use cams::ops::pool;
use cams::{ClassMaps, Forward, Interpreter, SampleId, maps};
use candle_core::{D, Tensor};

use super::distance::attention_map;
use super::terms::Class;
use crate::files::sha256;
use crate::nn::{Model, Pass, linear_head};

/// A method's map of one class of each image, at a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MapOf {
    /// The methods as configured.
    pub methods: Methods,
    /// Which of them.
    pub method: String,
    /// The layer.
    pub layer: String,
    /// The class.
    pub class: Class,
    /// Whether a ReLU follows, whatever the method's own definition says.
    pub relu: bool,
}

impl MapOf {
    /// The method.
    pub fn interpreter(&self) -> Result<&dyn Interpreter> {
        self.methods.get(&self.method).with_context(|| format!("there is no method {}", self.method))
    }

    /// The classes to explain, (n,).
    pub fn classes(&self, labels: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        Ok(match self.class {
            Class::TeacherTop1 => teacher.argmax(D::Minus1)?,
            Class::Label => labels.clone(),
            Class::Number(class) => Tensor::full(class, labels.shape(), labels.device())?,
        })
    }

    /// The map (n, h, w) as a loss compares it.
    pub fn of(&self, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
        let signed = self.interpreter()?.signed(forward, classes)?.map;
        Ok(if self.relu { maps::relu(&signed)? } else { signed })
    }

    /// A model's map of the labels' classes as the method defines it, (n, h, w): to be shown.
    pub fn shown(&self, model: &dyn Model, pixels: &Tensor, labels: &Tensor, ids: &[SampleId]) -> Result<Tensor> {
        let pass = model.observe(&model.images(pixels)?)?;
        let cut = model.cut(&self.layer)?;
        Ok(self.interpreter()?.explain(&pass.seen(&*cut, &self.layer, ids)?, labels)?.map.detach())
    }
}

/// A tensor that a teacher is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// (n, classes).
    Logits,
    /// Every class's CAM at `last`, (n, classes, h, w).
    ClassMaps,
    /// A method's map, (n, h, w).
    Map(Box<MapOf>),
    /// The attention map of a layer of the teacher, (n, h, w).
    Attention(String),
    /// The activations at `last`, (n, k, h, w).
    Features,
    /// Their mean over positions, (n, k).
    Pooled,
}

impl Part {
    /// Its name among files, which says all that it depends on beside teacher and view.
    pub fn name(&self) -> Result<String> {
        Ok(match self {
            Part::Logits => "logits".into(),
            Part::ClassMaps => "class_maps".into(),
            Part::Attention(layer) => format!("attention-{layer}"),
            Part::Features => "features".into(),
            Part::Pooled => "pooled".into(),
            Part::Map(map) => {
                let options = serde_json::to_value(&map.methods)?[&map.method].to_string();
                let key = format!("{options} {} {} {:?}", map.layer, map.relu, map.class);
                format!("map-{}-{}", map.method, &sha256(key.as_bytes())[..8])
            }
        })
    }

    /// From a pass of the teacher in eval mode.
    pub fn of(&self, teacher: &dyn Model, pass: &Pass, labels: &Tensor, ids: &[SampleId]) -> Result<Tensor> {
        Ok(match self {
            Part::Logits => pass.logits.clone(),
            Part::ClassMaps => ClassMaps::new(&linear_head(teacher)?, pass.at("last")?)?.maps,
            Part::Map(map) => {
                let cut = teacher.cut(&map.layer)?;
                map.of(&pass.seen(&*cut, &map.layer, ids)?, &map.classes(labels, &pass.logits)?)?
            }
            Part::Attention(layer) => attention_map(pass.at(layer)?)?,
            Part::Features => pass.at("last")?.clone(),
            Part::Pooled => pool(pass.at("last")?)?,
        })
    }

    /// The shape of one image's, from any pass of the teacher.
    pub fn shape(&self, pass: &Pass) -> Result<Vec<usize>> {
        let sides = |t: &Tensor| t.dims()[2..].to_vec();
        Ok(match self {
            Part::Logits => pass.logits.dims()[1..].to_vec(),
            Part::ClassMaps => [vec![pass.logits.dim(1)?], sides(pass.at("last")?)].concat(),
            Part::Map(map) if map.interpreter()?.is_of_image_size() => sides(&pass.images),
            Part::Map(map) => sides(pass.at(&map.layer)?),
            Part::Attention(layer) => sides(pass.at(layer)?),
            Part::Features => pass.at("last")?.dims()[1..].to_vec(),
            Part::Pooled => vec![pass.at("last")?.dim(1)?],
        })
    }
}

/// What a teacher has said about a batch.
#[derive(Clone, Debug)]
pub struct TeacherOutput {
    parts: Vec<(Part, Tensor)>,
    /// Of the teacher's classifier, (classes,), where it ends in pooling and a linear layer.
    pub bias: Option<Tensor>,
}

impl TeacherOutput {
    /// These parts of a pass of the teacher in eval mode.
    pub fn of(
        parts: &[Part],
        teacher: &dyn Model,
        pass: &Pass,
        labels: &Tensor,
        ids: &[SampleId],
    ) -> Result<TeacherOutput> {
        let made = parts.iter().map(|part| Ok((part.clone(), part.of(teacher, pass, labels, ids)?)));
        Ok(TeacherOutput { parts: made.collect::<Result<_>>()?, bias: bias(teacher) })
    }

    /// These tensors as those parts.
    pub fn new(parts: &[Part], tensors: Vec<Tensor>, bias: Option<Tensor>) -> TeacherOutput {
        TeacherOutput { parts: parts.iter().cloned().zip(tensors).collect(), bias }
    }

    /// Its tensors, in the order in which they were asked for.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.parts.iter().map(|(_, t)| t.clone()).collect()
    }

    /// A part, if it was asked for.
    pub fn find(&self, part: &Part) -> Option<&Tensor> {
        self.parts.iter().find(|(p, _)| p == part).map(|(_, t)| t)
    }

    /// A part that was asked for.
    pub fn get(&self, part: &Part) -> Result<&Tensor> {
        self.find(part).with_context(|| format!("the teacher was not asked for {part:?}"))
    }

    /// (n, classes).
    pub fn logits(&self) -> Result<&Tensor> {
        self.get(&Part::Logits)
    }

    /// The attention maps that were asked for, in order.
    pub fn attention(&self) -> Vec<Tensor> {
        self.parts.iter().filter(|(part, _)| matches!(part, Part::Attention(_))).map(|(_, t)| t.clone()).collect()
    }

    /// Every class's CAM, if it was asked for.
    pub fn class_maps(&self) -> Option<ClassMaps> {
        Some(ClassMaps { maps: self.find(&Part::ClassMaps)?.clone(), bias: self.bias.clone()? })
    }
}

/// The bias of a teacher's classifier.
pub fn bias(teacher: &dyn Model) -> Option<Tensor> {
    Some(teacher.cut("last").ok()?.linear_head()?.bias)
}
