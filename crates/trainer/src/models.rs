//! Architectures: a name or a layer list becomes a [`Graph`] and the size of the classifier behind it.

mod layers;
mod resnet;
mod wrn;

use anyhow::{Result, bail};
use kernels::graph::{Entry, Graph, Init, Shape};
use serde::{Deserialize, Serialize};

use crate::error::nearest;
pub use layers::Layer;

/// What a WRN's 1x1 shortcut reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// relu(bn1(x)), as in the attention-transfer code.
    #[default]
    Preact,
    /// x itself.
    Raw,
}

impl Shortcut {
    /// Its word in files.
    pub fn name(self) -> &'static str {
        match self {
            Shortcut::Preact => "preact",
            Shortcut::Raw => "raw",
        }
    }
}

/// A model's trunk, then average pooling and a linear classifier `fc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its name in checkpoints: `wrn-16-2`, `resnet20`, `layers`.
    pub name: String,
    /// The trunk; its parameters end with the classifier's.
    pub graph: Graph,
    /// Number of classes.
    pub classes: usize,
    /// For a WRN.
    pub shortcut: Option<Shortcut>,
    /// Offset of `fc.weight` (classes, k); `fc.bias` (classes,) follows.
    pub fc: usize,
}

/// One family of architectures.
pub struct Family {
    /// How its names look.
    pub pattern: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// An example that can be built.
    pub example: &'static str,
    build: fn(&str, Shape, Shortcut) -> Option<Result<Graph>>,
}

/// The one list of families.
pub const LIST: &[Family] = &[
    Family {
        pattern: "wrn-D-K",
        about: "wide residual network, D = 6 N + 4 layers, width K (Zagoruyko & Komodakis 2016)",
        example: "wrn-16-2",
        build: wrn::build,
    },
    Family {
        pattern: "resnetD",
        about: "CIFAR residual network, D = 6 N + 2 layers, option A (He et al. 2016)",
        example: "resnet20",
        build: resnet::build,
    },
];

impl Architecture {
    /// The architecture of that name.
    pub fn named(name: &str, input: Shape, classes: usize, shortcut: Shortcut) -> Result<Architecture> {
        for family in LIST {
            if let Some(graph) = (family.build)(name, input, shortcut) {
                let shortcut = name.starts_with("wrn").then_some(shortcut);
                return Ok(Self::with_classifier(name, graph?, classes, shortcut));
            }
        }
        let hint = nearest(name, LIST.iter().map(|f| f.example)).map(|n| format!(" (did you mean \"{n}\"?)"));
        let accepted: Vec<_> = LIST.iter().map(|f| f.pattern).collect();
        bail!(
            "unknown architecture \"{name}\"{}; accepted: {}, or a list of [[student.layers]]",
            hint.unwrap_or_default(),
            accepted.join(", ")
        )
    }

    /// One's own, from a list of layers.
    pub fn from_layers(list: &[Layer], input: Shape, classes: usize) -> Result<Architecture> {
        Ok(Self::with_classifier("layers", layers::build(list, input)?, classes, None))
    }

    fn with_classifier(name: &str, mut graph: Graph, classes: usize, shortcut: Option<Shortcut>) -> Architecture {
        let k = graph.shape(graph.last()).channels;
        let fc = graph.parameter("fc.weight".into(), vec![classes, k], Init::Kaiming { fan_in: k });
        graph.parameter("fc.bias".into(), vec![classes], Init::Zeros);
        Architecture { name: name.to_string(), graph, classes, shortcut, fc }
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> usize {
        self.graph.parameter_len()
    }

    /// Multiplications and additions of a forward pass, an image.
    pub fn macs(&self) -> usize {
        self.graph.macs() + self.classes * self.graph.shape(self.graph.last()).channels
    }

    /// Channels of the last layer.
    pub fn channels(&self) -> usize {
        self.graph.shape(self.graph.last()).channels
    }

    /// Layers whose attention is transferred: all at which it can be cut, but for `last`.
    pub fn attention_layers(&self) -> Vec<String> {
        self.graph.cuts.iter().map(|(name, _)| name.clone()).filter(|name| name != "last").collect()
    }

    /// Names of the layers at which it can be cut.
    pub fn layer_names(&self) -> Vec<&str> {
        self.graph.cuts.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Every tensor of a checkpoint: parameters, then statistics.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, bool)> {
        let parameters = self.graph.parameters.iter().map(|e| (e, true));
        parameters.chain(self.graph.statistics.iter().map(|e| (e, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_parameter_counts() {
        let count = |name| {
            let input = Shape { channels: 3, h: 32, w: 32 };
            Architecture::named(name, input, 10, Shortcut::Preact).unwrap().parameters()
        };
        assert_eq!(count("wrn-16-2"), 691_674);
        assert_eq!(count("wrn-40-2"), 2_243_546);
        assert_eq!(count("wrn-40-1"), 563_930);
        assert_eq!(count("resnet20"), 269_722);
    }

    #[test]
    fn published_work_an_image() {
        let input = Shape { channels: 3, h: 32, w: 32 };
        let macs = |name| Architecture::named(name, input, 10, Shortcut::Preact).unwrap().macs() as f64 / 1e6;
        assert!((macs("wrn-16-2") - 101.1).abs() < 0.1, "{}", macs("wrn-16-2"));
        assert!((macs("wrn-40-2") - 327.6).abs() < 0.1, "{}", macs("wrn-40-2"));
    }

    #[test]
    fn unknown_names_are_explained() {
        let input = Shape { channels: 3, h: 32, w: 32 };
        for (name, part) in [("wrn-17-2", "6 N + 4"), ("wrn16-2", "did you mean \"wrn-16-2\""), ("resnet21", "6 N + 2")]
        {
            let error = Architecture::named(name, input, 10, Shortcut::Preact).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
