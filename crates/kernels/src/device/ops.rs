//! One function a kernel. Activations are (n, h, w, c) throughout, of type T; a bf16 network's weights, statistics and
//! sums are f32.

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, Numbers, suffix};
use crate::pool::PoolShape;
use crate::sgd::SgdStep;
use crate::task::ConvShape;

/// What sums of a type, and parameters behind it, are computed in.
pub fn wide(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

fn geometry(s: &ConvShape, units: usize) -> Result<Numbers> {
    Numbers::new(&[s.h, s.w, units, s.k, s.stride, s.padding, s.out_h(), s.out_w()], &[])
}

/// Windows as rows: x (n, h, w, c) to (n * oh * ow, k * k * c), zero outside the image.
pub fn im2col(x: &Tensor, s: &ConvShape) -> Result<Tensor> {
    let (n, _, _, c) = x.dims4()?;
    let (rows, dtype) = (n * s.out_h() * s.out_w(), x.dtype());
    let size = dtype.size_in_bytes();
    // As much at a time as lies together, up to 16 bytes, where the memory begins on such a border.
    let start = x.storage_and_layout().1.start_offset() * size;
    let at_a_time = [16, 8, 4].into_iter().find(|bytes| bytes % size == 0 && (c * size).is_multiple_of(*bytes));
    let bytes = at_a_time.filter(|bytes| start.is_multiple_of(*bytes)).unwrap_or(size);
    let units = c * size / bytes;
    let (work, numbers) = (rows * s.k * s.k * units, geometry(s, units)?);
    let launch = Launch { kernel: format!("im2col_{bytes}"), work, blocks: false, numbers };
    suffix(dtype)?;
    launch.run(&[x], (rows, s.k * s.k * c), dtype)
}

/// The adjoint of [`im2col`]: rows (n * oh * ow, k * k * c) added up where they came from, (n, h, w, c).
pub fn col2im(rows: &Tensor, s: &ConvShape, n: usize) -> Result<Tensor> {
    let c = rows.dim(1)? / (s.k * s.k);
    let aligned = rows.storage_and_layout().1.start_offset().is_multiple_of(4);
    let (kernel, units) = if c.is_multiple_of(4) && aligned { ("col2im4", c / 4) } else { ("col2im", c) };
    let launch = Launch::items(kernel, rows.dtype(), n * s.h * s.w * units, geometry(s, units)?)?;
    launch.run(&[rows], (n, s.h, s.w, c), rows.dtype())
}

fn of_weight(s: &ConvShape) -> Result<Numbers> {
    Numbers::new(&[s.c_out, s.c_in, s.k * s.k], &[])
}

/// A weight (c_out, c_in, k, k) as the right side of a product, (k * k * c_in, c_out), in `dtype`.
pub fn pack_weight(weight: &Tensor, s: &ConvShape, dtype: DType) -> Result<Tensor> {
    let launch = Launch::items("pack_weight", dtype, s.weight_len(), of_weight(s)?)?;
    launch.run(&[weight], (s.k * s.k * s.c_in, s.c_out), dtype)
}

/// The gradient of that, as the gradient of the weight, into `to` (c_out * c_in * k * k,).
pub fn unpack_weight(packed: &Tensor, s: &ConvShape, to: &Tensor) -> Result<()> {
    let launch = Launch::items("unpack_weight", packed.dtype(), s.weight_len(), of_weight(s)?)?;
    launch.run_into(to, packed, None)
}

/// Rows that one thread adds up: as many as leave enough threads for a large card, at most 1,024 of them a channel. It
/// depends on the sizes alone, and so do the bits of the sum.
fn span(rows: usize, c: usize) -> usize {
    let spans = (1usize << 16).div_ceil(c.max(1)).clamp(1, 1024);
    rows.div_ceil(spans).max(8)
}

/// What BatchNorm works by, from a batch x (n, h, w, c) and gamma and beta (2 c,): the table (5, c) of means, biased
/// variances, 1 / sqrt(variance + eps), gamma times that, and beta.
pub fn measure(x: &Tensor, gamma_beta: &Tensor, eps: f64) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let (rows, dtype) = (n * h * w, x.dtype());
    let span = span(rows, c);
    let spans = rows.div_ceil(span);
    let numbers = Numbers::new(&[rows, c, span], &[eps])?;
    let parts = Launch::items("moments", dtype, spans * c, numbers)?.run(&[x], (2, spans, c), wide(dtype))?;
    let merge = Launch::blocks("moments_merge", dtype, c.div_ceil(32), numbers)?;
    merge.run(&[&parts, gamma_beta], (5, c), wide(dtype))
}

/// The same table of known means and variances (2 c,), for numbers of type `dtype`.
pub fn known(statistics: &Tensor, gamma_beta: &Tensor, eps: f64, dtype: DType) -> Result<Tensor> {
    let c = statistics.elem_count() / 2;
    let launch = Launch::items("table", dtype, c, Numbers::new(&[], &[eps])?)?;
    launch.run(&[statistics, gamma_beta], (5, c), wide(dtype))
}

/// BatchNorm of x (n, h, w, c) by a table, and a ReLU behind it if asked.
pub fn normalize(x: &Tensor, table: &Tensor, relu: bool) -> Result<Tensor> {
    let c = table.dim(1)?;
    let numbers = Numbers::new(&[c, usize::from(relu)], &[])?;
    Launch::items("normalize", x.dtype(), x.elem_count(), numbers)?.run(&[x, table], x.shape(), x.dtype())
}

/// What [`normalize`] passes back of a gradient g (n, h, w, c): that of x, where it is `wanted`, and those of gamma and
/// beta (2 c,). `train`: the table was measured on x.
pub fn normalize_back(
    x: &Tensor,
    g: &Tensor,
    table: &Tensor,
    (relu, train, wanted): (bool, bool, bool),
) -> Result<(Option<Tensor>, Tensor)> {
    let (n, h, w, c) = x.dims4()?;
    let (rows, dtype) = (n * h * w, x.dtype());
    let span = span(rows, c);
    let spans = rows.div_ceil(span);
    let numbers = Numbers::new(&[rows, c, span, usize::from(relu)], &[])?;
    let sums = Launch::items("gradient_sums", dtype, spans * c, numbers)?;
    let sums = sums.run(&[x, g, table], (2, spans, c), wide(dtype))?;
    let merge = Launch::blocks("gradient_merge", dtype, c.div_ceil(32), Numbers::new(&[c, spans], &[])?)?;
    let merged = merge.run(&[&sums, table], (7, c), wide(dtype))?;
    let of_gamma_beta = merged.narrow(0, 5, 2)?.flatten_all()?;
    if !wanted {
        return Ok((None, of_gamma_beta));
    }
    let numbers = Numbers::new(&[c, usize::from(relu), usize::from(train)], &[rows as f64])?;
    let back = Launch::items("normalize_back", dtype, x.elem_count(), numbers)?;
    Ok((Some(back.run(&[x, g, &merged], x.shape(), dtype)?), of_gamma_beta))
}

fn of_pool(s: &PoolShape) -> Result<Numbers> {
    let w = s.window;
    let max = usize::from(s.max);
    Numbers::new(&[s.h, s.w, s.channels, w.k, w.stride, w.padding, s.out_h(), s.out_w(), max], &[])
}

/// Maximum or mean pooling of x (n, h, w, c).
pub fn pool(x: &Tensor, s: &PoolShape) -> Result<Tensor> {
    let shape = (x.dim(0)?, s.out_h(), s.out_w(), s.channels);
    let work = shape.0 * shape.1 * shape.2 * shape.3;
    Launch::items("pool", x.dtype(), work, of_pool(s)?)?.run(&[x], shape, x.dtype())
}

/// What it passes back of a gradient g; of equal maxima the first has it, as in PyTorch.
pub fn pool_back(x: &Tensor, g: &Tensor, s: &PoolShape) -> Result<Tensor> {
    Launch::items("pool_back", x.dtype(), x.elem_count(), of_pool(s)?)?.run(&[x, g], x.shape(), x.dtype())
}

/// One step of SGD on parameters and their momentum buffer, flat, in place: see [`crate::sgd`].
pub fn sgd(step: SgdStep, g: &Tensor, buffer: &Tensor, p: &Tensor) -> Result<()> {
    let numbers = Numbers::new(&[usize::from(step.nesterov)], &[step.lr, step.momentum, step.weight_decay])?;
    let of = |kernel: &str| Launch::items(kernel, p.dtype(), p.elem_count(), numbers);
    of("sgd_buffer")?.run_into(buffer, g, Some(p))?;
    of("sgd")?.run_into(p, g, Some(buffer))
}
