//! Architectures: a name or a layer list becomes a [`Graph`] and the size of the classifier behind it.

mod classifier;
mod layers;
mod resnet;
mod resnet_imagenet;
mod squeezenet;
mod vgg;
mod wrn;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use kernels::graph::{Entry, Graph, Shape};

use crate::data::{cifar, imagenet};
use crate::error::{nearest, unknown};
pub use classifier::{Classifier, LinearAt, Step};
pub use layers::Layer;

/// A choice that a family leaves open, as it stands in `[student]` and in a checkpoint's metadata.
pub struct Choice {
    /// Its key.
    pub name: &'static str,
    /// What it may be; the first where nothing is said.
    pub words: &'static [&'static str],
    /// Whether it is about the classifier alone: a new one may choose otherwise than the weights in front of it.
    pub of_head: bool,
}

/// Choices by key.
pub type Options = BTreeMap<String, String>;

/// A model's trunk, up to `last`, and the classifier behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its name in checkpoints: `wrn-16-2`, `resnet20`, `layers`.
    pub name: String,
    /// The trunk; its parameters end with the classifier's.
    pub graph: Graph,
    /// Number of classes.
    pub classes: usize,
    /// What its family left open, every choice of it.
    pub options: Options,
    /// What makes logits of the activations at `last`.
    pub classifier: Classifier,
    /// Offset of the classifier's first parameter.
    pub trunk: usize,
}

/// One family of architectures.
pub struct Family {
    /// How its names look.
    pub pattern: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// An example that can be built.
    pub example: &'static str,
    /// What it leaves open.
    pub options: &'static [Choice],
    /// What the weights are of that others have published.
    pub published: Published,
    /// The trunk of the model of that name, if the name is the family's.
    pub build: fn(&str, Shape, &Options) -> Option<Result<Graph>>,
    /// What stands behind the trunk, for so many classes.
    pub classifier: fn(&mut Graph, usize, &Options) -> Classifier,
}

/// What published weights of a model take, where their file does not say it.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// The data set.
    pub of: &'static str,
    /// Height and width of the images.
    pub side: usize,
    /// Mean and standard deviation of their pixels / 255.
    pub statistics: [[f64; 3]; 2],
}

/// Weights for CIFAR-10.
pub const OF_CIFAR10: Published = Published { of: "CIFAR-10", side: 32, statistics: cifar::CIFAR10_STATISTICS };

/// torchvision's weights, for ImageNet.
const OF_IMAGENET: Published = Published { of: "ImageNet", side: 224, statistics: imagenet::STATISTICS };

/// The one list of families.
pub const LIST: &[Family] =
    &[wrn::WRN, resnet_imagenet::RESNET_IMAGENET, resnet::RESNET, vgg::VGG, squeezenet::SQUEEZENET];

/// What a model made of a list of layers is called.
pub const LAYERS: &str = "layers";

impl Family {
    /// These choices, and the first word of every other; None at the first that is not the family's, with what it may
    /// be.
    fn settle(&self, name: &str, given: &Options) -> Result<Options> {
        for (key, word) in given {
            let Some(choice) = self.options.iter().find(|c| c.name == key) else {
                let names: Vec<_> = self.options.iter().map(|c| c.name).collect();
                return Err(unknown(&format!("option of {name}"), key, &names));
            };
            if !choice.words.contains(&word.as_str()) {
                return Err(unknown(key, word, choice.words));
            }
        }
        let of = |c: &Choice| (c.name.to_string(), given.get(c.name).cloned().unwrap_or_else(|| c.words[0].into()));
        Ok(self.options.iter().map(of).collect())
    }
}

/// The family of a name.
fn family(name: &str) -> Result<&'static Family> {
    let smallest = Shape { channels: 3, h: 64, w: 64 };
    let is_its = |f: &&Family| f.settle(name, &Options::new()).is_ok_and(|o| (f.build)(name, smallest, &o).is_some());
    if let Some(found) = LIST.iter().find(is_its) {
        return Ok(found);
    }
    let hint = nearest(name, LIST.iter().map(|f| f.example)).map(|n| format!(" (did you mean \"{n}\"?)"));
    let accepted: Vec<_> = LIST.iter().map(|f| f.pattern).collect();
    bail!(
        "unknown architecture \"{name}\"{}; accepted: {}, or a list of [[student.layers]]",
        hint.unwrap_or_default(),
        accepted.join(", ")
    )
}

/// Every choice of the model of that name: as given, or its default.
pub fn settle(name: &str, given: &Options) -> Result<Options> {
    family(name)?.settle(name, given)
}

/// What published weights of the model of that name take.
pub fn published(name: &str) -> Result<Published> {
    Ok(family(name)?.published)
}

/// The keys of what the family of that name leaves open.
pub fn choices(name: &str) -> Result<&'static [Choice]> {
    Ok(family(name)?.options)
}

impl Architecture {
    /// The architecture of that name.
    pub fn named(name: &str, input: Shape, classes: usize, options: &Options) -> Result<Architecture> {
        let family = family(name)?;
        let options = family.settle(name, options)?;
        let graph = (family.build)(name, input, &options).context("a family knows its names")??;
        Ok(Self::with_classifier(name, graph, classes, options, family.classifier))
    }

    /// One's own, from a list of layers.
    pub fn from_layers(list: &[Layer], input: Shape, classes: usize) -> Result<Architecture> {
        Ok(Self::with_classifier(LAYERS, layers::build(list, input)?, classes, Options::new(), Classifier::pooled))
    }

    fn with_classifier(
        name: &str,
        mut graph: Graph,
        classes: usize,
        options: Options,
        classifier: fn(&mut Graph, usize, &Options) -> Classifier,
    ) -> Architecture {
        let trunk = graph.parameter_len();
        let classifier = classifier(&mut graph, classes, &options);
        Architecture { name: name.to_string(), graph, classes, options, classifier, trunk }
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> usize {
        self.graph.parameter_len()
    }

    /// Multiplications and additions of a forward pass, per image.
    pub fn macs(&self) -> usize {
        self.graph.macs() + self.classifier.macs(self.graph.shape(self.graph.last()))
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
            Architecture::named(name, input, 10, &Options::new()).unwrap().parameters()
        };
        assert_eq!(count("wrn-16-2"), 691_674);
        assert_eq!(count("wrn-40-2"), 2_243_546);
        assert_eq!(count("wrn-40-1"), 563_930);
        assert_eq!(count("resnet20"), 269_722);
    }

    #[test]
    fn published_work_an_image() {
        let input = Shape { channels: 3, h: 32, w: 32 };
        let macs = |name| Architecture::named(name, input, 10, &Options::new()).unwrap().macs() as f64 / 1e6;
        assert!((macs("wrn-16-2") - 101.1).abs() < 0.1, "{}", macs("wrn-16-2"));
        assert!((macs("wrn-40-2") - 327.6).abs() < 0.1, "{}", macs("wrn-40-2"));
    }

    #[test]
    fn unknown_names_are_explained() {
        let input = Shape { channels: 3, h: 32, w: 32 };
        for (name, part) in [("wrn-17-2", "6 N + 4"), ("wrn16-2", "did you mean \"wrn-16-2\""), ("resnet21", "6 N + 2")]
        {
            let error = Architecture::named(name, input, 10, &Options::new()).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
