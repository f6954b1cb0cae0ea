//! From pixels to a network's input.

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

/// How a model turns u8 pixels into its input: (pixel / 255 - mean) / std.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    /// Per channel.
    pub mean: Vec<f64>,
    /// Per channel.
    pub std: Vec<f64>,
}

impl Normalization {
    /// Normalised images of pixels (n, c, h, w), u8.
    pub fn apply(&self, pixels: &Tensor, dtype: DType, device: &Device) -> Result<Tensor> {
        let (_, c, h, w) = pixels.dims4()?;
        if self.mean.len() != c {
            bail!("the model takes images of {} channels, these have {c}", self.mean.len());
        }
        if !pixels.device().is_cpu() || pixels.dtype() != DType::U8 {
            bail!("pixels are u8, on the CPU; these are {:?} on {:?}", pixels.dtype(), pixels.device().location());
        }
        if !device.is_cpu() {
            // As bytes: a quarter of what the images would take on the way.
            let channels = |v: Vec<f64>| Tensor::from_vec(v, (1, c, 1, 1), device)?.to_dtype(dtype);
            let scale = channels(self.std.iter().map(|s| 1.0 / (255.0 * s)).collect())?;
            let shift = channels(self.mean.iter().zip(&self.std).map(|(m, s)| -m / s).collect())?;
            return pixels.to_device(device)?.to_dtype(dtype)?.broadcast_mul(&scale)?.broadcast_add(&shift);
        }
        let pixels = pixels.contiguous()?;
        let (storage, layout) = pixels.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("pixels are one block on the CPU")
        };
        let (bytes, plane) = (&storage.as_slice::<u8>()?[start..end], (h * w).max(1));
        let value = |channel: usize, p: u8| (f64::from(p) / 255.0 - self.mean[channel]) / self.std[channel];
        if dtype == DType::F64 {
            let planes = bytes.chunks_exact(plane).enumerate();
            let values: Vec<f64> = planes.flat_map(|(i, plane)| plane.iter().map(move |p| value(i % c, *p))).collect();
            return Tensor::from_vec(values, pixels.dims(), device);
        }
        // A table of 256 values per channel: the same rounding as computing in f64, and no division per pixel.
        let table: Vec<f32> = (0..c).flat_map(|c| (0..=u8::MAX).map(move |p| value(c, p) as f32)).collect();
        let mut values = Vec::with_capacity(bytes.len());
        for (i, plane) in bytes.chunks_exact(plane).enumerate() {
            let table = &table[i % c * 256..][..256];
            values.extend(plane.iter().map(|p| table[usize::from(*p)]));
        }
        Tensor::from_vec(values, pixels.dims(), device)?.to_dtype(dtype)
    }
}
