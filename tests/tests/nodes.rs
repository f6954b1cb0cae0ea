//! Every node of a graph by the CPU kernels and by candle's ops: the same outputs and gradients.

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::graph::{Graph, Shape};
use kernels::pool::Window;
use kernels::stage::{Memory, Mode, Stage};
use kernels::{Isa, Precision, Value};
use testkit::{assert_close, numbers, tensor, values};
use trainer::nn::by_ops;

/// A fire module, biased convolutions with and without a ReLU, a sum, a BatchNorm.
fn fire(g: &mut Graph) {
    let s = g.conv_biased("squeeze", Value(0), 4, 1, 1, 0);
    let s = g.relu(s);
    let a = g.conv_biased("expand1x1", s, 6, 1, 1, 0);
    let a = g.relu(a);
    let b = g.conv_biased("expand3x3", s, 8, 3, 1, 1);
    let b = g.relu(b);
    let x = g.concat(a, b);
    let y = g.conv_biased("conv", x, 14, 3, 1, 1);
    let y = g.add(x, y);
    let y = g.batch_norm("bn", y, true);
    let y = g.conv("downsample", y, 5, 1, 2, 0);
    g.relu(y);
}

fn compare(what: &str, graph: &Graph) -> Result<()> {
    let device = Device::Cpu;
    let stage = Stage::new(graph.clone(), &Memory::new(Isa::best()));
    let parameters = Var::from_tensor(&tensor(&[graph.parameter_len().max(1)], 1, DType::F64, &device)?)?;
    let Shape { channels, h, w } = graph.shapes[0];
    let images = Var::from_tensor(&tensor(&[3, channels, h, w], 2, DType::F64, &device)?)?;
    let running: Vec<f32> = numbers(graph.statistics_len(), 3).into_iter().map(|x| x.abs() as f32 + 0.5).collect();
    for mode in [Mode::Train, Mode::Eval] {
        let outcome = |y: Tensor| -> Result<[Vec<f64>; 3]> {
            let grads = (&y * tensor(y.dims(), 4, DType::F64, &device)?)?.sum_all()?.backward()?;
            let of = |v: &Var| grads.get(v).map_or(Ok(vec![]), values);
            Ok([values(&y)?, of(&images)?, of(&parameters)?])
        };
        let ours = outcome(stage.forward(&images, &parameters, &running, mode, Precision::F32)?.0)?;
        let candles = outcome(by_ops::forward(
            graph,
            &images,
            &parameters,
            &Tensor::new(running.as_slice(), &Device::Cpu)?,
            mode,
            &mut vec![],
        )?)?;
        for (name, (a, b)) in ["output", "images", "parameters"].into_iter().zip(ours.iter().zip(&candles)) {
            if !b.is_empty() {
                assert_close(&format!("{what}, {mode:?}: {name}"), a, b, 1e-11);
            }
        }
    }
    Ok(())
}

#[test]
fn biases_relus_and_concatenations() -> Result<()> {
    // Square: candle's gradient of a strided convolution takes the height's remainder for the width's too.
    let mut g = Graph::new(Shape { channels: 3, h: 9, w: 9 });
    fire(&mut g);
    compare("fire", &g)
}

#[test]
fn pooling_with_padding_and_ceil_mode() -> Result<()> {
    for (k, stride, padding, ceil_mode) in
        [(2, 2, 0, false), (2, 2, 0, true), (3, 2, 1, false), (3, 2, 1, true), (3, 2, 0, true), (2, 3, 1, true)]
    {
        for max in [true, false] {
            for (h, w) in [(7, 8), (6, 5)] {
                let mut g = Graph::new(Shape { channels: 3, h, w });
                let window = Window { k, stride, padding, ceil_mode };
                g.pool_window(Value(0), window, max);
                compare(&format!("{window:?} max {max} {h}x{w}"), &g)?;
            }
        }
    }
    Ok(())
}
