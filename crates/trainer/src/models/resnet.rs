use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};

use super::{Classifier, Family, OF_CIFAR10};

/// `resnetD`: He et al. 2016 (arXiv 1512.03385, section 4.2), option A, D = 6 N + 2. (`resnet50` is ImageNet's, not this family's.)
pub(super) const RESNET: Family = Family {
    pattern: "resnetD",
    about: "CIFAR residual network, D = 6 N + 2 layers, option A (He et al. 2016)",
    example: "resnet20",
    options: &[],
    published: OF_CIFAR10,
    build: |name, input, _| Some(resnet(name.strip_prefix("resnet")?.parse().ok()?, input)),
    classifier: Classifier::pooled,
};

fn resnet(depth: usize, input: Shape) -> Result<Graph> {
    let fits = (8..=2000).contains(&depth) && (depth - 2).is_multiple_of(6);
    ensure!(fits, "resnet{depth}: the depth must be 6 N + 2 (8, 14, 20, 32, 44, 56, 110, ...)");
    let mut g = Graph::new(input);
    let x = g.conv("conv1", Value(0), 16, 3, 1, 1);
    let mut x = g.batch_norm("bn1", x, true);
    for group in 0..3 {
        for i in 0..(depth - 2) / 6 {
            let (name, stride) = (format!("layer{}.{i}", group + 1), if group > 0 && i == 0 { 2 } else { 1 });
            let channels = 16 << group;
            let y = g.conv(&format!("{name}.conv1"), x, channels, 3, stride, 1);
            let y = g.batch_norm(&format!("{name}.bn1"), y, true);
            let y = g.conv(&format!("{name}.conv2"), y, channels, 3, 1, 1);
            let y = g.batch_norm(&format!("{name}.bn2"), y, false);
            let side = g.subsample(x, stride, channels);
            let y = g.add(y, side);
            x = g.relu(y);
        }
        g.cut(&format!("layer{}", group + 1));
    }
    g.cut("last");
    Ok(g)
}
