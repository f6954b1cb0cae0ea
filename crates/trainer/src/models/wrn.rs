use anyhow::{Result, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};

use super::Shortcut;

/// `wrn-D-K`: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), pre-activation blocks, D = 6 N + 4.
pub fn build(name: &str, input: Shape, shortcut: Shortcut) -> Option<Result<Graph>> {
    let (depth, width) = name.strip_prefix("wrn-")?.split_once('-')?;
    let (depth, width): (usize, usize) = (depth.parse().ok()?, width.parse().ok()?);
    Some(wrn(depth, width, input, shortcut))
}

fn wrn(depth: usize, width: usize, input: Shape, shortcut: Shortcut) -> Result<Graph> {
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
            x = block(&mut g, &format!("layer{}.{i}", group + 1), x, (16 << group) * width, stride, shortcut);
        }
        g.cut(&format!("layer{}", group + 1));
    }
    g.batch_norm("bn1", x, true);
    g.cut("last");
    Ok(g)
}

fn block(g: &mut Graph, name: &str, x: Value, channels: usize, stride: usize, shortcut: Shortcut) -> Value {
    let o = g.batch_norm(&format!("{name}.bn1"), x, true);
    let y = g.conv(&format!("{name}.conv1"), o, channels, 3, stride, 1);
    let same = stride == 1 && g.shape(x).channels == channels;
    let side = match shortcut {
        _ if same => x,
        Shortcut::Preact => g.conv(&format!("{name}.shortcut"), o, channels, 1, stride, 0),
        Shortcut::Raw => g.conv(&format!("{name}.shortcut"), x, channels, 1, stride, 0),
    };
    let y = g.batch_norm(&format!("{name}.bn2"), y, true);
    let y = g.conv(&format!("{name}.conv2"), y, channels, 3, 1, 1);
    g.add(y, side)
}
