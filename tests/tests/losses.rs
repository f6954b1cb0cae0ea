//! Terms of the loss and optimizers, by value, against PyTorch in float64 (`scripts/make_losses.py`,
//! `scripts/make_optimizers.py`).

use std::path::Path;

use anyhow::Result;
use cams::ops::pool;
use candle_core::{DType, Device, Tensor, Var};
use testkit::{assert_close, values};
use trainer::checkpoint::File;
use trainer::config::Optim;
use trainer::distill::distance::region_kl;
use trainer::distill::optimizers;
use trainer::distill::terms::{self, Dist, Dkd, Rkd};

fn fixture(name: &str) -> Result<File> {
    File::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name))
}

/// A tensor of the file.
fn tensor(file: &File, name: &str, dtype: DType) -> Result<Tensor> {
    let shape = file.shapes()?.remove(name).unwrap_or_else(|| panic!("no tensor {name}"));
    Ok(Tensor::from_vec(file.f64(name)?, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

type Loss = Box<dyn Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<Tensor>>;

fn losses() -> Vec<(&'static str, Loss)> {
    let standard = |z: &Tensor| terms::standardised(&z.to_dtype(DType::F64)?);
    vec![
        ("ce", Box::new(|s, _, labels| terms::cross_entropy(s, labels, 0.0))),
        ("ce_smooth", Box::new(|s, _, labels| terms::cross_entropy(s, labels, 0.1))),
        ("kd", Box::new(|s, t, _| terms::distillation(s, t, 4.0))),
        ("kd_std", Box::new(move |s, t, _| terms::distillation(&standard(s)?, &standard(t)?, 2.0))),
        ("dkd", Box::new(|s, t, labels| terms::decoupled(s, t, labels, &Dkd::default()))),
        ("dist", Box::new(|s, t, _| terms::relations(s, t, &Dist { temperature: 4.0, ..Dist::default() }))),
    ]
}

#[test]
fn terms_and_their_gradients_are_pytorchs() -> Result<()> {
    let file = fixture("losses.safetensors")?;
    let mut compared = 0;
    for case in 0.. {
        let Ok(labels) = file.integers(&format!("case{case}.labels"), 1000) else { break };
        let labels = Tensor::new(labels, &Device::Cpu)?;
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let teacher = tensor(&file, &format!("case{case}.teacher"), dtype)?;
            for (name, loss) in losses() {
                let key = format!("case{case}.{name}");
                let what = format!("{key}, {dtype:?}");
                let student = Var::from_tensor(&tensor(&file, &format!("case{case}.student"), dtype)?)?;
                let term = loss(student.as_tensor(), &teacher, &labels)?;
                // Terms that are differences of numbers near 1 are as exact as these.
                let scale = file.f64(&key)?[0].abs().max(if dtype == DType::F32 { 1e-2 } else { 1e-6 });
                let off = (values(&term)?[0] - file.f64(&key)?[0]).abs() / scale;
                assert!(off <= tolerance, "{what}: off by {off:.1e}");
                let grads = term.backward()?;
                let expected = file.f64(&format!("{key}.grad"))?;
                let found = grads.get(student.as_tensor()).map_or(Ok(vec![0.0; expected.len()]), values)?;
                if expected.iter().any(|g| g.abs() > 1e-12) {
                    assert_close(&format!("{what}, gradient"), &found, &expected, tolerance);
                } else {
                    assert!(found.iter().all(|g| g.abs() < 1e-6), "{what}: the gradient should be 0: {found:?}");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 9 * 2 * 6);
    Ok(())
}

#[test]
fn divergence_in_regions_is_pytorchs() -> Result<()> {
    let file = fixture("losses.safetensors")?;
    let mut compared = 0;
    for case in 0.. {
        let key = format!("case{case}");
        let Ok(labels) = file.integers(&format!("{key}.labels"), 1000) else { break };
        if file.f64(&format!("{key}.region_kl")).is_err() {
            continue;
        }
        let labels = Tensor::new(labels, &Device::Cpu)?;
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let student = Var::from_tensor(&tensor(&file, &format!("{key}.student_maps"), dtype)?)?;
            let teacher = tensor(&file, &format!("{key}.teacher_maps"), dtype)?;
            let term = region_kl(student.as_tensor(), &teacher, &labels, 4.0)?;
            assert_close(&key, &values(&term)?, &file.f64(&format!("{key}.region_kl"))?, tolerance);
            let expected = file.f64(&format!("{key}.region_kl.grad"))?;
            let grads = term.backward()?;
            let found = grads.get(student.as_tensor()).map_or(Ok(vec![0.0; expected.len()]), values)?;
            assert_close(&format!("{key}, {dtype:?}, gradient"), &found, &expected, tolerance);
            compared += 1;
        }
    }
    assert_eq!(compared, 6 * 2);
    Ok(())
}

#[test]
fn relations_of_features_are_pytorchs() -> Result<()> {
    let file = fixture("losses.safetensors")?;
    let mut compared = 0;
    let cases = (0..9).map(|case| format!("case{case}"));
    for key in cases.filter(|key| file.f64(&format!("{key}.sp")).is_ok()) {
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let teacher = tensor(&file, &format!("{key}.teacher_features"), dtype)?;
            for term in ["sp", "rkd"] {
                let what = format!("{key}.{term}, {dtype:?}");
                let student = Var::from_tensor(&tensor(&file, &format!("{key}.student_features"), dtype)?)?;
                let value = match term {
                    "sp" => terms::similarity(student.as_tensor(), &teacher)?,
                    _ => terms::geometry(&pool(student.as_tensor())?, &pool(&teacher)?, &Rkd::default())?,
                };
                assert_close(&what, &values(&value)?, &file.f64(&format!("{key}.{term}"))?, tolerance);
                let expected = file.f64(&format!("{key}.{term}.grad"))?;
                let grads = value.backward()?;
                let found = values(grads.get(student.as_tensor()).expect("it is used"))?;
                assert_close(&format!("{what}, gradient"), &found, &expected, tolerance);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 8 * 2 * 2);
    Ok(())
}

#[test]
fn optimizers_go_pytorchs_way() -> Result<()> {
    let file = fixture("optimizers.safetensors")?;
    let base = Optim { momentum: 0.9, weight_decay: 5e-4, ..Optim::default() };
    let cases = [
        ("adamw", Optim { name: "adamw".into(), weight_decay: 0.05, ..base.clone() }),
        ("sgd_nesterov", Optim { nesterov: true, ..base.clone() }),
        ("sgd_reset", Optim { nesterov: false, ..base }),
    ];
    // In f64 by candle's ops, in f32 by the fused step.
    for (dtype, tolerance) in [(DType::F64, 1e-12f64), (DType::F32, 2e-6)] {
        let (gradients, lr) = (tensor(&file, "gradients", dtype)?, file.f64("lr")?);
        for (name, optim) in &cases {
            let parameters = Var::from_tensor(&tensor(&file, "start", dtype)?)?;
            let mut optimizer = optimizers::build(optim, std::slice::from_ref(&parameters))?;
            for (step, lr) in lr.iter().enumerate() {
                if *name == "sgd_reset" && step == 5 {
                    optimizer.reset()?;
                }
                if step == 7 {
                    // A run that is saved here and goes on in another process.
                    let slots = optimizer.slots()?;
                    optimizer = optimizers::build(optim, std::slice::from_ref(&parameters))?;
                    optimizer.restore(&slots)?;
                }
                optimizer.step(&[gradients.get(step)?], *lr)?;
                let expected = &file.f64(name)?[step * 37..][..37];
                // Slots are saved in f32.
                let tolerance = if step < 7 { tolerance } else { tolerance.max(1e-8) };
                assert_close(&format!("{name} {dtype:?} step {step}"), &values(&parameters)?, expected, tolerance);
            }
        }
    }
    Ok(())
}
