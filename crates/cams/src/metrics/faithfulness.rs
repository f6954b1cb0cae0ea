//! Whether what a map calls important is what the model uses: the probability of a class while pixels come and go.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::ops::{sigmoid, softmax};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::is_finite;
use crate::maps::{minmax, resize};
use crate::random::stream;
use crate::{CamModel, SampleId};

/// What becomes of equal values where pixels are put in order: a map behind a ReLU has many zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ties {
    /// They stay in the order of their positions, which favours a corner.
    ByPosition,
    /// They are shuffled, with this seed and for each image anew.
    Shuffled(u64),
}

/// Pixels by falling value; each image's, (h w,).
pub fn order(map: &[f64], ties: Ties, id: SampleId) -> Vec<usize> {
    let mut order: Vec<usize> = (0..map.len()).collect();
    if let Ties::Shuffled(seed) = ties {
        order.shuffle(&mut stream(&[seed, id.sample, id.view]));
    }
    // The sort is stable: among equals the order is what it was.
    order.sort_by(|&i, &j| map[j].total_cmp(&map[i]));
    order
}

/// What an image is multiplied with to leave what a map speaks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mute {
    /// The part of the pixels, those of the lowest values, that becomes 0.
    pub share: f64,
    /// Whether what is left becomes 1; else it keeps the map's value between 0 and 1.
    pub binary: bool,
}

impl Mute {
    /// The map itself, from its lowest value at 0 to its highest at 1.
    pub const NONE: Mute = Mute { share: 0.0, binary: false };
    /// The same with the lower half at 0 (Wang et al. 2020, section 4.2).
    pub const HALF: Mute = Mute { share: 0.5, binary: false };
}

/// Masks (n, height, width) in [0, 1] of maps (n, h, w), resized bilinearly. That of a map that is not finite has NaN.
pub fn masks(maps: &Tensor, [height, width]: [usize; 2], mute: Mute, ties: Ties, ids: &[SampleId]) -> Result<Tensor> {
    let large = resize(&maps.detach(), height, width)?;
    let scaled = minmax(&large)?;
    if mute.share <= 0.0 && !mute.binary {
        return Ok(scaled);
    }
    let (n, pixels) = (large.dim(0)?, height * width);
    let kept = pixels - ((pixels as f64 * mute.share).round() as usize).min(pixels);
    let (values, shades) = (rows(&large)?, rows(&scaled)?);
    let mut masks = vec![0f64; n * pixels];
    for ((row, shades), (mask, id)) in values.iter().zip(&shades).zip(masks.chunks_exact_mut(pixels.max(1)).zip(ids)) {
        // What is no number has no place in an order.
        if !is_finite(row) {
            mask.fill(f64::NAN);
            continue;
        }
        order(row, ties, *id)[..kept].iter().for_each(|&p| mask[p] = if mute.binary { 1.0 } else { shades[p] });
    }
    Tensor::from_vec(masks, (n, height, width), maps.device())?.to_dtype(scaled.dtype())
}

fn rows(maps: &Tensor) -> Result<Vec<Vec<f64>>> {
    maps.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2()
}

/// What a model's logits say of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probability {
    /// One class an image: its share of the softmax.
    #[default]
    Softmax,
    /// Several classes an image, each shown or not: the sigmoid of its logit.
    Sigmoid,
}

/// A model and how its logits become probabilities.
#[derive(Clone, Copy)]
pub struct Scorer<'m> {
    /// The model.
    pub model: &'m dyn CamModel,
    /// How.
    pub probability: Probability,
}

impl Scorer<'_> {
    /// Probabilities (n,) of classes (n,) of images (n, c, h, w), in f64.
    pub fn probabilities(&self, images: &Tensor, classes: &Tensor) -> Result<Vec<f64>> {
        let logits = self.model.head(&self.model.features(images)?)?.detach().to_dtype(DType::F64)?;
        let all = match self.probability {
            Probability::Softmax => softmax(&logits, D::Minus1)?,
            Probability::Sigmoid => sigmoid(&logits)?,
        };
        all.gather(&classes.unsqueeze(1)?, 1)?.squeeze(1)?.to_vec1()
    }
}

/// Each image's drop in percent, `100 max(0, Y - O) / Y`: their mean is the Average Drop (Chattopadhay et al. 2018,
/// section 4.1.1). None where Y is 0, and where one of the two is not finite: max(0, NaN) would be 0, the best drop.
pub fn drops(whole: &[f64], masked: &[f64]) -> Vec<Option<f64>> {
    let of = |(y, o): (&f64, &f64)| (*y > 0.0 && y.is_finite() && o.is_finite()).then(|| 100.0 * (y - o).max(0.0) / y);
    whole.iter().zip(masked).map(of).collect()
}

/// 100 for each image whose probability rises, 0 for the others: their mean is the Average Increase. None where one of
/// the two is not finite.
pub fn increases(whole: &[f64], masked: &[f64]) -> Vec<Option<f64>> {
    let of = |(y, o): (&f64, &f64)| {
        let rise = if y < o { 100.0 } else { 0.0 };
        (y.is_finite() && o.is_finite()).then_some(rise)
    };
    whole.iter().zip(masked).map(of).collect()
}

/// Which way pixels go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The most important are taken out of the image first: a faithful map makes the probability fall early.
    Deletion,
    /// They are put into the baseline first: a faithful map makes it rise early.
    Insertion,
}

/// How one image changes into its baseline, or back.
#[derive(Clone, Copy, Debug)]
pub struct Course<'a> {
    /// (c, h, w).
    pub image: &'a Tensor,
    /// What stands where a pixel is not, (c, h, w).
    pub baseline: &'a Tensor,
    /// Pixels in the order in which they go.
    pub order: &'a [usize],
    /// Pixels at a time.
    pub step: usize,
    /// Which way.
    pub way: Way,
}

/// The probabilities of a class after 0, `step`, 2 `step` ... pixels have gone: taken from the image and replaced by the
/// baseline's, or the other way round. `budget` images are passed at a time.
pub fn curve(scorer: &Scorer, course: &Course, class: u32, budget: usize) -> Result<Vec<f64>> {
    let Course { image, baseline, order, step, way } = *course;
    let (c, h, w) = image.dims3()?;
    if order.len() != h * w || step == 0 {
        bail!("an order of {} pixels in steps of {step} is none of an image of {h} x {w}", order.len());
    }
    let plain = |t: &Tensor| t.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (from, to) = match way {
        Way::Deletion => (plain(image)?, plain(baseline)?),
        Way::Insertion => (plain(baseline)?, plain(image)?),
    };
    let (mut now, mut stages, mut found) = (from, Vec::new(), Vec::new());
    let mut pass = |stages: &mut Vec<f64>| -> Result<()> {
        let n = stages.len() / (c * h * w).max(1);
        let images = Tensor::from_vec(std::mem::take(stages), (n, c, h, w), image.device())?.to_dtype(image.dtype())?;
        found.extend(scorer.probabilities(&images, &Tensor::full(class, n, image.device())?)?);
        Ok(())
    };
    stages.extend_from_slice(&now);
    for pixels in order.chunks(step) {
        for p in pixels {
            (0..c).for_each(|channel| now[channel * h * w + p] = to[channel * h * w + p]);
        }
        stages.extend_from_slice(&now);
        if stages.len() >= budget.max(1) * c * h * w {
            pass(&mut stages)?;
        }
    }
    if !stages.is_empty() {
        pass(&mut stages)?;
    }
    Ok(found)
}

/// Area under a curve of [`curve`] over the part of the pixels that have gone, by trapezoids; the last of the steps may have
/// fewer of the image's `pixels` than `step`. None where the curve has not a point per step and one before, or one that is not
/// finite.
pub fn area(curve: &[f64], step: usize, pixels: usize) -> Option<f64> {
    let whole = step > 0 && pixels > 0 && curve.len() == pixels.div_ceil(step) + 1 && is_finite(curve);
    let width = |at: usize| step.min(pixels - at * step) as f64 / pixels as f64;
    whole.then(|| curve.windows(2).enumerate().map(|(at, pair)| (pair[0] + pair[1]) / 2.0 * width(at)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinearHead;
    use candle_core::Device;

    /// Average pooling and a linear layer on the pixels themselves.
    struct Gap(LinearHead);

    impl CamModel for Gap {
        fn features(&self, images: &Tensor) -> Result<Tensor> {
            Ok(images.clone())
        }
        fn head(&self, features: &Tensor) -> Result<Tensor> {
            self.0.logits(features)
        }
        fn linear_head(&self) -> Option<LinearHead> {
            Some(self.0.clone())
        }
    }

    fn gap(weight: f64) -> Result<Gap> {
        let weight = Tensor::new(&[[weight], [-weight]], &Device::Cpu)?;
        Ok(Gap(LinearHead { weight, bias: Tensor::zeros(2, DType::F64, &Device::Cpu)? }))
    }

    #[test]
    fn drops_and_increases_by_hand() {
        assert_eq!(drops(&[0.8, 0.5, 0.0], &[0.6, 0.7, 0.1]), [Some(100.0 * (0.8 - 0.6) / 0.8), Some(0.0), None]);
        assert_eq!(increases(&[0.8, 0.5, 0.5], &[0.6, 0.7, 0.5]), [Some(0.0), Some(100.0), Some(0.0)]);
    }

    /// Neither the best drop nor no increase: no figure.
    #[test]
    fn what_is_no_number_counts_as_nothing() -> Result<()> {
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (whole, masked) = ([0.8, broken, 0.8], [broken, 0.5, 0.6]);
            assert_eq!(drops(&whole, &masked), [None, None, Some(100.0 * (0.8 - 0.6) / 0.8)]);
            assert_eq!(increases(&whole, &masked), [None, None, Some(0.0)]);
            assert_eq!(area(&[1.0, broken, 0.0], 2, 4), None);
        }
        // A mask of a map that is no number is none either, however it is muted; its neighbour's is what it was.
        let map = Tensor::new(&[[[1f64, f64::NAN], [2.0, 5.0]], [[1.0, 3.0], [2.0, 5.0]]], &Device::Cpu)?;
        for mute in [Mute::NONE, Mute::HALF, Mute { share: 0.5, binary: true }] {
            let found = rows(&masks(&map, [2, 2], mute, Ties::ByPosition, &[SampleId::default(); 2])?)?;
            let alone = rows(&masks(&map.narrow(0, 1, 1)?, [2, 2], mute, Ties::ByPosition, &[SampleId::default()])?)?;
            assert!(found[0].iter().any(|v| v.is_nan()), "{mute:?}: {:?}", found[0]);
            assert_eq!(found[1], alone[0], "{mute:?}");
        }
        Ok(())
    }

    #[test]
    fn masks_by_hand() -> Result<()> {
        let map = Tensor::new(&[[[1f64, 3.0], [2.0, 5.0]]], &Device::Cpu)?;
        let ids = [SampleId::default()];
        let of = |mute| masks(&map, [2, 2], mute, Ties::ByPosition, &ids)?.flatten_all()?.to_vec1::<f64>();
        assert_eq!(of(Mute::NONE)?, [0.0, 0.5, 0.25, 1.0]);
        assert_eq!(of(Mute::HALF)?, [0.0, 0.5, 0.0, 1.0]);
        assert_eq!(of(Mute { share: 0.5, binary: true })?, [0.0, 1.0, 0.0, 1.0]);
        Ok(())
    }

    #[test]
    fn ties_are_shared_fairly() {
        let map = vec![0.0; 16];
        let mut first = [0; 16];
        for sample in 0..1600 {
            let order = order(&map, Ties::Shuffled(3), SampleId { sample, view: 0 });
            first[order[0]] += 1;
        }
        assert!(first.iter().all(|n| (60..150).contains(n)), "{first:?}");
        let one = |sample| order(&map, Ties::Shuffled(3), SampleId { sample, view: 0 });
        assert!(one(1) == one(1) && one(1) != one(2));
        assert_eq!(order(&[1.0, 2.0, 2.0, 3.0], Ties::ByPosition, SampleId::default()), [3, 1, 2, 0]);
    }

    /// With logits +-w mean(x) the probability of class 0 is a logistic function of what is left.
    #[test]
    fn curves_by_hand() -> Result<()> {
        fn scorer(model: &Gap) -> Scorer<'_> {
            Scorer { model, probability: Probability::Softmax }
        }
        let (model, none) = (gap(1.0)?, gap(0.0)?);
        let image = Tensor::new(&[[[4f64, 2.0], [1.0, 1.0]]], &Device::Cpu)?;
        let zero = image.zeros_like()?;
        let logistic = |sum: f64| 1.0 / (1.0 + (-2.0 * sum / 4.0).exp());
        let order = [0, 1, 2, 3];
        for budget in [1, 2, 100] {
            let course = |step, way| Course { image: &image, baseline: &zero, order: &order, step, way };
            let down = curve(&scorer(&model), &course(1, Way::Deletion), 0, budget)?;
            testkit::assert_close("deletion", &down, &[8.0, 4.0, 2.0, 1.0, 0.0].map(logistic), 1e-15);
            let up = curve(&scorer(&model), &course(2, Way::Insertion), 0, budget)?;
            testkit::assert_close("insertion", &up, &[0.0, 6.0, 8.0].map(logistic), 1e-15);
        }
        assert_eq!(area(&[1.0, 0.5, 0.0], 2, 4), Some(0.5));
        // Of four pixels three in the first step and one in the second: the same line has the same area.
        assert_eq!(area(&[1.0, 0.25, 0.0], 3, 4), Some(0.5));
        assert_eq!((area(&[1.0], 1, 4), area(&[1.0, 0.0], 0, 4), area(&[1.0, 0.0], 1, 0)), (None, None, None));
        // A constant model's curve is flat.
        let course = Course { image: &image, baseline: &zero, order: &order, step: 1, way: Way::Insertion };
        let flat = curve(&scorer(&none), &course, 0, 3)?;
        assert!(flat.iter().all(|p| *p == 0.5));
        // Of a class by itself: the sigmoid of its logit, 2 here.
        let alone = Scorer { model: &model, probability: Probability::Sigmoid };
        let found = alone.probabilities(&image.unsqueeze(0)?, &Tensor::new(&[0u32], &Device::Cpu)?)?;
        testkit::assert_close("sigmoid", &found, &[1.0 / (1.0 + (-2f64).exp())], 1e-15);
        Ok(())
    }
}
