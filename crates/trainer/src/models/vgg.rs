use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};

use super::{Classifier, Family, OF_IMAGENET, Options, Step};

/// `vggD`, `vggD_bn`: Simonyan & Zisserman 2015 (arXiv 1409.1556), torchvision's layout and names. `layer1` to `layer5` are the outputs of the
/// five blocks in front of their pooling, `last` is what the last pooling leaves (7 x 7 of 224 x 224).
pub(super) const VGG: Family = Family {
    pattern: "vgg{11,13,16,19}[_bn]",
    about: "VGG in torchvision's layout, with or without BatchNorm (Simonyan & Zisserman 2015)",
    example: "vgg16",
    options: &[],
    published: OF_IMAGENET,
    build: |name, input, _| {
        let rest = name.strip_prefix("vgg")?;
        let (depth, bn) = rest.strip_suffix("_bn").map_or((rest, false), |depth| (depth, true));
        // Convolutions in each of the five blocks.
        let blocks = match depth {
            "11" => [1, 1, 2, 2, 2],
            "13" => [2, 2, 2, 2, 2],
            "16" => [2, 2, 3, 3, 3],
            "19" => [2, 2, 4, 4, 4],
            _ => return None,
        };
        Some(vgg(blocks, bn, input))
    },
    classifier,
};

fn vgg(blocks: [usize; 5], bn: bool, input: Shape) -> Result<Graph> {
    ensure!(input.h.min(input.w) >= 32, "VGG takes images of at least 32 x 32 pixels");
    let mut g = Graph::new(input);
    let (mut x, mut at) = (Value(0), 0);
    for (block, (convolutions, channels)) in blocks.into_iter().zip([64, 128, 256, 512, 512]).enumerate() {
        for _ in 0..convolutions {
            x = g.conv_biased(&format!("features.{at}"), x, channels, 3, 1, 1);
            if bn {
                x = g.batch_norm(&format!("features.{}", at + 1), x, false);
            }
            x = g.relu(x);
            // Convolution, perhaps BatchNorm, ReLU: torchvision counts each of them.
            at += if bn { 3 } else { 2 };
        }
        g.cut(&format!("layer{}", block + 1));
        x = g.pool(x, 2, 2, true);
        at += 1;
    }
    g.cut("last");
    Ok(g)
}

fn classifier(g: &mut Graph, classes: usize, _: &Options) -> Classifier {
    const SIDE: usize = 7;
    let inputs = g.shape(g.last()).channels * SIDE * SIDE;
    let mut steps = vec![Step::AdaptivePool(SIDE), Step::Flatten];
    for (name, inputs) in [("classifier.0", inputs), ("classifier.3", 4096)] {
        steps.extend([Classifier::linear(g, name, inputs, 4096), Step::Relu, Step::Dropout(0.5)]);
    }
    steps.push(Classifier::linear(g, "classifier.6", 4096, classes));
    Classifier { steps }
}
