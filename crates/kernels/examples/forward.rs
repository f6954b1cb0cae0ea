//! Times the trunks of torchvision's VGG-16, ResNet-18, ResNet-50 and SqueezeNet 1.1 on images of 224x224, in eval mode.
//!
//! `cargo run --release -p kernels --example forward -- [networks] [batch=8] [repeats=5] [side=224] [threads=N] [precision=f32]`
//! prints for each the median, its speed by the definition's operations, and its share of what the multipliers reach.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use kernels::graph::{Graph, Init, Shape};
use kernels::peak::{self, Numbers};
use kernels::pool::Window;
use kernels::stage::{Memory, Mode, Stage};
use kernels::{Isa, Precision, Value};

type Error = Box<dyn std::error::Error>;

fn vgg16(side: usize) -> Graph {
    let mut g = Graph::new(Shape { channels: 3, h: side, w: side });
    let (mut x, mut layer) = (Value(0), 0);
    for (convolutions, channels) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)] {
        for _ in 0..convolutions {
            x = g.conv_biased(&format!("features.{layer}"), x, channels, 3, 1, 1);
            x = g.relu(x);
            layer += 2;
        }
        x = g.pool(x, 2, 2, true);
        layer += 1;
    }
    g
}

fn resnet(side: usize, blocks: [usize; 4], bottleneck: bool) -> Graph {
    let mut g = Graph::new(Shape { channels: 3, h: side, w: side });
    let x = g.conv("conv1", Value(0), 64, 7, 2, 3);
    let x = g.batch_norm("bn1", x, true);
    let mut x = g.pool_window(x, Window { padding: 1, ..Window::new(3, 2) }, true);
    for (i, (count, width)) in blocks.into_iter().zip([64, 128, 256, 512]).enumerate() {
        for block in 0..count {
            let stride = if block == 0 && i > 0 { 2 } else { 1 };
            x = residual(&mut g, x, &format!("layer{}.{block}", i + 1), (width, stride), bottleneck);
        }
    }
    g
}

fn residual(g: &mut Graph, x: Value, name: &str, (width, stride): (usize, usize), bottleneck: bool) -> Value {
    let channels = if bottleneck { 4 * width } else { width };
    // (channels, kernel, stride) of each convolution: torchvision's ResNet-50 puts the stride on the 3x3.
    let layers = if bottleneck {
        vec![(width, 1, 1), (width, 3, stride), (channels, 1, 1)]
    } else {
        vec![(width, 3, stride), (width, 3, 1)]
    };
    let mut y = x;
    for (i, (c, k, stride)) in layers.iter().enumerate() {
        y = g.conv(&format!("{name}.conv{}", i + 1), y, *c, *k, *stride, k / 2);
        y = g.batch_norm(&format!("{name}.bn{}", i + 1), y, i + 1 < layers.len());
    }
    let mut shortcut = x;
    if stride > 1 || g.shape(x).channels != channels {
        shortcut = g.conv(&format!("{name}.downsample.0"), x, channels, 1, stride, 0);
        shortcut = g.batch_norm(&format!("{name}.downsample.1"), shortcut, false);
    }
    let y = g.add(y, shortcut);
    g.relu(y)
}

fn squeezenet(side: usize) -> Graph {
    let mut g = Graph::new(Shape { channels: 3, h: side, w: side });
    let biased = |g: &mut Graph, name: &str, x, c_out, k, stride| {
        let y = g.conv_biased(name, x, c_out, k, stride, if k == 3 && stride == 1 { 1 } else { 0 });
        g.relu(y)
    };
    let mut x = biased(&mut g, "features.0", Value(0), 64, 3, 2);
    for (i, squeeze) in [(3, 16), (4, 16), (6, 32), (7, 32), (9, 48), (10, 48), (11, 64), (12, 64)] {
        if [3, 6, 9].contains(&i) {
            x = g.pool_window(x, Window { ceil_mode: true, ..Window::new(3, 2) }, true);
        }
        let name = format!("features.{i}");
        let s = biased(&mut g, &format!("{name}.squeeze"), x, squeeze, 1, 1);
        let a = biased(&mut g, &format!("{name}.expand1x1"), s, 4 * squeeze, 1, 1);
        let b = biased(&mut g, &format!("{name}.expand3x3"), s, 4 * squeeze, 3, 1);
        x = g.concat(a, b);
    }
    g
}

/// Numbers in [-1, 1).
fn noise(len: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn parameters(g: &Graph) -> Vec<f32> {
    let mut all: Vec<f32> = noise(g.parameter_len()).collect();
    for e in &g.parameters {
        let scale = match e.init {
            Init::Kaiming { fan_in } => (6.0 / fan_in as f32).sqrt(),
            _ => 0.1,
        };
        let shift = if e.init == Init::Gamma { 1.0 } else { 0.0 };
        all[e.range()].iter_mut().for_each(|p| *p = *p * scale + shift);
    }
    all
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str, default: usize| option(key).map_or(Ok(default), str::parse);
    let (batch, repeats, side) = (number("batch", 8)?, number("repeats", 5)?, number("side", 224)?);
    if let Some(threads) = option("threads") {
        rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    }
    let precision = match option("precision").unwrap_or("f32") {
        "full" => Precision::Full,
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    let peak = peak::gflops(Isa::best(), if precision == Precision::Bf16 { Numbers::Bf16 } else { Numbers::F32 });
    println!("{:?}, {} threads, {peak:.0} GFLOP/s at most, {precision:?}", Isa::best(), rayon::current_num_threads());
    let networks = [
        ("vgg16", vgg16(side)),
        ("resnet18", resnet(side, [2, 2, 2, 2], false)),
        ("resnet50", resnet(side, [3, 4, 6, 3], true)),
        ("squeezenet1_1", squeezenet(side)),
    ];
    let wanted: Vec<_> = arguments.iter().filter(|a| !a.contains('=')).collect();
    for (name, graph) in networks.into_iter().filter(|(n, _)| wanted.is_empty() || wanted.iter().any(|w| w == n)) {
        let parameters = Tensor::new(parameters(&graph), &Device::Cpu)?;
        let mut running = vec![0.0; graph.statistics_len()];
        graph.statistics.iter().skip(1).step_by(2).for_each(|e| running[e.range()].fill(1.0));
        let images = Tensor::from_iter(noise(batch * graph.shapes[0].len()), &Device::Cpu)?;
        let images = images.reshape((batch, 3, side, side))?.to_dtype(DType::F32)?;
        let flop = 2.0 * (graph.macs() * batch) as f64;
        let stage = Stage::new(graph, &Memory::new(Isa::best()));
        let mut times = Vec::new();
        for _ in 0..=repeats {
            let clock = Instant::now();
            stage.forward(&images, &parameters, &running, Mode::Eval, precision)?;
            times.push(clock.elapsed().as_secs_f64() * 1e3);
        }
        // The first pass fetches the memory.
        times.remove(0);
        times.sort_by(f64::total_cmp);
        let ms = times[times.len() / 2];
        let gflops = flop / ms / 1e6;
        println!(
            "{name:14} batch {batch}: {ms:8.1} ms (fastest {:.1}), {gflops:5.0} GFLOP/s, {:.2} of the most",
            times[0],
            gflops / peak
        );
    }
    Ok(())
}
