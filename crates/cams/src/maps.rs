//! ReLU, resizing and normalising. [`Interpreter::explain`](crate::Interpreter::explain) applies the ReLU that a definition ends
//! with; resizing a map for display and normalising it are the caller's, no method does it.

use candle_core::{DType, Device, Result, Tensor, bail};

/// `max(map, 0)`, with gradient 0 at 0 (candle's own relu has gradient 1 there, which would pull on
/// every position that a mask has set to zero).
pub fn relu(map: &Tensor) -> Result<Tensor> {
    gated(map, map)
}

/// `of` where the value in front of a ReLU passes it, and 0 elsewhere: its derivative along `of`. A NaN passes, and minus infinity
/// does not, as in a kernel.
pub fn gated(value: &Tensor, of: &Tensor) -> Result<Tensor> {
    value.le(0.0)?.where_cond(&of.zeros_like()?, of)
}

/// One axis of a bilinear resize as a (to, from) matrix: half-pixel centres, edges repeated
/// (`align_corners = False`).
fn resize_matrix(from: usize, to: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let mut m = vec![0f64; to * from];
    for i in 0..to {
        let x = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let low = x.floor() as usize;
        let high = (low + 1).min(from - 1);
        m[i * from + low] += 1.0 - (x - low as f64);
        m[i * from + high] += x - low as f64;
    }
    Tensor::from_vec(m, (to, from), device)?.to_dtype(dtype)
}

/// Bilinear resize of (..., h, w) to (..., height, width), as two matrix products: differentiable, and
/// the same on every device.
pub fn resize(maps: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let dims = maps.dims();
    let [.., h, w] = *dims else { bail!("a map needs two axes to be resized, {dims:?} given") };
    if h == 0 || w == 0 {
        bail!("a map of size {h} x {w} cannot be resized");
    }
    let (dtype, device) = (maps.dtype(), maps.device());
    let rows = resize_matrix(h, height, dtype, device)?;
    let columns = resize_matrix(w, width, dtype, device)?.t()?;
    let count: usize = dims[..dims.len() - 2].iter().product();
    let wide = maps.reshape((count * h, w))?.matmul(&columns)?.reshape((count, h, width))?;
    let out = rows.unsqueeze(0)?.broadcast_as((count, height, h))?.contiguous()?.matmul(&wide)?;
    let mut shape = dims.to_vec();
    let axes = shape.len();
    (shape[axes - 2], shape[axes - 1]) = (height, width);
    out.reshape(shape)
}

/// Each map (n, h, w) scaled to [0, 1]; a constant map becomes zero, never NaN.
pub fn minmax(map: &Tensor) -> Result<Tensor> {
    let (n, _, _) = map.dims3()?;
    let flat = map.flatten_from(1)?;
    let low = flat.min_keepdim(1)?;
    let range = (flat.max_keepdim(1)? - &low)?;
    let flat_range = range.eq(0.0)?.to_dtype(map.dtype())?;
    let scaled = flat.broadcast_sub(&low)?.broadcast_div(&(range + flat_range)?)?;
    debug_assert_eq!(scaled.dim(0)?, n);
    scaled.reshape(map.dims())
}

/// `images` (n, c, h, w) under a Gaussian of `size` pixels, an odd number, and standard deviation `sigma`; borders are
/// reflected.
pub fn blur(images: &Tensor, size: usize, sigma: f64) -> Result<Tensor> {
    let (n, c, h, w) = images.dims4()?;
    let axis = |len: usize| -> Result<Tensor> {
        let reach = (size / 2) as isize;
        let weight = |d: isize| (-((d * d) as f64) / (2.0 * sigma * sigma)).exp();
        let total: f64 = (-reach..=reach).map(weight).sum();
        let mut m = vec![0f64; len * len];
        for i in 0..len as isize {
            for d in -reach..=reach {
                m[i as usize * len + reflected(i + d, len)] += weight(d) / total;
            }
        }
        Tensor::from_vec(m, (len, len), images.device())?.to_dtype(images.dtype())
    };
    let columns = images.contiguous()?.reshape((n * c * h, w))?.matmul(&axis(w)?.t()?)?.reshape((n * c, h, w))?;
    axis(h)?.unsqueeze(0)?.broadcast_as((n * c, h, h))?.contiguous()?.matmul(&columns)?.reshape((n, c, h, w))
}

/// `images` (n, c, h, w) moved by `dy` down and `dx` to the right; borders are reflected. Differentiable.
pub fn shift(images: &Tensor, dy: isize, dx: isize) -> Result<Tensor> {
    let (_, _, h, w) = images.dims4()?;
    let from = |len: usize, by: isize| {
        let from: Vec<u32> = (0..len as isize).map(|i| reflected(i - by, len) as u32).collect();
        Tensor::new(from, images.device())
    };
    images.contiguous()?.index_select(&from(h, dy)?, 2)?.index_select(&from(w, dx)?, 3)
}

/// A position reflected at both ends of an axis as often as it takes: a small image may be narrower than the reach.
fn reflected(i: isize, len: usize) -> usize {
    let period = (2 * len as isize - 2).max(1);
    let at = i.rem_euclid(period);
    (if at >= len as isize { period - at } else { at }) as usize
}

/// Adaptive average pooling of `from` pixels to `to` as a matrix (to, from), row by row: PyTorch's windows.
pub fn average_windows(from: usize, to: usize) -> Vec<f64> {
    let mut matrix = vec![0f64; to * from];
    for i in 0..to {
        let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
        matrix[i * from + start..i * from + end].fill(1.0 / (end - start) as f64);
    }
    matrix
}

/// Adaptive average pooling of (n, h, w) to (n, height, width), PyTorch's windows, as two matrix products.
pub fn adaptive_average(maps: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (n, h, w) = maps.dims3()?;
    if (h, w) == (height, width) {
        return Ok(maps.clone());
    }
    let axis = |from: usize, to: usize| -> Result<Tensor> {
        Tensor::from_vec(average_windows(from, to), (to, from), maps.device())?.to_dtype(maps.dtype())
    };
    let wide = maps.reshape((n * h, w))?.matmul(&axis(w, width)?.t()?)?.reshape((n, h, width))?;
    axis(h, height)?.unsqueeze(0)?.broadcast_as((n, height, h))?.contiguous()?.matmul(&wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu_keeps_a_nan_and_its_gradient_is_0_at_0() -> Result<()> {
        let x = [f64::NEG_INFINITY, -1.0, 0.0, 2.0, f64::INFINITY, f64::NAN];
        let x = candle_core::Var::new(&x, &Device::Cpu)?;
        let y = relu(&x)?;
        let (values, g) = (y.to_vec1::<f64>()?, y.sum_all()?.backward()?);
        assert!(values[..5] == [0.0, 0.0, 0.0, 2.0, f64::INFINITY] && values[5].is_nan(), "{values:?}");
        assert_eq!(g.get(&x).expect("a gradient").to_vec1::<f64>()?[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
        Ok(())
    }

    #[test]
    fn blurred_by_hand() -> Result<()> {
        let image = Tensor::new(&[[[[1f64, 0.0, 0.0]]]], &Device::Cpu)?;
        let (near, far) = (1.0, (-0.5f64).exp());
        let total = near + 2.0 * far;
        let found: Vec<f64> = blur(&image, 3, 1.0)?.flatten_all()?.to_vec1()?;
        testkit::assert_close("blur", &found, &[near / total, far / total, 0.0], 1e-15);
        // A Gaussian far wider than the image, and an image of one pixel: reflected as often as it takes.
        let wide: Vec<f64> = blur(&image, 101, 1e3)?.flatten_all()?.to_vec1()?;
        assert!((wide.iter().sum::<f64>() - 1.0).abs() < 0.3 && wide.iter().all(|v| *v > 0.2), "{wide:?}");
        let one = Tensor::new(&[[[[3f64]]]], &Device::Cpu)?;
        testkit::assert_close("one pixel", &blur(&one, 7, 2.0)?.flatten_all()?.to_vec1()?, &[3.0], 1e-15);
        Ok(())
    }

    #[test]
    fn shifted_by_hand() -> Result<()> {
        let image = Tensor::new(&[[[[1f64, 2.0, 3.0], [4.0, 5.0, 6.0]]]], &Device::Cpu)?;
        let of = |dy, dx| shift(&image, dy, dx)?.flatten_all()?.to_vec1::<f64>();
        assert_eq!(of(0, 0)?, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(of(0, 1)?, [2.0, 1.0, 2.0, 5.0, 4.0, 5.0]);
        assert_eq!(of(1, -1)?, [5.0, 6.0, 5.0, 2.0, 3.0, 2.0]);
        Ok(())
    }
}
