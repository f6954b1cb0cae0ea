use anyhow::{Context, Result, bail, ensure};
use kernels::Value;
use kernels::graph::{Graph, Shape};
use serde::{Deserialize, Serialize};

/// One entry of a layer list. A `cut` names the place (`layer1`, ...) at which the model can be cut;
/// the end is always `last`.
///
/// ```toml
/// [[student.layers]]
/// conv = { channels = 32 }
/// [[student.layers]]
/// bn = {}
/// [[student.layers]]
/// relu = {}
/// [[student.layers]]
/// residual = { layers = [{ conv = { channels = 32 } }, { bn = {} }] }
/// [[student.layers]]
/// linear = {}
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// Convolution without bias.
    Conv {
        /// Output channels.
        channels: usize,
        /// Kernel height and width.
        #[serde(default = "three")]
        kernel: usize,
        /// Step.
        #[serde(default = "one")]
        stride: usize,
        /// Zero pixels around the image; half the kernel where not given.
        padding: Option<usize>,
    },
    /// BatchNorm.
    Bn {},
    /// ReLU.
    Relu {},
    /// Pooling.
    Pool {
        /// Window.
        #[serde(default = "two")]
        kernel: usize,
        /// Step; the window where not given.
        stride: Option<usize>,
        /// Mean instead of maximum.
        #[serde(default)]
        mean: bool,
    },
    /// The layers, plus their input: as it is, or through a 1x1 convolution where the shape changes.
    Residual {
        /// What the input is added to.
        layers: Vec<Layer>,
    },
    /// A place at which the model can be cut.
    Cut {
        /// Its name: layer1, layer2 or layer3.
        name: String,
    },
    /// Average pooling over all positions and the classifier; must be last, and is understood if absent.
    Linear {},
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn three() -> usize {
    3
}

/// Builds the trunk.
pub fn build(list: &[Layer], input: Shape) -> Result<Graph> {
    let list = match list {
        [trunk @ .., Layer::Linear {}] => trunk,
        all => all,
    };
    ensure!(!list.is_empty(), "a layer list needs at least one layer before the classifier");
    let mut g = Graph::new(input);
    sequence(&mut g, "layers", list, Value(0), true)?;
    g.cut("last");
    Ok(g)
}

fn sequence(g: &mut Graph, prefix: &str, list: &[Layer], mut x: Value, top: bool) -> Result<Value> {
    let start = x;
    for (i, layer) in list.iter().enumerate() {
        let name = format!("{prefix}.{i}");
        if !top && x == start && *layer == (Layer::Relu {}) {
            x = g.separate_relu(x); // The residual's other arm reads its input.
            continue;
        }
        x = one_layer(g, &name, layer, x, top).with_context(|| format!("layer {name}"))?;
    }
    Ok(x)
}

fn one_layer(g: &mut Graph, name: &str, layer: &Layer, x: Value, top: bool) -> Result<Value> {
    let Shape { h, w, .. } = g.shape(x);
    Ok(match layer {
        Layer::Conv { channels, kernel, stride, padding } => {
            let padding = padding.unwrap_or(kernel / 2);
            ensure!(
                (1..=4096).contains(channels)
                    && (1..=15).contains(kernel)
                    && (1..=8).contains(stride)
                    && padding <= *kernel,
                "a convolution takes 1 to 4096 channels, a kernel of 1 to 15, a stride of 1 to 8 and a padding of at most the kernel"
            );
            ensure!(
                h.min(w) + 2 * padding >= *kernel,
                "a kernel of {kernel} does not fit into {h} x {w} pixels with padding {padding}"
            );
            g.conv(name, x, *channels, *kernel, *stride, padding)
        }
        Layer::Bn {} => g.batch_norm(name, x, false),
        Layer::Relu {} => g.relu(x),
        Layer::Pool { kernel, stride, mean } => {
            let stride = stride.unwrap_or(*kernel);
            ensure!(
                (1..=15).contains(kernel) && stride >= 1,
                "pooling takes a window of 1 to 15 and a stride of at least 1"
            );
            ensure!(h.min(w) >= *kernel, "a window of {kernel} does not fit into {h} x {w} pixels");
            g.pool(x, *kernel, stride, !mean)
        }
        Layer::Residual { layers } => {
            let y = sequence(g, name, layers, x, false)?;
            let out = g.shape(y);
            let side = if out == g.shape(x) {
                x
            } else {
                let stride = h / out.h.max(1);
                let fits = stride >= 1 && h.div_ceil(stride) == out.h && w.div_ceil(stride) == out.w;
                ensure!(
                    fits,
                    "the residual goes from {h} x {w} to {} x {} pixels, which no 1x1 convolution can follow",
                    out.h,
                    out.w
                );
                g.conv(&format!("{name}.shortcut"), x, out.channels, 1, stride, 0)
            };
            ensure!(y != x, "a residual needs at least one layer");
            g.add(y, side)
        }
        Layer::Cut { name } => {
            ensure!(top, "a cut cannot stand inside a residual: two values are alive there");
            ensure!(
                ["layer1", "layer2", "layer3"].contains(&name.as_str()),
                "unknown cut \"{name}\"; accepted: layer1, layer2, layer3"
            );
            ensure!(!g.cuts.iter().any(|(n, _)| n == name), "the cut {name} stands twice");
            g.cut(name);
            x
        }
        Layer::Linear {} => bail!("linear (average pooling and the classifier) must be the last layer"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct List {
        layers: Vec<Layer>,
    }

    fn from(text: &str) -> Result<Graph> {
        build(&toml::from_str::<List>(text)?.layers, Shape { channels: 3, h: 32, w: 32 })
    }

    #[test]
    fn a_list_becomes_a_graph() {
        let g = from(
            "layers = [{ conv = { channels = 8 } }, { bn = {} }, { relu = {} }, { cut = { name = 'layer1' } },
              { residual = { layers = [{ conv = { channels = 16, stride = 2 } }, { bn = {} }, { relu = {} }] } },
              { pool = {} }, { linear = {} }]",
        )
        .unwrap();
        assert_eq!(g.shape(g.last()), Shape { channels: 16, h: 8, w: 8 });
        assert_eq!(g.cuts.len(), 2);
        // conv 3*8*9, bn 16, conv 8*16*9, bn 32, shortcut 8*16
        assert_eq!(g.parameter_len(), 216 + 16 + 1152 + 32 + 128);
    }

    #[test]
    fn impossible_lists_are_explained() {
        for (text, part) in [
            ("layers = [{ linear = {} }]", "at least one layer"),
            ("layers = [{ conv = { channels = 0 } }]", "1 to 4096"),
            ("layers = [{ pool = { kernel = 15 } }, { pool = { kernel = 15 } }]", "does not fit"),
            ("layers = [{ linear = {} }, { relu = {} }]", "must be the last"),
            ("layers = [{ gelu = {} }]", "unknown variant `gelu`"),
            (
                "layers = [{ conv = { channels = 8, strid = 2 } }]",
                "unexpected keys in table: strid, available keys: channels",
            ),
        ] {
            let error = format!("{:#}", from(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
