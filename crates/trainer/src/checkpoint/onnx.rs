//! Networks as ONNX files, for every program that runs those: what a student is trained for.
//!
//! A file takes pixels as they are (RGB, 0 to 1; the normalisation is part of the graph) and gives logits and, if asked
//! for, every class's map. Its tensors have the names of our checkpoints, its values those of the layers at which the
//! network can be cut. Nothing is fused or reordered: runtimes do that better.

mod builder;
mod message;

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use cams::maps::average_windows;
use kernels::graph::{EPS, Shape};
use kernels::pool::PoolShape;
use kernels::{Node, Value};
use prost::Message;

use super::Metadata;
use crate::models::{Architecture, LinearAt, Step};
use crate::nn::{Normalization, StateDict};
use builder::Builder;
use message::{Attribute, Model, OperatorSet, Property};

/// The operator set that files are written for (ONNX 1.12, 2022): all that is needed, and known to every runtime in use.
pub const OPSET: i64 = 17;
/// The version of the file format that goes with it.
const IR_VERSION: i64 = 8;
/// The format cannot hold more than this many bytes in one file.
const LIMIT: usize = i32::MAX as usize;

/// What goes in: (batch, channels, height, width), f32, RGB from 0 to 1.
pub const IMAGES: &str = "images";
/// What comes out: (batch, classes).
pub const LOGITS: &str = "logits";
/// With maps: (batch, classes, height, width of the last layer). The mean of a class's map over all positions, plus the
/// class's bias, is its logit.
pub const CLASS_MAPS: &str = "class_maps";

/// The bytes of an ONNX file that computes what `architecture` with `weights` does in eval mode, and with `maps` also every
/// class's CAM (Zhou et al. 2016, eq. 2), signed and as small as the last layer. `metadata` is kept in the file.
///
/// # Errors
/// With maps, if the classifier is not average pooling and one linear layer; if the file would pass 2 GiB.
pub fn encode(
    architecture: &Architecture,
    weights: &StateDict,
    normalization: &Normalization,
    metadata: &Metadata,
    maps: bool,
) -> Result<Vec<u8>> {
    let mut to = Builder::default();
    let last = trunk(&mut to, architecture, weights, normalization);
    let mut outputs = vec![message::Value::of_images(LOGITS, &[architecture.classes], "one per class")];
    if maps {
        let shape = class_maps(&mut to, architecture, weights, &last)?;
        let about = "CAM of every class; its mean plus the class's bias is the logit";
        outputs.push(message::Value::of_images(CLASS_MAPS, &shape, about));
    }
    let logits = classifier(&mut to, architecture, &last)?;
    let Shape { channels, h, w } = architecture.graph.shapes[0];
    let images = message::Value::of_images(IMAGES, &[channels, h, w], "RGB from 0 to 1");
    let model = Model {
        ir_version: Some(IR_VERSION),
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: format!("{}: pixels (RGB, 0 to 1) to logits; the normalisation is inside", architecture.name),
        graph: Some(to.finish(&architecture.name, (&logits, LOGITS), images, outputs)),
        opset_import: vec![OperatorSet { domain: String::new(), version: Some(OPSET) }],
        metadata_props: metadata.iter().map(|(k, v)| Property { key: k.clone(), value: v.clone() }).collect(),
    };
    let bytes = model.encoded_len();
    ensure!(bytes <= LIMIT, "the file would have {} MB: an ONNX file holds at most 2 GiB", bytes / 1_000_000);
    Ok(model.encode_to_vec())
}

/// From pixels to the activations at `last`, whose name it returns.
fn trunk(to: &mut Builder, architecture: &Architecture, weights: &StateDict, normalization: &Normalization) -> String {
    let graph = &architecture.graph;
    let (mut parameters, mut statistics) = (HashMap::new(), HashMap::new());
    for (entry, parameter) in architecture.entries() {
        let (names, values) = match parameter {
            true => (&mut parameters, &weights.parameters),
            false => (&mut statistics, &weights.running),
        };
        names.insert(entry.offset, entry.name.as_str());
        to.constant(&entry.name, &entry.shape, &values[entry.range()]);
    }
    // A value has the name of its first layer; another layer that is the same value has it under its own name too.
    let layers = |at: usize| -> Vec<&str> {
        graph.cuts.iter().filter(|(_, value)| value.0 == at).map(|(name, _)| name.as_str()).collect()
    };
    let mut values = vec![normalized(to, normalization)];
    layers(0).iter().for_each(|name| to.same(name, &values[0]));
    for (i, node) in graph.nodes.iter().enumerate() {
        let value = Value(i + 1);
        let layers = layers(value.0);
        let of = |v: &Value| values[v.0].as_str();
        // Where a ReLU follows, it takes the layer's name.
        let named = |op: &str, relu: bool| match layers.first() {
            Some(name) if !relu => name.to_string(),
            _ => format!("{op}_{}", value.0),
        };
        let (plain, relu) = match node {
            Node::Conv { input, shape: s, weight, bias, relu } => {
                let mut inputs = vec![of(input), parameters[weight]];
                inputs.extend(bias.map(|bias| parameters[&bias]));
                let attributes = vec![
                    Attribute::ints("kernel_shape", &[s.k; 2]),
                    Attribute::ints("strides", &[s.stride; 2]),
                    Attribute::ints("pads", &[s.padding; 4]),
                ];
                (to.node("Conv", &named("conv", *relu), &inputs, attributes), *relu)
            }
            Node::BatchNorm { input, gamma, running, relu } => {
                let channels = graph.shape(value).channels;
                let [beta, var] = [parameters[&(gamma + channels)], statistics[&(running + channels)]];
                let inputs = [of(input), parameters[gamma], beta, statistics[running], var];
                let epsilon = Attribute::float("epsilon", EPS as f32);
                (to.node("BatchNormalization", &named("bn", *relu), &inputs, vec![epsilon]), *relu)
            }
            Node::Relu { input } => (to.relu(&named("relu", false), of(input)), false),
            Node::Add { a, b } => (to.node("Add", &named("add", false), &[of(a), of(b)], vec![]), false),
            Node::Concat { a, b } => {
                let axis = vec![Attribute::int("axis", 1)];
                (to.node("Concat", &named("concat", false), &[of(a), of(b)], axis), false)
            }
            Node::Subsample { input, stride, channels } => {
                let name = named("subsample", false);
                let (step, every) = (*stride as i64, format!("{name}.pixels"));
                let numbers: [(&str, &[i64]); 4] =
                    [("starts", &[0, 0]), ("ends", &[i64::MAX; 2]), ("axes", &[2, 3]), ("steps", &[step; 2])];
                let pixels = to.node_with("Slice", &every, of(input), &numbers);
                let new = channels - graph.shape(*input).channels;
                (to.pad(&name, &pixels, [new / 2, new - new / 2], 0), false)
            }
            Node::Pool { input, shape } => (pool(to, &named("pool", false), of(input), shape), false),
        };
        let made = if relu { to.relu(&named("relu", false), &plain) } else { plain };
        layers.iter().skip(1).for_each(|name| to.same(name, &made));
        values.push(made);
    }
    values.swap_remove(graph.last().0)
}

/// (pixel - mean) / std.
fn normalized(to: &mut Builder, normalization: &Normalization) -> String {
    let mut constant = |name: &str, values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        to.constant(name, &[1, values.len(), 1, 1], &values)
    };
    let (mean, std) = (constant("mean", &normalization.mean), constant("std", &normalization.std));
    let centred = to.node("Sub", "centred", &[IMAGES, &mean], vec![]);
    to.node("Div", "normalized", &[&centred, &std], vec![])
}

/// Pooling with PyTorch's meaning of a last window that is cut off, which ONNX's `ceil_mode` does not have: what is missing
/// is padded on the far side, where a maximum does not see it and a mean does not count it.
fn pool(to: &mut Builder, name: &str, input: &str, shape: &PoolShape) -> String {
    let window = shape.window;
    let beyond =
        |len: usize, count: usize| ((count - 1) * window.stride + window.k).saturating_sub(len + 2 * window.padding);
    let (low, right) = (beyond(shape.h, shape.out_h()), beyond(shape.w, shape.out_w()));
    let p = window.padding;
    let mut input = input.to_string();
    // Zeros that a mean counts are made beforehand.
    let pads = if shape.max {
        [p, p, p + low, p + right]
    } else {
        if p > 0 {
            input = to.pad(&format!("{name}.padded"), &input, [0, 0], p);
        }
        [0, 0, low, right]
    };
    let attributes = vec![
        Attribute::ints("kernel_shape", &[window.k; 2]),
        Attribute::ints("strides", &[window.stride; 2]),
        Attribute::ints("pads", &pads),
    ];
    to.node(if shape.max { "MaxPool" } else { "AveragePool" }, name, &[&input], attributes)
}

/// From the activations at `last` to logits, whose name it returns.
fn classifier(to: &mut Builder, architecture: &Architecture, last: &str) -> Result<String> {
    let graph = &architecture.graph;
    let parameter = |at: &usize| {
        let entry = graph.parameters.iter().find(|entry| entry.offset == *at);
        entry.map(|entry| entry.name.as_str()).with_context(|| format!("the classifier has no parameter at {at}"))
    };
    let Shape { mut h, mut w, .. } = graph.shape(graph.last());
    let mut value = last.to_string();
    for (i, step) in architecture.classifier.steps.iter().enumerate() {
        let name = format!("classifier_{i}");
        value = match step {
            Step::Pool => to.mean(&name, &value),
            Step::AdaptivePool(side) if (h, w) == (*side, *side) => value,
            Step::AdaptivePool(side) => {
                let rows = to.constant(format!("{name}.rows"), &[*side, h], &windows(h, *side));
                let columns = to.constant(format!("{name}.columns"), &[w, *side], &transposed(&windows(w, *side), w));
                (h, w) = (*side, *side);
                let pooled = to.node("MatMul", &format!("{name}.rows_pooled"), &[&rows, &value], vec![]);
                to.node("MatMul", &name, &[&pooled, &columns], vec![])
            }
            Step::Pad(by) => {
                (h, w) = (h + 2 * by, w + 2 * by);
                to.pad(&name, &value, [0, 0], *by)
            }
            Step::Flatten => to.node("Flatten", &name, &[&value], vec![Attribute::int("axis", 1)]),
            Step::Dropout(_) => value,
            Step::Relu => to.relu(&name, &value),
            Step::Linear { weight, bias, .. } => {
                let inputs = [value.as_str(), parameter(weight)?, parameter(bias)?];
                to.node("Gemm", &name, &inputs, vec![Attribute::int("transB", 1)])
            }
            Step::Conv { weight, bias, .. } => {
                let inputs = [value.as_str(), parameter(weight)?, parameter(bias)?];
                to.node("Conv", &name, &inputs, vec![Attribute::ints("kernel_shape", &[1, 1])])
            }
        };
    }
    Ok(value)
}

/// Average pooling of `from` pixels to `to` as a matrix (to, from).
fn windows(from: usize, to: usize) -> Vec<f32> {
    average_windows(from, to).into_iter().map(|v| v as f32).collect()
}

/// A matrix of so many columns, its columns one after another.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

/// Adds every class's map as [`CLASS_MAPS`]; returns an image's shape of them.
fn class_maps(to: &mut Builder, architecture: &Architecture, weights: &StateDict, last: &str) -> Result<[usize; 3]> {
    let Some(LinearAt { weight, inputs, outputs, .. }) = architecture.classifier.linear_head() else {
        bail!(
            "{} does not end in average pooling and one linear layer, which the maps are made of: leave --maps out",
            architecture.name
        )
    };
    let values = &weights.parameters[weight..weight + inputs * outputs];
    let kernel = to.constant(format!("{CLASS_MAPS}.weight"), &[outputs, inputs, 1, 1], values);
    to.node("Conv", CLASS_MAPS, &[last, &kernel], vec![Attribute::ints("kernel_shape", &[1, 1])]);
    let Shape { h, w, .. } = architecture.graph.shape(architecture.graph.last());
    Ok([architecture.classes, h, w])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::models::Options;

    fn decoded(name: &str, maps: bool) -> (Architecture, message::Graph) {
        let input = Shape { channels: 3, h: 32, w: 32 };
        let architecture = Architecture::named(name, input, 10, &Options::new()).unwrap();
        let weights = StateDict::init(&architecture, 0, false);
        let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.25; 3] };
        let bytes = encode(&architecture, &weights, &normalization, &Metadata::new(), maps).unwrap();
        (architecture, Model::decode(bytes.as_slice()).unwrap().graph.unwrap())
    }

    /// Every name stands for one thing, which is there before it is read, and every layer can be found by its name.
    #[test]
    fn names_are_those_of_layers_and_parameters() {
        for name in ["wrn-10-1", "resnet8"] {
            let (architecture, graph) = decoded(name, true);
            let mut known: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(known.len(), graph.initializer.len(), "{name}: a constant twice");
            assert!(architecture.entries().all(|(entry, _)| known.contains(entry.name.as_str())), "{name}");
            known.insert(IMAGES);
            for node in &graph.node {
                assert!(
                    node.input.iter().all(|i| known.contains(i.as_str())),
                    "{name}: {node:?} reads what is not there"
                );
                assert!(node.output.iter().all(|o| known.insert(o)), "{name}: {node:?} writes what is there");
            }
            for value in architecture.layer_names().into_iter().chain(graph.output.iter().map(|o| o.name.as_str())) {
                assert!(known.contains(value), "{name}: no {value}");
            }
        }
    }

    /// Scale, shift, mean and variance, in the order that ONNX gives them.
    #[test]
    fn batch_norm_s_inputs() {
        let (_, graph) = decoded("wrn-10-1", false);
        let norms: Vec<_> = graph.node.iter().filter(|n| n.op_type == "BatchNormalization").collect();
        assert_eq!(norms.len(), 2 * 3 + 1);
        for node in norms {
            let ends = ["weight", "bias", "running_mean", "running_var"];
            let stems = node.input[1..].iter().zip(ends).map(|(i, end)| i.strip_suffix(end));
            let stems: HashSet<_> = stems.collect();
            assert!(stems.len() == 1 && !stems.contains(&None), "{:?}", node.input);
        }
    }

    #[test]
    fn windows_by_hand() {
        assert_eq!(windows(3, 2), [0.5, 0.5, 0.0, 0.0, 0.5, 0.5]);
        assert_eq!(transposed(&windows(4, 2), 4), [0.5, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.5]);
    }
}
