//! What holds for every method, whatever it computes.

mod toy;

use cams::methods::{Background, Fill, Init, Methods};
use cams::{Explanation, Forward, Interpreter, SampleId};
use candle_core::{Device, Result, Tensor};
use proptest::prelude::*;
use testkit::{assert_close, tensor, values};
use toy::Toy;

/// Every method, cheap enough for a test.
fn methods() -> Methods {
    let mut m = Methods::default();
    m.mask.iterations = 5;
    m.mask.grid = 3;
    m.rise.masks = 40;
    m.rise.cells = 3;
    m.shap_cam.permutations = 64;
    m
}

/// A method as a function.
type Explain = Box<dyn Fn(&Forward, &Tensor) -> Result<Explanation>>;

/// The methods that explain this model; the others say why not.
fn usable(model: &Toy) -> Vec<(&'static str, Explain)> {
    let linear = model.linear;
    let found = Methods::NAMES.iter().filter(move |name| linear || **name != "cam");
    found
        .map(|name| {
            let explain = move |f: &Forward, c: &Tensor| methods().get(name).unwrap().explain(f, c);
            (*name, Box::new(explain) as Explain)
        })
        .collect()
}

fn models() -> [Toy; 2] {
    [Toy::new(3, 5, 4, true), Toy::new(3, 5, 4, false)]
}

fn images(n: usize) -> Result<Tensor> {
    tensor(&[n, 3, 5, 4], 7, candle_core::DType::F64, &Device::Cpu)
}

fn classes(of: &[u32]) -> Result<Tensor> {
    Tensor::new(of, &Device::Cpu)
}

#[test]
fn a_batch_is_its_images_one_by_one_and_the_model_is_untouched() -> Result<()> {
    for model in models() {
        let (images, wanted) = (images(4)?, [0, 1, 2, 3]);
        let forward = Forward::new(&model, &images)?;
        for (name, explain) in usable(&model) {
            let whole = values(&explain(&forward, &classes(&wanted)?)?.map)?;
            assert!(whole.iter().all(|v| v.is_finite()), "{name}: not finite");
            assert!(whole.iter().any(|v| *v != 0.0), "{name}: nothing but zeros");
            let again = values(&explain(&forward, &classes(&wanted)?)?.map)?;
            assert_eq!(whole, again, "{name}: another map the second time");
            let mut one_by_one = Vec::new();
            for (i, class) in wanted.iter().enumerate() {
                let id = vec![SampleId { sample: i as u64, view: 0 }];
                let forward = Forward::with_ids(&model, &images.narrow(0, i, 1)?, id)?;
                one_by_one.extend(values(&explain(&forward, &classes(&[*class])?)?.map)?);
            }
            assert_close(name, &whole, &one_by_one, 1e-12);
            assert_eq!(values(&Forward::new(&model, &images)?.logits)?, values(&forward.logits)?, "{name}");
        }
    }
    Ok(())
}

/// RISE that stops early and Mask that is disturbed still know nothing of an image's neighbours.
#[test]
fn options_keep_an_image_to_itself() -> Result<()> {
    let mut m = methods();
    m.rise.masks = 6400;
    m.rise.tolerance = 0.5;
    m.rise.fill = Background::Blur;
    (m.mask.init, m.mask.jitter, m.mask.noise, m.mask.noise_draws) = (Init::Disc, 1, 0.1, 2);
    let [model, _] = models();
    let (images, wanted) = (images(3)?, [2, 0, 1]);
    let forward = Forward::new(&model, &images)?;
    for name in ["rise", "mask"] {
        let whole = m.get(name).unwrap().explain(&forward, &classes(&wanted)?)?;
        let mut one_by_one = Vec::new();
        for (i, class) in wanted.iter().enumerate() {
            let id = vec![SampleId { sample: i as u64, view: 0 }];
            let forward = Forward::with_ids(&model, &images.narrow(0, i, 1)?, id)?;
            let one = m.get(name).unwrap().explain(&forward, &classes(&[*class])?)?;
            assert!(one.evaluations <= whole.evaluations);
            one_by_one.extend(values(&one.map)?);
        }
        assert_close(name, &values(&whole.map)?, &one_by_one, 1e-12);
    }
    let stopped = m.rise.explain(&forward, &classes(&wanted)?)?;
    let looks = stopped.evaluations / 100;
    assert!(looks < 64 && looks.is_power_of_two(), "{} masks", stopped.evaluations);
    // Intervals of maps that stopped early hold the values of many masks.
    let (map, error) = (values(&stopped.map)?, values(stopped.error.as_ref().unwrap())?);
    let long = cams::methods::Rise { masks: 20_000, tolerance: 0.0, seed: 5, ..m.rise }
        .explain(&forward, &classes(&wanted)?)?;
    let inside =
        map.iter().zip(&error).zip(values(&long.map)?).filter(|((m, e), l)| (*m - l).abs() <= 1.96 * *e).count();
    assert!(inside * 10 >= map.len() * 8, "{inside} of {} intervals", map.len());
    let zero = cams::methods::Rise { fill: Background::Zero, ..m.rise }.explain(&forward, &classes(&wanted)?)?;
    assert_ne!(values(&zero.map)?, values(&stopped.map)?);
    Ok(())
}

#[test]
fn memory_changes_nothing_but_the_cost() -> Result<()> {
    for model in models() {
        let forward = Forward::new(&model, &images(2)?)?;
        let mut small = methods();
        let perturbing = [&mut small.rise.memory_mb, &mut small.occlusion.memory_mb, &mut small.score_cam.memory_mb];
        for budget in perturbing.into_iter().chain([&mut small.ablation_cam.memory_mb]) {
            *budget = 1e-6;
        }
        small.shap_cam.memory_mb = 1e-6;
        for name in ["rise", "occlusion", "score_cam", "ablation_cam", "shap_cam"] {
            let of = |m: &Methods| values(&m.get(name).unwrap().explain(&forward, &classes(&[1, 2])?)?.map);
            assert_close(name, &of(&small)?, &of(&methods())?, 1e-12);
        }
    }
    Ok(())
}

#[test]
fn another_class_is_another_map() -> Result<()> {
    for model in models() {
        let forward = Forward::new(&model, &images(1)?)?;
        for (name, explain) in usable(&model) {
            let of = |c: u32| values(&explain(&forward, &classes(&[c])?)?.map);
            let has_class = methods().get(name).unwrap().has_class();
            assert_eq!(of(0)? != of(3)?, has_class, "{name}");
        }
    }
    Ok(())
}

#[test]
fn another_seed_is_another_sample() -> Result<()> {
    let [linear, other] = models();
    for (name, model) in [("rise", &linear), ("random", &linear), ("shap_cam", &other), ("mask", &linear)] {
        let forward = Forward::new(model, &images(1)?)?;
        let mut first = methods();
        first.mask.noise = 0.1;
        let mut reseeded = first.clone();
        (reseeded.rise.seed, reseeded.random.seed, reseeded.shap_cam.seed) = (1, 1, 1);
        reseeded.mask.seed = 1;
        let of = |m: &Methods| values(&m.get(name).unwrap().explain(&forward, &classes(&[1])?)?.map);
        assert_ne!(of(&first)?, of(&reseeded)?, "{name}");
    }
    Ok(())
}

/// What is measured by passes of the model alone is measured against such a pass too: the pass that is explained may be
/// one in training, which normalises otherwise.
#[test]
fn a_fall_is_between_two_passes_of_one_kind() -> Result<()> {
    let [_, model] = models();
    let mut forward = Forward::new(&model, &images(2)?)?;
    let of = |name: &str, forward: &Forward| -> Result<Vec<f64>> {
        values(&methods().get(name).unwrap().explain(forward, &classes(&[1, 2])?)?.map)
    };
    let before = [of("occlusion", &forward)?, of("ablation_cam", &forward)?];
    forward.logits = (forward.logits * 2.0)?;
    assert_eq!([of("occlusion", &forward)?, of("ablation_cam", &forward)?], before);
    Ok(())
}

#[test]
fn all_classes_at_once_are_the_classes_one_by_one() -> Result<()> {
    let [model, _] = models();
    let forward = Forward::new(&model, &images(2)?)?;
    let all = methods().get("shap_cam").unwrap().explain_all(&forward)?;
    assert_eq!(all.dims(), [2, 4, 5, 4]);
    for class in 0..4 {
        let one = methods().get("shap_cam").unwrap().explain(&forward, &classes(&[class, class])?)?.map;
        assert_close("class", &values(&all.narrow(1, class as usize, 1)?)?, &values(&one)?, 1e-14);
    }
    Ok(())
}

#[test]
fn what_a_method_cannot_explain_it_says() -> Result<()> {
    let [linear, other] = models();
    let forward = Forward::new(&other, &images(1)?)?;
    let error = methods().get("cam").unwrap().explain(&forward, &classes(&[0])?).unwrap_err().to_string();
    assert!(error.contains("last"), "{error}");
    let forward = Forward::new(&linear, &images(2)?)?;
    for name in Methods::NAMES {
        let method = |wanted: &[u32]| methods().get(name).unwrap().explain(&forward, &classes(wanted).unwrap());
        let error = method(&[0, 9]).unwrap_err().to_string();
        assert!(error.contains("class 9") && error.contains("0 to 3"), "{name}: {error}");
        assert!(method(&[0]).unwrap_err().to_string().contains("2 classes"), "{name}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any sizes, black images among them: a map of the promised size, and no NaN anywhere.
    #[test]
    fn no_shape_breaks_a_method(
        channels in 1usize..4, k in 1usize..4, classes in 1usize..4, h in 1usize..5, w in 1usize..5,
        linear: bool, zero: bool,
    ) {
        let model = Toy::new(channels, k, classes, linear);
        let images = tensor(&[2, channels, h, w], 3, candle_core::DType::F64, &Device::Cpu).unwrap();
        let images = (images * if zero { 0.0 } else { 1.0 }).unwrap();
        let forward = Forward::new(&model, &images).unwrap();
        let wanted = Tensor::new(&[0u32, classes as u32 - 1], &Device::Cpu).unwrap();
        for (name, explain) in usable(&model) {
            let map = explain(&forward, &wanted).unwrap_or_else(|e| panic!("{name}: {e}")).map;
            prop_assert_eq!(map.dims(), [2, h, w], "{}", name);
            prop_assert!(values(&map).unwrap().iter().all(|v| v.is_finite()), "{name}: NaN");
        }
    }
}

/// What a method says it can find in every class's CAM it does find there, to the bit of rounding; the others depend on
/// more.
#[test]
fn class_maps_are_all_that_some_methods_see() -> Result<()> {
    let model = Toy::new(3, 5, 4, true);
    let forward = Forward::new(&model, &images(4)?)?;
    let head = cams::CamModel::linear_head(&model).unwrap();
    let reduced = cams::ClassMaps::new(&head, &forward.features)?;
    let reduced = reduced.forward(&forward.logits, forward.ids.clone());
    let chosen = classes(&[0, 1, 2, 3])?;
    let mut seeing = vec![];
    let mut check = |name: String, method: &dyn Interpreter| -> Result<()> {
        let direct = values(&method.signed(&forward, &chosen)?.map)?;
        let found = method.signed(&reduced, &chosen).and_then(|e| values(&e.map));
        let same = found.is_ok_and(|f| f.len() == direct.len() && testkit::deviation(&f, &direct) < 1e-12);
        assert_eq!(same, method.sees_class_maps_alone(), "{name}");
        if same {
            seeing.push(name);
        }
        Ok(())
    };
    let scores = [cams::Score::Logit, cams::Score::Prob, cams::Score::LogProb, cams::Score::Rest];
    for name in Methods::NAMES.iter().filter(|n| !["mask", "rise", "occlusion", "shap_cam"].contains(n)) {
        check(name.to_string(), methods().get(name).unwrap())?;
    }
    for score in scores {
        check(format!("grad_cam {score:?}"), &cams::methods::GradCam { score })?;
        for fill in [Fill::Zero, Fill::ChannelMean, Fill::ScalarMean, Fill::DatasetMean, Fill::PresentMean] {
            let method = cams::methods::ShapCam { score, fill, permutations: 64, ..Default::default() };
            check(format!("shap_cam {score:?} {fill:?}"), &method)?;
        }
    }
    assert_eq!(seeing.len(), 5 + 4 + 4 * 3, "{seeing:?}");
    Ok(())
}
