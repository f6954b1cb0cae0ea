use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};
use kernels::pool::Window;

use super::{Classifier, Family, OF_IMAGENET};

/// `resnet18`, `resnet34`, `resnet50`: He et al. 2016 (arXiv 1512.03385, table 1), torchvision's layout and names: in a bottleneck the 3x3
/// convolution has the stride.
pub(super) const RESNET_IMAGENET: Family = Family {
    pattern: "resnet{18,34,50}",
    about: "ImageNet residual network in torchvision's layout (He et al. 2016)",
    example: "resnet18",
    options: &[],
    published: OF_IMAGENET,
    build: |name, input, _| {
        let (blocks, bottleneck) = match name {
            "resnet18" => ([2, 2, 2, 2], false),
            "resnet34" => ([3, 4, 6, 3], false),
            "resnet50" => ([3, 4, 6, 3], true),
            _ => return None,
        };
        Some(resnet(blocks, bottleneck, input))
    },
    classifier: Classifier::pooled,
};

fn resnet(blocks: [usize; 4], bottleneck: bool, input: Shape) -> Result<Graph> {
    ensure!(input.h.min(input.w) >= 32, "an ImageNet ResNet takes images of at least 32 x 32 pixels");
    let mut g = Graph::new(input);
    let x = g.conv("conv1", Value(0), 64, 7, 2, 3);
    let x = g.batch_norm("bn1", x, true);
    let mut x = g.pool_window(x, Window { k: 3, stride: 2, padding: 1, ceil_mode: false }, true);
    for (group, count) in blocks.into_iter().enumerate() {
        for i in 0..count {
            let (name, stride) = (format!("layer{}.{i}", group + 1), if group > 0 && i == 0 { 2 } else { 1 });
            x = block(&mut g, &name, x, 64 << group, stride, bottleneck);
        }
        g.cut(&format!("layer{}", group + 1));
    }
    g.cut("last");
    Ok(g)
}

fn block(g: &mut Graph, name: &str, x: Value, width: usize, stride: usize, bottleneck: bool) -> Value {
    let out = if bottleneck { 4 * width } else { width };
    let layers = if bottleneck {
        vec![(width, 1, 1), (width, 3, stride), (out, 1, 1)]
    } else {
        vec![(out, 3, stride), (out, 3, 1)]
    };
    let (last, mut y) = (layers.len(), x);
    for (i, (channels, k, stride)) in layers.into_iter().enumerate() {
        y = g.conv(&format!("{name}.conv{}", i + 1), y, channels, k, stride, k / 2);
        y = g.batch_norm(&format!("{name}.bn{}", i + 1), y, i + 1 < last);
    }
    let mut side = x;
    if stride > 1 || g.shape(x).channels != out {
        side = g.conv(&format!("{name}.downsample.0"), x, out, 1, stride, 0);
        side = g.batch_norm(&format!("{name}.downsample.1"), side, false);
    }
    let y = g.add(y, side);
    g.relu(y)
}
