//! From pixels to a network's input.

use candle_core::{DType, Device, Tensor};

/// How a model turns u8 pixels into its input: (pixel / 255 - mean) / std.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    /// Per channel.
    pub mean: Vec<f64>,
    /// Per channel.
    pub std: Vec<f64>,
}

impl Normalization {
    /// CIFAR-10's statistics, as everybody uses them.
    pub fn cifar10() -> Normalization {
        Normalization { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2470, 0.2435, 0.2616] }
    }

    /// Normalised images (n, c, h, w).
    pub fn apply(
        &self,
        pixels: &[u8],
        [c, h, w]: [usize; 3],
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let n = pixels.len() / (c * h * w).max(1);
        if dtype == DType::F64 {
            let values: Vec<f64> = self.values(pixels, c, h * w);
            return Tensor::from_vec(values, (n, c, h, w), device);
        }
        // A table of 256 values a channel: the same rounding as computing in f64, and no division a pixel.
        let table: Vec<f32> = (0..c)
            .flat_map(|c| (0..256).map(move |p| ((f64::from(p) / 255.0 - self.mean[c]) / self.std[c]) as f32))
            .collect();
        let mut values = Vec::with_capacity(pixels.len());
        for (i, plane) in pixels.chunks_exact((h * w).max(1)).enumerate() {
            let table = &table[i % c * 256..][..256];
            values.extend(plane.iter().map(|p| table[*p as usize]));
        }
        Tensor::from_vec(values, (n, c, h, w), device)?.to_dtype(dtype)
    }

    fn values(&self, pixels: &[u8], c: usize, plane: usize) -> Vec<f64> {
        let channel = |i: usize| i / plane % c;
        let value = |(i, p): (usize, &u8)| (f64::from(*p) / 255.0 - self.mean[channel(i)]) / self.std[channel(i)];
        pixels.iter().enumerate().map(value).collect()
    }
}
