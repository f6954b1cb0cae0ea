//! Figures of Grad-CAM's maps at the last layer: masks, drops, curves, energy.

use anyhow::Result;
use cams::maps::resize;
use cams::methods::GradCam;
use cams::metrics::faithfulness::{
    Course, Mute, Probability, Scorer, Ties, Way, area, curve, drops, increases, masks, order,
};
use cams::metrics::localization::{energy, inside};
use cams::{Interpreter, SampleId};
use candle_core::DType;
use testkit::{assert_close, values};
use trainer::nn::{Engine, Model};

use crate::{Maps, Seen};

const SIDE: usize = 32;

#[test]
fn golden_metrics() -> Result<()> {
    for golden in Maps::all()? {
        let count = golden.images.len();
        let Seen { batch, network, pass, labels } = golden.seen(count, &[], DType::F64, Engine::Kernels)?;
        let cut = network.cut("last")?;
        let map = GradCam::default().explain(&pass.seen(&*cut, "last", &batch.ids)?, &labels)?.map;
        let large = resize(&map, SIDE, SIDE)?;
        let expected = |name: &str| golden.file.f64(&format!("metric.{name}"));
        assert_close("map_up", &values(&large)?, &expected("map_up")?, 1e-6);

        // Orders of equal values are compared on the file's own maps: rounding may part what is tied.
        let file_maps = expected("map_up")?;
        let orders: Vec<Vec<usize>> =
            file_maps.chunks_exact(SIDE * SIDE).map(|map| order(map, Ties::ByPosition, SampleId::default())).collect();
        let flat: Vec<f64> = orders.iter().flatten().map(|p| *p as f64).collect();
        assert_eq!(flat, expected("order")?);

        let images = network.images(&batch.pixels)?;
        let scorer = Scorer { model: &*cut, probability: Probability::Softmax };
        let whole = scorer.probabilities(&images, &labels)?;
        assert_close("prob", &whole, &expected("prob")?, 1e-6);
        for (name, mute) in [("plain", Mute::NONE), ("top50", Mute::HALF)] {
            let masks = masks(&map, [SIDE, SIDE], mute, Ties::ByPosition, &batch.ids)?;
            assert_close(&format!("mask_{name}"), &values(&masks)?, &expected(&format!("mask_{name}"))?, 1e-6);
            let masked = images.broadcast_mul(&masks.unsqueeze(1)?)?;
            let left = scorer.probabilities(&masked, &labels)?;
            assert_close(name, &left, &expected(&format!("{name}.masked_prob"))?, 1e-6);
            let drops: Vec<f64> = drops(&whole, &left).into_iter().flatten().collect();
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let stated = expected(&format!("{name}.average_drop_percent"))?[0];
            assert!((mean(&drops) - stated).abs() < 1e-4, "{name}: {} and {stated}", mean(&drops));
            let rises = increases(&expected("prob")?, &expected(&format!("{name}.masked_prob"))?);
            let rises: Vec<f64> = rises.into_iter().flatten().collect();
            assert_eq!(mean(&rises), expected(&format!("{name}.average_increase_percent"))?[0], "{name}");
        }

        let classes = labels.to_vec1::<u32>()?;
        for (name, way) in [("deletion", Way::Deletion), ("insertion", Way::Insertion)] {
            let (curves, areas) = (expected(&format!("{name}.curve"))?, expected(&format!("{name}.auc"))?);
            for i in 0..count {
                let image = images.get(i)?;
                let zero = image.zeros_like()?;
                let course = Course { image: &image, baseline: &zero, order: &orders[i], step: SIDE, way };
                let found = curve(&scorer, &course, classes[i], 8)?;
                let stated = &curves[i * found.len()..][..found.len()];
                let off = found.iter().zip(stated).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-6, "{name} of image {i}: off by {off:.1e}");
                assert!(
                    (area(&found, SIDE, SIDE * SIDE).expect("a curve") - areas[i]).abs() < 1e-6,
                    "{name} of image {i}"
                );
            }
        }

        let boxes = expected("box_xyxy")?;
        let energies = expected("energy_in_box")?;
        for (i, map) in values(&large)?.chunks_exact(SIDE * SIDE).enumerate() {
            let bounds: [u32; 4] = std::array::from_fn(|k| boxes[4 * i + k] as u32);
            let found = energy(map, &inside(&[bounds], SIDE, SIDE));
            // A map behind its ReLU may be zero: then there is no energy anywhere.
            assert!((found.unwrap_or(0.0) - energies[i]).abs() < 1e-6 || energies[i].is_nan(), "image {i}: {found:?}");
        }
    }
    Ok(())
}
