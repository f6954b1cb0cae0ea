//! The outputs of pytorch-grad-cam 1.5.7 on the same checkpoints and images, where it computes something else with that
//! something.

use anyhow::Result;
use cams::{Explanation, Forward, maps, methods};
use candle_core::{D, DType, Device, Tensor};
use testkit::values;
use trainer::nn::{Engine, Model};

use crate::{Maps, Seen};

/// Its scaling: ReLU, each map to [0, 1] with 1e-7 against a zero range, resized to the image, and to [0, 1] again.
fn scaled(map: &Tensor) -> candle_core::Result<Tensor> {
    let unit = |map: &Tensor| -> candle_core::Result<Tensor> {
        let low = map.flatten_from(1)?.min_keepdim(1)?.unsqueeze(2)?;
        let from_zero = map.broadcast_sub(&low)?;
        let high = (from_zero.flatten_from(1)?.max_keepdim(1)?.unsqueeze(2)? + 1e-7)?;
        from_zero.broadcast_div(&high)
    };
    unit(&maps::resize(&unit(&maps::relu(map)?)?, 32, 32)?)
}

/// Largest difference in each image.
fn off(found: &Tensor, expected: &[f64]) -> Result<Vec<f64>> {
    let found = values(&scaled(found)?)?;
    let images = found.chunks_exact(32 * 32).zip(expected.chunks_exact(32 * 32));
    Ok(images.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)).collect())
}

/// Grad-CAM++ with 1e-6 added to alpha's denominator, as the package has it.
fn grad_cam_pp(forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    let head = forward.model.linear_head().expect("the last layer");
    let (_, _, h, w) = forward.features.dims4()?;
    let g = (head.class_weight(classes)? / (h * w) as f64)?;
    let sum = forward.features.sum((2, 3))?;
    let denominator = (((g.sqr()? * 2.0)? + (sum * g.powf(3.0)?)?)? + 1e-6)?;
    let alpha = ((g.sqr()? / denominator)? * maps::relu(&g)?)?;
    Ok(cams::ops::weighted_sum(&(alpha * (h * w) as f64)?, &forward.features)?)
}

/// One axis of a bilinear resize whose corners lie on corners, (to, from).
fn corners(from: usize, to: usize) -> Result<Tensor> {
    let mut m = vec![0f32; to * from];
    for i in 0..to {
        let x = i as f64 * (from - 1) as f64 / (to - 1) as f64;
        let low = (x.floor() as usize).min(from - 2);
        m[i * from + low] = (1.0 - (x - low as f64)) as f32;
        m[i * from + low + 1] = (x - low as f64) as f32;
    }
    Ok(Tensor::from_vec(m, (to, from), &Device::Cpu)?)
}

/// Score-CAM whose masks are resized so.
fn score_cam(forward: &Forward, classes: &Tensor) -> Result<Tensor> {
    let (n, k, h, w) = forward.features.dims4()?;
    let (rows, columns) = (corners(h, 32)?, corners(w, 32)?.t()?.contiguous()?);
    let mut alphas = Vec::new();
    for i in 0..n {
        let channels = forward.features.narrow(0, i, 1)?.squeeze(0)?;
        let wide = channels.reshape((k * h, w))?.matmul(&columns)?.reshape((k, h, 32))?;
        let masks = rows.unsqueeze(0)?.broadcast_as((k, 32, h))?.contiguous()?.matmul(&wide)?;
        let masked = forward.images.narrow(0, i, 1)?.broadcast_mul(&maps::minmax(&masks)?.unsqueeze(1)?)?;
        let logits = forward.model.head(&forward.model.features(&masked)?)?;
        let class = classes.narrow(0, i, 1)?.broadcast_as(k)?.contiguous()?;
        let scores = logits.gather(&class.unsqueeze(1)?, 1)?.squeeze(1)?;
        alphas.push(candle_nn::ops::softmax(&scores, D::Minus1)?);
    }
    Ok(cams::ops::weighted_sum(&Tensor::stack(&alphas, 0)?, &forward.features)?)
}

#[test]
fn golden_outputs_of_pytorch_grad_cam() -> Result<()> {
    for golden in Maps::all()? {
        let count = golden.images.len();
        let Seen { batch, network, pass, labels } = golden.seen(count, &[], DType::F32, Engine::Kernels)?;
        let cut = network.cut("last")?;
        let forward = pass.seen(&*cut, "last", &batch.ids)?;
        let mut compared = 0;
        for name in golden.file.shapes()?.into_keys() {
            let Some(method) = name.strip_prefix("pgc_") else { continue };
            let expected = golden.file.f64(&name)?;
            let methods = methods::Methods::default();
            let ours = |name: &str| -> Result<Explanation> {
                Ok(methods.get(name).expect("a method").signed(&forward, &labels)?)
            };
            let found = match method {
                "grad_cam_pp" => grad_cam_pp(&forward, &labels)?,
                "score_cam" => score_cam(&forward, &labels)?,
                _ => ours(method)?.map,
            };
            let mut off_by = off(&found, &expected)?;
            if method == "eigen_cam" {
                // It keeps whichever sign its decomposition happened to give.
                let other = off(&found.neg()?, &expected)?;
                off_by.iter_mut().zip(other).for_each(|(a, b)| *a = a.min(b));
            }
            let worst = off_by.into_iter().fold(0.0, f64::max);
            println!("{name}: {worst:.1e}");
            assert!(worst < 1e-4, "{name}: off by {worst:.1e}");
            // With the definitions as they stand two of its methods are others.
            let as_defined = off(&ours(method)?.map, &expected)?.into_iter().fold(0.0, f64::max);
            let another = method == "grad_cam_pp" || method == "score_cam";
            assert!(method == "eigen_cam" || (as_defined > 1e-3) == another, "{name}: {as_defined:.1e}");
            compared += 1;
        }
        assert!(compared > 0, "the file holds no output of the package");
    }
    Ok(())
}
