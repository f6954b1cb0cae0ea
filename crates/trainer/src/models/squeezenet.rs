use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};
use kernels::pool::Window;

use super::{Choice, Classifier, Family, OF_IMAGENET, Step};

/// `squeezenet1_0`, `squeezenet1_1`: Iandola et al. 2016 (arXiv 1602.07360), torchvision's layout and names. `layer1` to `layer3` are what the
/// three poolings leave, `last` is the last fire module's output: its classifier is a convolution, a ReLU and average pooling.
pub(super) const SQUEEZENET: Family = Family {
    pattern: "squeezenet1_{0,1}",
    about: "SqueezeNet in torchvision's layout (Iandola et al. 2016)",
    example: "squeezenet1_1",
    // The first Caffe model pads what its last convolution reads; torchvision's does not. Behind the ReLU no logit is
    // below 0 and no sigmoid below 1/2: a model that says of each class whether it is shown does without.
    options: &[
        Choice { name: PADDING, words: &["0", "1"], of_head: true },
        Choice { name: RELU, words: &["yes", "no"], of_head: true },
    ],
    published: OF_IMAGENET,
    build: |name, input, _| match name {
        "squeezenet1_0" => Some(squeezenet(input, (96, 7), [3, 4, 1])),
        "squeezenet1_1" => Some(squeezenet(input, (64, 3), [2, 2, 4])),
        _ => None,
    },
    classifier: |g, classes, options| {
        let inputs = g.shape(g.last()).channels;
        let padding = usize::from(options.get(PADDING).is_some_and(|word| word == "1"));
        let conv = Classifier::conv(g, "classifier.1", inputs, classes);
        let mut steps = vec![Step::Dropout(0.5)];
        steps.extend((padding > 0).then_some(Step::Pad(padding)));
        steps.push(conv);
        steps.extend(options.get(RELU).is_none_or(|word| word == "yes").then_some(Step::Relu));
        steps.push(Step::Pool);
        Classifier { steps }
    },
};

/// Of the convolution that makes the classes, and what follows it.
const PADDING: &str = "classifier_padding";
const RELU: &str = "classifier_relu";

/// Channels of the fire modules: squeezed, then of each expansion.
const FIRES: [[usize; 2]; 8] = [[16, 64], [16, 64], [32, 128], [32, 128], [48, 192], [48, 192], [64, 256], [64, 256]];

/// `groups` are the numbers of fire modules between poolings.
fn squeezenet(input: Shape, (channels, k): (usize, usize), groups: [usize; 3]) -> Result<Graph> {
    ensure!(input.h.min(input.w) >= 48, "SqueezeNet takes images of at least 48 x 48 pixels");
    let mut g = Graph::new(input);
    let x = g.conv_biased("features.0", Value(0), channels, k, 2, 0);
    let mut x = g.relu(x);
    // Convolution and ReLU are torchvision's 0 and 1.
    let (mut at, mut fires) = (2, FIRES.into_iter());
    for (group, count) in groups.into_iter().enumerate() {
        x = g.pool_window(x, Window { k: 3, stride: 2, padding: 0, ceil_mode: true }, true);
        g.cut(&format!("layer{}", group + 1));
        at += 1;
        for [squeeze, expand] in fires.by_ref().take(count) {
            x = fire(&mut g, &format!("features.{at}"), x, squeeze, expand);
            at += 1;
        }
    }
    g.cut("last");
    Ok(g)
}

fn fire(g: &mut Graph, name: &str, x: Value, squeeze: usize, expand: usize) -> Value {
    let s = g.conv_biased(&format!("{name}.squeeze"), x, squeeze, 1, 1, 0);
    let s = g.relu(s);
    let a = g.conv_biased(&format!("{name}.expand1x1"), s, expand, 1, 1, 0);
    let a = g.relu(a);
    let b = g.conv_biased(&format!("{name}.expand3x3"), s, expand, 3, 1, 1);
    let b = g.relu(b);
    g.concat(a, b)
}
