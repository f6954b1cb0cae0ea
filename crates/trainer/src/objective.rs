//! What is asked of a student on one batch: from its forward pass and the teacher's signal to the losses.

use anyhow::{Context, Result};
use cams::{Forward, maps};
use candle_core::{D, Tensor};

use crate::config::{Class, Config, Control, Distance, Loss, MapGradient, Weights};
use crate::data::loader::Batch;
use crate::loss::{self, Losses};
use crate::nn::{Network, Pass};

/// What a teacher says about a batch.
#[derive(Clone, Debug)]
pub struct Signal {
    /// (n, classes).
    pub logits: Tensor,
    /// The map to match, (n, h, w); for `all_class_pooled` every class's CAM, (n, classes, h, w).
    pub map: Option<Tensor>,
    /// Attention maps of the layers, (n, h, w) each.
    pub attention: Vec<Tensor>,
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

/// The map of a pass as the loss compares it: of the configured interpreter, with the ReLU that
/// `loss.relu` asks for, whatever the method's own definition says.
fn map(config: &Config, network: &Network, forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    let loss = &config.loss;
    if loss.distance == Distance::AllClassPooled {
        let head = network.linear_head()?;
        return Ok(cams::ops::class_maps(&head.weight, &forward.features)?);
    }
    let method = config.interpreter.get(&loss.interpreter).context("the interpreter was checked at the start")?;
    let signed = method.signed(forward, classes)?.map;
    Ok(if loss.relu { maps::relu(&signed)? } else { signed })
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
    let weights = &config.loss.weights;
    let mut map_of = None;
    if weights.explanation > 0.0 {
        let view = teacher.view(&config.loss.layer)?;
        let forward = view.forward(pass, batch.ids.clone());
        let classes = classes(config, &labels(teacher, batch)?, Some(&pass.logits))?;
        map_of = Some(match config.loss.control {
            Control::Random => {
                let random = config.interpreter.random;
                let signed = cams::Interpreter::signed(&random, &forward, &classes)?.map;
                if config.loss.relu { maps::relu(&signed)? } else { signed }
            }
            _ => map(config, teacher, &forward, &classes)?,
        });
    }
    let mut attention = Vec::new();
    if weights.attention > 0.0 {
        for name in ATTENTION_LAYERS {
            attention.push(loss::attention_map(&pass.layers[teacher.layer(name)?])?);
        }
    }
    Ok(Signal { logits: pass.logits.clone(), map: map_of, attention })
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
    if weights.explanation > 0.0
        && let Some(target) = &signal.map
    {
        let mut view = student.view(&config.loss.layer)?;
        if config.loss.gradient == MapGradient::Double {
            view = view.with_second_order();
        }
        let forward = view.forward(pass, batch.ids.clone());
        let classes = classes(config, &labels, Some(&signal.logits))?;
        let own = map(config, student, &forward, &classes)?;
        let target = match config.loss.control {
            Control::Shuffled => roll(target)?,
            _ => target.clone(),
        };
        losses.explanation = Some(match config.loss.distance {
            Distance::AllClassPooled => loss::all_class_pooled(&own, &target)?,
            distance => loss::map_distance(distance, &own, &target)?,
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
