//! What is asked of a student on one batch: from its forward pass and the teacher's signal to the losses.

use anyhow::{Context, Result};
use cams::{ClassMaps, Forward, Interpreter, maps};
use candle_core::{D, Tensor};

use crate::config::{Class, Config, Control, Distance, Loss, MapGradient, Weights};
use crate::data::fetch::sha256;
use crate::data::loader::Batch;
use crate::error::unknown;
use crate::loss::{self, Losses};
use crate::nn::{Network, Pass};

/// What a teacher says about a batch: logits, and what the loss's terms use beside them.
#[derive(Clone, Debug)]
pub struct Signal {
    /// (n, classes).
    pub logits: Tensor,
    /// Every class's CAM, where the map to match follows from them.
    pub class_maps: Option<ClassMaps>,
    /// The map to match, (n, h, w), where it does not.
    pub map: Option<Tensor>,
    /// Attention maps of the layers, (n, h, w) each.
    pub attention: Vec<Tensor>,
}

/// A tensor of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// [`Signal::logits`].
    Logits,
    /// [`Signal::class_maps`].
    ClassMaps,
    /// [`Signal::map`].
    Map,
    /// One of [`Signal::attention`].
    Attention(usize),
}

impl Part {
    /// Its name among files, which says all that it depends on beside teacher and view.
    pub fn name(self, config: &Config) -> Result<String> {
        Ok(match self {
            Part::Logits => "logits".into(),
            Part::ClassMaps => "class_maps".into(),
            Part::Attention(i) => format!("attention-{}", ATTENTION_LAYERS[i]),
            Part::Map => {
                let l = &config.loss;
                let method = if l.control == Control::Random { "random" } else { l.interpreter.as_str() };
                let options = serde_json::to_value(&config.interpreter)?[method].to_string();
                let key = format!("{options} {} {} {:?}", l.layer, l.relu, l.class);
                format!("map-{method}-{}", &sha256(key.as_bytes())[..8])
            }
        })
    }
}

impl Part {
    /// Of one image, as `teacher` makes it.
    pub fn shape(self, config: &Config, teacher: &Network) -> Result<Vec<usize>> {
        let sides = |layer: &str| {
            let graph = &teacher.architecture.graph;
            let cut = graph.cuts.iter().find(|(name, _)| name == layer).map(|(_, value)| graph.shapes[value.0]);
            cut.map(|s| [s.h, s.w]).ok_or_else(|| unknown("layer", layer, &teacher.architecture.layer_names()))
        };
        let classes = teacher.architecture.classes;
        Ok(match self {
            Part::Logits => vec![classes],
            Part::ClassMaps => [&[classes][..], &sides("last")?].concat(),
            Part::Map => {
                let method = config.interpreter.get(&config.loss.interpreter);
                let of_image =
                    config.loss.control != Control::Random && method.is_some_and(Interpreter::is_of_image_size);
                let input = teacher.architecture.graph.shapes[0];
                if of_image { vec![input.h, input.w] } else { sides(&config.loss.layer)?.into() }
            }
            Part::Attention(i) => sides(ATTENTION_LAYERS[i])?.into(),
        })
    }
}

/// The tensors that a signal for this loss has, in their order.
pub fn parts(config: &Config) -> Vec<Part> {
    let (l, mut parts) = (&config.loss, vec![Part::Logits]);
    if l.weights.explanation > 0.0 {
        let method = config.interpreter.get(&l.interpreter);
        let follows = l.layer == "last" && method.is_some_and(Interpreter::sees_class_maps_alone);
        let follows = l.control != Control::Random && (follows || l.distance == Distance::AllClassPooled);
        parts.push(if follows { Part::ClassMaps } else { Part::Map });
    }
    if l.weights.attention > 0.0 {
        parts.extend((0..ATTENTION_LAYERS.len()).map(Part::Attention));
    }
    parts
}

impl Signal {
    /// Its tensors, as [`parts`] names them.
    pub fn tensors(&self) -> Vec<Tensor> {
        let maps = self.class_maps.as_ref().map(|c| &c.maps);
        [Some(&self.logits), maps, self.map.as_ref()].into_iter().flatten().chain(&self.attention).cloned().collect()
    }

    /// The signal that these tensors are; `bias` is that of the teacher's classifier.
    pub fn from_tensors(parts: &[Part], tensors: Vec<Tensor>, bias: &Tensor) -> Result<Signal> {
        let mut tensors = parts.iter().zip(tensors);
        let logits = tensors.next().context("a signal without logits")?.1;
        let mut signal = Signal { logits, class_maps: None, map: None, attention: vec![] };
        for (part, tensor) in tensors {
            match part {
                Part::Logits => {}
                Part::ClassMaps => signal.class_maps = Some(ClassMaps { maps: tensor, bias: bias.clone() }),
                Part::Map => signal.map = Some(tensor),
                Part::Attention(_) => signal.attention.push(tensor),
            }
        }
        Ok(signal)
    }
}

/// Layers whose attention is transferred.
pub const ATTENTION_LAYERS: [&str; 3] = ["layer1", "layer2", "layer3"];

/// Layers that a network must hand out for this loss.
pub fn layers(loss: &Loss) -> Vec<&str> {
    let mut layers = vec!["last", loss.layer.as_str()];
    if loss.weights.attention > 0.0 {
        layers.extend(ATTENTION_LAYERS);
    }
    layers
}

/// The map of a pass as the loss compares it, of the configured interpreter.
fn map(config: &Config, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    let method = config.interpreter.get(&config.loss.interpreter);
    map_of(config, method.context("the interpreter was checked at the start")?, forward, classes)
}

/// A method's map with the ReLU that `loss.relu` asks for, whatever its own definition says.
fn map_of(config: &Config, method: &dyn Interpreter, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    let signed = method.signed(forward, classes)?.map;
    Ok(if config.loss.relu { maps::relu(&signed)? } else { signed })
}

/// The classes to explain, (n,) u32.
fn classes(config: &Config, labels: &Tensor, teacher: Option<&Tensor>) -> Result<Tensor> {
    Ok(match (config.loss.class, teacher) {
        (Class::TeacherTop1, Some(logits)) => logits.argmax(D::Minus1)?,
        _ => labels.clone(),
    })
}

/// (n,) u32 on the network's device.
pub fn labels(network: &Network, batch: &Batch) -> Result<Tensor> {
    Ok(Tensor::from_slice(&batch.labels, batch.len(), network.device())?)
}

/// The teacher's part, from its own forward pass in eval mode.
pub fn signal(config: &Config, teacher: &Network, pass: &Pass, batch: &Batch) -> Result<Signal> {
    let mut signal = Signal { logits: pass.logits.clone(), class_maps: None, map: None, attention: vec![] };
    for part in parts(config) {
        match part {
            Part::Logits => {}
            Part::ClassMaps => {
                let features = &pass.layers[teacher.layer("last")?];
                signal.class_maps = Some(ClassMaps::new(&teacher.linear_head()?, features)?);
            }
            Part::Map => {
                let view = teacher.view(&config.loss.layer)?;
                let forward = view.forward(pass, batch.ids.clone());
                let classes = classes(config, &labels(teacher, batch)?, Some(&pass.logits))?;
                signal.map = Some(match config.loss.control {
                    Control::Random => map_of(config, &config.interpreter.random, &forward, &classes)?,
                    _ => map(config, &forward, &classes)?,
                });
            }
            Part::Attention(i) => {
                signal.attention.push(loss::attention_map(&pass.layers[teacher.layer(ATTENTION_LAYERS[i])?])?);
            }
        }
    }
    Ok(signal)
}

/// What the student's map is matched with: (n, h, w), or (n, classes, h, w) for `all_class_pooled`.
fn target(config: &Config, signal: &Signal, batch: &Batch, classes: &Tensor) -> Result<Option<Tensor>> {
    let found = match (&signal.map, &signal.class_maps) {
        (Some(map), _) => map.clone(),
        (None, Some(all)) if config.loss.distance == Distance::AllClassPooled => all.maps.clone(),
        (None, Some(all)) => map(config, &all.forward(&signal.logits, batch.ids.clone()), classes)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(if config.loss.control == Control::Shuffled { roll(&found)? } else { found }))
}

/// The map of the labels' classes that a run shows of a network, in eval mode: of its interpreter, (n, h, w).
pub fn shown_map(config: &Config, network: &Network, batch: &Batch) -> Result<Tensor> {
    let pass = network.observe(&network.images(batch)?)?;
    let view = network.view(&config.loss.layer)?;
    let method =
        config.interpreter.get(&config.loss.interpreter).context("the interpreter was checked at the start")?;
    let explanation = method.explain(&view.forward(&pass, batch.ids.clone()), &labels(network, batch)?)?;
    Ok(explanation.map.detach())
}

/// Every term whose weight is not 0.
pub fn losses(
    config: &Config,
    weights: &Weights,
    student: &Network,
    pass: &Pass,
    batch: &Batch,
    signal: Option<&Signal>,
) -> Result<Losses> {
    let labels = labels(student, batch)?;
    let mut losses = Losses::default();
    if weights.ce > 0.0 {
        losses.ce = Some(loss::cross_entropy(&pass.logits, &labels, config.loss.label_smoothing)?);
    }
    let Some(signal) = signal else { return Ok(losses) };
    if weights.kd > 0.0 {
        losses.kd = Some(loss::distillation(&pass.logits, &signal.logits, config.loss.temperature)?);
    }
    let classes = classes(config, &labels, Some(&signal.logits))?;
    if weights.explanation > 0.0
        && let Some(target) = target(config, signal, batch, &classes)?
    {
        let mut view = student.view(&config.loss.layer)?;
        if config.loss.gradient == MapGradient::Double {
            view = view.with_second_order();
        }
        let forward = view.forward(pass, batch.ids.clone());
        losses.explanation = Some(match config.loss.distance {
            Distance::AllClassPooled => {
                let own = cams::ops::class_maps(&student.linear_head()?.weight, &forward.features)?;
                loss::all_class_pooled(&own, &target)?
            }
            distance => loss::map_distance(distance, &map(config, &forward, &classes)?, &target)?,
        });
    }
    if weights.attention > 0.0 {
        let own = ATTENTION_LAYERS.iter().map(|name| Ok(loss::attention_map(&pass.layers[student.layer(name)?])?));
        losses.attention = Some(loss::attention_transfer(&own.collect::<Result<Vec<_>>>()?, &signal.attention)?);
    }
    Ok(losses)
}

/// Every image gets the map of the next one in the batch, the last the first one's.
fn roll(maps: &Tensor) -> Result<Tensor> {
    let n = maps.dim(0)?;
    if n < 2 {
        return Ok(maps.clone());
    }
    Ok(Tensor::cat(&[maps.narrow(0, 1, n - 1)?, maps.narrow(0, 0, 1)?], 0)?)
}
