//! Shap-CAM against the definition: all 2^9 coalitions of a 3x3 map, and the axioms that single the value out.

mod toy;

use cams::methods::{Computation, Fill, ShapCam};
use cams::{CamModel, Forward, Interpreter, Score};
use candle_core::{DType, Device, Result, Tensor};
use testkit::{assert_close, gradcheck, tensor, values};
use toy::Toy;

const SCORES: [Score; 4] = [Score::Logit, Score::Prob, Score::LogProb, Score::Rest];
const FILLS: [Fill; 5] = [Fill::Zero, Fill::ChannelMean, Fill::ScalarMean, Fill::DatasetMean, Fill::PresentMean];
const CLASS: u32 = 2;

fn classes() -> Tensor {
    Tensor::new(&[CLASS], &Device::Cpu).unwrap()
}

/// v(S) for every set of positions, by really masking the features.
fn coalitions(model: &Toy, features: &Tensor, score: Score, fill: Fill) -> Result<Vec<f64>> {
    let (_, k, h, w) = features.dims4()?;
    let n = h * w;
    let a: Vec<f64> = values(features)?;
    let mean = |c: usize| (0..n).map(|p| a[c * n + p]).sum::<f64>() / n as f64;
    let all = a.iter().sum::<f64>() / a.len() as f64;
    let masked: Vec<f64> = (0..1usize << n)
        .flat_map(|set| {
            let present = move |p: usize| set >> p & 1 == 1;
            let size = set.count_ones() as f64;
            let a = &a;
            (0..k * n).map(move |at| {
                let (c, p) = (at / n, at % n);
                if present(p) {
                    return a[at];
                }
                match fill {
                    Fill::Zero => 0.0,
                    Fill::ChannelMean => mean(c),
                    Fill::ScalarMean => all,
                    Fill::DatasetMean => 0.3,
                    Fill::PresentMean if size == 0.0 => 0.0,
                    Fill::PresentMean => (0..n).filter(|p| present(*p)).map(|p| a[c * n + p]).sum::<f64>() / size,
                }
            })
        })
        .collect();
    let masked = Tensor::from_vec(masked, (1 << n, k, h, w), &Device::Cpu)?;
    let class = Tensor::full(CLASS, 1 << n, &Device::Cpu)?;
    values(&score.of(&model.head(&masked)?, &class)?)
}

/// The definition: every marginal contribution, weighted.
fn shapley(v: &[f64], n: usize) -> Vec<f64> {
    let factorial = |m: usize| (1..=m).map(|x| x as f64).product::<f64>();
    let weight = |size: usize| factorial(size) * factorial(n - size - 1) / factorial(n);
    (0..n)
        .map(|p| {
            let without = (0..v.len()).filter(|set| set >> p & 1 == 0);
            without.map(|set| weight(set.count_ones() as usize) * (v[set | 1 << p] - v[set])).sum()
        })
        .collect()
}

fn image(seed: u64) -> Result<Tensor> {
    tensor(&[1, 3, 3, 3], seed, DType::F64, &Device::Cpu)
}

#[test]
fn every_estimator_agrees_with_all_coalitions() -> Result<()> {
    for linear in [true, false] {
        let model = Toy::new(3, 5, 4, linear);
        let forward = Forward::new(&model, &image(7)?)?;
        for score in SCORES {
            for fill in FILLS {
                let v = coalitions(&model, &forward.features, score, fill)?;
                let expected = shapley(&v, 9);
                let size = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for estimator in
                    [Computation::Exact, Computation::Det2, Computation::Aumann, Computation::Mc, Computation::Auto]
                {
                    let method =
                        ShapCam { score, fill, estimator, permutations: 4000, tolerance: 0.0, ..Default::default() };
                    let what = format!("linear {linear}, {score:?}, {fill:?}, {estimator:?}");
                    let found = match method.explain(&forward, &classes()) {
                        Ok(found) => found,
                        Err(e) => {
                            // Refusals are part of the contract: exactly where the method's conditions do not hold.
                            let covered = match estimator {
                                Computation::Exact => linear && score == Score::Logit,
                                Computation::Det2 | Computation::Aumann => {
                                    linear && (score == Score::Logit || fill != Fill::PresentMean)
                                }
                                _ => true,
                            };
                            assert!(!covered, "{what}: {e}");
                            continue;
                        }
                    };
                    let phi = values(&found.map)?;
                    // Efficiency.
                    let (sum, whole) = (phi.iter().sum::<f64>(), v[v.len() - 1] - v[0]);
                    let quadrature = if estimator == Computation::Aumann { 1e-3 * size } else { 1e-10 };
                    assert!((sum - whole).abs() < quadrature + 1e-10, "{what}: sums to {sum}, not {whole}");
                    match found.estimators[0].name() {
                        "exact" => assert_close(&what, &phi, &expected, 1e-10),
                        "aumann" => assert_close(&what, &phi, &expected, 0.3),
                        name => {
                            let error = values(found.error.as_ref().unwrap())?;
                            for ((phi, exact), error) in phi.iter().zip(&expected).zip(&error) {
                                let off = (phi - exact).abs();
                                assert!(
                                    off <= 5.0 * error + 1e-9 * size,
                                    "{what} by {name}: {phi} for {exact}, error {error:.1e}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// A position whose features are what it would be filled with contributes nothing; two alike contribute alike.
#[test]
fn null_players_and_symmetry() -> Result<()> {
    for linear in [true, false] {
        let model = Toy::new(3, 5, 4, linear);
        let features = Forward::new(&model, &image(7)?)?.features;
        let mut a: Vec<f64> = values(&features)?;
        for c in 0..5 {
            a[c * 9] = 0.0; // position 0: nobody, with zero fill
            a[c * 9 + 5] = a[c * 9 + 3]; // positions 3 and 5: the same
        }
        let features = Tensor::from_vec(a, (1, 5, 3, 3), &Device::Cpu)?;
        let logits = model.head(&features)?;
        let forward = Forward {
            model: &model,
            images: image(7)?,
            features,
            logits,
            ids: vec![cams::SampleId::default()],
            second_order: false,
        };
        for score in SCORES {
            for estimator in [Computation::Auto, Computation::Det2, Computation::Mc] {
                let method = ShapCam { score, estimator, permutations: 4000, tolerance: 0.0, ..Default::default() };
                let Ok(found) = method.explain(&forward, &classes()) else { continue };
                let phi = values(&found.map)?;
                let size = phi.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let spread = found.error.as_ref().map(values).transpose()?.map_or(0.0, |e| 5.0 * (e[3] + e[5]));
                // The efficiency correction of det2 is spread over all players, nobody included.
                let nobody = if found.estimators[0].name() == "det2" { 0.05 * size } else { 1e-12 };
                assert!(phi[0].abs() <= nobody, "{linear} {score:?} {estimator:?}: {} for nobody", phi[0]);
                assert!((phi[3] - phi[5]).abs() <= spread + 1e-10, "{linear} {score:?} {estimator:?}: {phi:?}");
            }
        }
    }
    Ok(())
}

/// The logit's values are linear in the head: those of a sum of two heads are the sums.
#[test]
fn linearity() -> Result<()> {
    let model = Toy::new(3, 5, 4, true);
    let forward = Forward::new(&model, &image(7)?)?;
    let of = |class: u32| {
        let found = ShapCam { fill: Fill::ChannelMean, ..Default::default() }
            .explain(&forward, &Tensor::new(&[class], &Device::Cpu)?)?;
        values(&found.map)
    };
    let v: Vec<f64> = (0..2)
        .map(|class| {
            let class = Tensor::full(class as u32, 512, &Device::Cpu).unwrap();
            let masked = masked_by_channel_mean(&forward.features).unwrap();
            values(&Score::Logit.of(&model.head(&masked).unwrap(), &class).unwrap()).unwrap()
        })
        .fold(vec![0.0; 512], |sum, v| sum.iter().zip(v).map(|(a, b)| a + b).collect());
    let sum: Vec<f64> = of(0)?.iter().zip(of(1)?).map(|(a, b)| a + b).collect();
    assert_close("sum of two classes", &sum, &shapley(&v, 9), 1e-10);
    Ok(())
}

fn masked_by_channel_mean(features: &Tensor) -> Result<Tensor> {
    let mean = features.mean_keepdim((2, 3))?;
    let present: Vec<f64> = (0..512usize).flat_map(|set| (0..9).map(move |p| (set >> p & 1) as f64)).collect();
    let present = Tensor::from_vec(present, (512, 1, 3, 3), &Device::Cpu)?;
    let absent = present.affine(-1.0, 1.0)?;
    features.broadcast_mul(&present)? + mean.broadcast_mul(&absent)?
}

/// 95 % intervals cover the exact value in 95 % of repetitions, within five binomial standard errors.
#[test]
fn intervals_cover() -> Result<()> {
    let model = Toy::new(3, 5, 4, true);
    let forward = Forward::new(&model, &image(7)?)?;
    let expected = shapley(&coalitions(&model, &forward.features, Score::Prob, Fill::Zero)?, 9);
    let (mut inside, mut all) = (0.0, 0.0);
    for seed in 0..200 {
        let method = ShapCam {
            score: Score::Prob,
            estimator: Computation::Mc,
            permutations: 64,
            tolerance: 0.0,
            seed,
            ..Default::default()
        };
        let found = method.explain(&forward, &classes())?;
        let (phi, error) = (values(&found.map)?, values(found.error.as_ref().unwrap())?);
        for ((phi, exact), error) in phi.iter().zip(&expected).zip(&error) {
            inside += f64::from(u8::from((phi - exact).abs() <= 2.04 * error)); // t at 31 degrees of freedom
            all += 1.0;
        }
    }
    let coverage = inside / all;
    println!("coverage of 95 % intervals over 200 repetitions of 9 values: {coverage:.3}");
    // The nine values of a repetition are not independent: the bound counts repetitions.
    assert!((coverage - 0.95).abs() < 5.0 * (0.95 * 0.05 / 200f64).sqrt(), "{coverage}");
    Ok(())
}

/// A teacher's and a student's permutations are the same: their difference is far less noisy than either.
#[test]
fn common_permutations_cancel_in_a_difference() -> Result<()> {
    let forward_of = |scale: f64| -> Result<Vec<Vec<f64>>> {
        let model = Toy::new(3, 5, 4, true);
        let images = (image(7)? * scale)?;
        let forward = Forward::new(&model, &images)?;
        (0..40)
            .map(|seed| {
                let method = ShapCam {
                    score: Score::Prob,
                    estimator: Computation::Mc,
                    permutations: 16,
                    tolerance: 0.0,
                    seed,
                    ..Default::default()
                };
                values(&method.explain(&forward, &classes())?.map)
            })
            .collect()
    };
    let (teacher, student) = (forward_of(1.0)?, forward_of(0.95)?);
    let variance = |maps: &[Vec<f64>]| -> f64 {
        let n = maps.len() as f64;
        (0..9)
            .map(|p| {
                let mean = maps.iter().map(|m| m[p]).sum::<f64>() / n;
                maps.iter().map(|m| (m[p] - mean).powi(2)).sum::<f64>() / (n - 1.0)
            })
            .sum()
    };
    let difference: Vec<Vec<f64>> =
        teacher.iter().zip(&student).map(|(t, s)| t.iter().zip(s).map(|(t, s)| t - s).collect()).collect();
    let ratio = variance(&difference) / (variance(&teacher) + variance(&student));
    println!("variance of the difference over the sum of variances: {ratio:.4}");
    assert!(ratio < 0.2, "{ratio}");
    Ok(())
}

/// The tensors' det2 and aumann are the numbers', and their gradients are true.
#[test]
fn closed_forms_are_differentiable() -> Result<()> {
    let model = Toy::new(3, 5, 4, true);
    let features = Forward::new(&model, &image(7)?)?.features;
    let at = |features: &Tensor| -> Result<Forward<'_>> {
        Ok(Forward {
            model: &model,
            images: image(7)?,
            logits: model.head(features)?,
            features: features.clone(),
            ids: vec![cams::SampleId::default()],
            second_order: false,
        })
    };
    for score in SCORES {
        for fill in [Fill::Zero, Fill::ChannelMean, Fill::ScalarMean, Fill::DatasetMean] {
            for estimator in [Computation::Det2, Computation::Aumann, Computation::Auto] {
                if estimator == Computation::Det2 && score == Score::Logit {
                    continue;
                }
                let method = ShapCam { score, fill, estimator, ..Default::default() };
                let what = format!("{score:?} {fill:?} {estimator:?}");
                let weighted = |f: &Tensor| -> Result<Tensor> {
                    let map = method.signed(&at(f)?, &classes())?.map;
                    (&map * tensor(&[1, 3, 3], 9, DType::F64, &Device::Cpu)?)?.sum_all()
                };
                let worst = gradcheck(&features, 45, 1e-6, weighted)?;
                assert!(worst < 1e-6, "{what}: {worst:.1e}");
                let tracked = candle_core::Var::from_tensor(&features)?;
                let tensors = values(&method.signed(&at(&tracked)?, &classes())?.map)?;
                let numbers = method.explain(&at(&features)?, &classes())?;
                if numbers.estimators[0].name() != "mc" {
                    assert_close(&what, &tensors, &values(&numbers.map)?, 1e-3);
                }
            }
        }
    }
    Ok(())
}

/// A head like a VGG's: a linear layer over all positions, a ReLU, another linear layer.
struct Vgg {
    first: cams::FirstLayer,
    last: Tensor,
    /// Whether it says so.
    open: bool,
}

impl CamModel for Vgg {
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.clone())
    }
    fn head(&self, features: &Tensor) -> Result<Tensor> {
        let flat = features.flatten_from(1)?;
        self.behind_first_layer(
            &flat.matmul(&self.first.weight.flatten_from(1)?.t()?)?.broadcast_add(&self.first.bias)?,
        )
    }
    fn linear_head(&self) -> Option<cams::LinearHead> {
        None
    }
    fn first_layer(&self) -> Option<cams::FirstLayer> {
        self.open.then(|| self.first.clone())
    }
    fn behind_first_layer(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.relu()?.matmul(&self.last)
    }
}

/// Adding up in the first layer's outputs is evaluating the head on every masked activation.
#[test]
fn a_first_linear_layer_adds_up() -> Result<()> {
    let t = |shape: &[usize], seed| tensor(shape, seed, DType::F64, &Device::Cpu);
    let model = |open| -> Result<Vgg> {
        let first = cams::FirstLayer { weight: t(&[6, 2, 3, 3], 31)?, bias: t(&[6], 32)? };
        Ok(Vgg { first, last: (t(&[6, 4], 33)? * 3.0)?, open })
    };
    let (open, closed) = (model(true)?, model(false)?);
    let images = t(&[2, 2, 3, 3], 34)?;
    let (open, closed) = (Forward::new(&open, &images)?, Forward::new(&closed, &images)?);
    let classes = Tensor::new(&[1u32, 3], &Device::Cpu)?;
    for fill in [Fill::Zero, Fill::ChannelMean, Fill::ScalarMean, Fill::PresentMean] {
        let method = ShapCam { score: Score::Prob, fill, permutations: 64, tolerance: 0.0, ..ShapCam::default() };
        let (a, b) = (method.explain(&open, &classes)?, method.explain(&closed, &classes)?);
        assert_close(&format!("{fill:?}"), &values(&a.map)?, &values(&b.map)?, 1e-12);
        assert_eq!(a.evaluations, b.evaluations);
    }
    Ok(())
}
