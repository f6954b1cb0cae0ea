use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};

use super::{Choice, Classifier, Family, OF_CIFAR10, Options};

/// `wrn-D-K`: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), pre-activation blocks, D = 6 N + 4. Its 1x1 shortcut reads
/// relu(bn1(x)), as in the attention-transfer code, or x itself: weights of both kinds are about.
pub(super) const WRN: Family = Family {
    pattern: "wrn-D-K",
    about: "wide residual network, D = 6 N + 4 layers, width K (Zagoruyko & Komodakis 2016)",
    example: "wrn-16-2",
    options: &[Choice { name: "shortcut", words: &["preact", "raw"], of_head: false }],
    published: OF_CIFAR10,
    build,
    classifier: Classifier::pooled,
};

fn build(name: &str, input: Shape, options: &Options) -> Option<Result<Graph>> {
    let (depth, width) = name.strip_prefix("wrn-")?.split_once('-')?;
    let (depth, width): (usize, usize) = (depth.parse().ok()?, width.parse().ok()?);
    Some(wrn(depth, width, input, options.get("shortcut").is_some_and(|word| word == "raw")))
}

fn wrn(depth: usize, width: usize, input: Shape, raw: bool) -> Result<Graph> {
    ensure!(
        depth >= 10 && (depth - 4).is_multiple_of(6),
        "wrn-{depth}-{width}: the depth must be 6 N + 4 (10, 16, 22, 28, 40, ...)"
    );
    ensure!(
        (1..=20).contains(&width) && depth <= 1000,
        "wrn-{depth}-{width}: the width must be 1 to 20, the depth at most 1000"
    );
    let mut g = Graph::new(input);
    let mut x = g.conv("conv1", Value(0), 16, 3, 1, 1);
    for group in 0..3 {
        for i in 0..(depth - 4) / 6 {
            let stride = if group > 0 && i == 0 { 2 } else { 1 };
            x = block(&mut g, &format!("layer{}.{i}", group + 1), x, (16 << group) * width, stride, raw);
        }
        g.cut(&format!("layer{}", group + 1));
    }
    g.batch_norm("bn1", x, true);
    g.cut("last");
    Ok(g)
}

fn block(g: &mut Graph, name: &str, x: Value, channels: usize, stride: usize, raw: bool) -> Value {
    let o = g.batch_norm(&format!("{name}.bn1"), x, true);
    let y = g.conv(&format!("{name}.conv1"), o, channels, 3, stride, 1);
    let same = stride == 1 && g.shape(x).channels == channels;
    let side =
        if same { x } else { g.conv(&format!("{name}.shortcut"), if raw { x } else { o }, channels, 1, stride, 0) };
    let y = g.batch_norm(&format!("{name}.bn2"), y, true);
    let y = g.conv(&format!("{name}.conv2"), y, channels, 3, 1, 1);
    g.add(y, side)
}
