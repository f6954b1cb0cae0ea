//! Two graphs that have every node and every fusion, with images and numbers for them.

use candle_core::{DType, Device, Result, Tensor};
use kernels::Value;
use kernels::graph::{Graph, Shape};
use kernels::pool::Window;
use testkit::{numbers, tensor};

/// A pre-activation block with a projection, one without, a post-activation block with a parameter-free
/// shortcut, both poolings, a bare ReLU: every node and every fusion.
pub fn network() -> Graph {
    let mut g = Graph::new(Shape { channels: 3, h: 9, w: 7 });
    let x = g.conv("conv1", Value(0), 8, 3, 1, 1);
    let o = g.batch_norm("a.bn1", x, true);
    let y = g.conv("a.conv1", o, 12, 3, 2, 1);
    let y = g.batch_norm("a.bn2", y, true);
    let s = g.conv("a.shortcut", o, 12, 1, 2, 0);
    let y = g.conv("a.conv2", y, 12, 3, 1, 1);
    let x = g.add(y, s);
    g.cut("layer1");
    let y = g.batch_norm("b.bn1", x, true);
    let y = g.conv("b.conv1", y, 12, 3, 1, 1);
    let x = g.add(x, y);
    let y = g.conv("c.conv1", x, 16, 3, 2, 1);
    let y = g.batch_norm("c.bn1", y, false);
    let s = g.subsample(x, 2, 16);
    let y = g.add(y, s);
    let y = g.relu(y);
    let y = g.pool(y, 2, 1, true);
    let y = g.pool(y, 1, 1, false);
    g.cut("layer2");
    let y = g.conv("d.conv", y, 8, 1, 1, 0);
    let y = g.batch_norm("d.bn", y, true);
    assert_eq!(y, g.last());
    g.cut("last");
    g
}

/// Biases, ReLUs behind convolutions, padded and cut-off pooling, a fire module, a biased summand, a BatchNorm and a
/// convolution behind a ReLU, a block with a normalised shortcut: what VGG, SqueezeNet and torchvision's ResNets need
/// beyond [`network`].
pub fn biased() -> Graph {
    let mut g = Graph::new(Shape { channels: 3, h: 13, w: 11 });
    let x = g.conv_biased("features.0", Value(0), 8, 5, 2, 2);
    let x = g.relu(x);
    let x = g.pool_window(x, Window { padding: 1, ..Window::new(3, 2) }, true);
    let s = g.conv_biased("fire.squeeze", x, 5, 1, 1, 0);
    let s = g.relu(s);
    let e1 = g.conv_biased("fire.expand1x1", s, 9, 1, 1, 0);
    let e1 = g.relu(e1);
    let e3 = g.conv_biased("fire.expand3x3", s, 8, 3, 1, 1);
    let e3 = g.relu(e3);
    let x = g.concat(e1, e3);
    g.cut("fire");
    let y = g.conv_biased("sum.conv", x, 17, 3, 1, 1);
    let x = g.add(y, x);
    let y = g.batch_norm("sum.bn", x, true);
    let x = g.conv_biased("behind", y, 10, 3, 1, 1);
    let x = g.relu(x);
    let x = g.batch_norm("late.bn", x, false);
    let y = g.conv("block.conv1", x, 12, 3, 1, 1);
    let y = g.batch_norm("block.bn1", y, true);
    let y = g.conv_biased("block.conv2", y, 10, 3, 1, 1);
    let y = g.batch_norm("block.bn2", y, false);
    let s = g.conv("block.downsample.0", x, 10, 1, 1, 0);
    let s = g.batch_norm("block.downsample.1", s, false);
    let y = g.add(y, s);
    let y = g.relu(y);
    let y = g.pool_window(y, Window { ceil_mode: true, ..Window::new(3, 2) }, false);
    g.cut("pooled");
    let y = g.pool_window(y, Window { ceil_mode: true, padding: 1, ..Window::new(2, 3) }, true);
    let y = g.concat(y, y);
    let y = g.conv_biased("last", y, 8, 1, 1, 0);
    g.relu(y);
    g.cut("last");
    g
}

/// Both.
pub fn networks() -> [Graph; 2] {
    [network(), biased()]
}

/// Images for a network.
pub fn images(g: &Graph, n: usize, dtype: DType) -> Result<Tensor> {
    let Shape { channels, h, w } = g.shapes[0];
    tensor(&[n, channels, h, w], 10, dtype, &Device::Cpu)
}

/// Of a size at which gradients neither vanish nor explode.
pub fn parameters(g: &Graph) -> Vec<f64> {
    numbers(g.parameter_len(), 11).into_iter().map(|x| x * 0.5).collect()
}

/// Running statistics.
pub fn running(g: &Graph) -> Vec<f32> {
    numbers(g.statistics_len(), 12).into_iter().map(|x| x.abs() as f32 + 0.5).collect()
}
