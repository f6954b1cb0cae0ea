//! The kit the tests share: closeness, gradient checks by central differences, reproducible numbers.

pub mod program;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::device::card;

/// Reproducible numbers in [-1, 1): a test's data must not depend on any library's generator.
pub fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// The devices that this build and this machine have: tests of networks run on each. `DEVICE=cuda` or `cuda:N` in the
/// environment asks for that card.
///
/// # Panics
/// If a card that is asked for is not there: tests that pass without it say nothing of it.
pub fn devices() -> Vec<Device> {
    let asked = std::env::var("DEVICE").unwrap_or_default();
    let mut devices = vec![Device::Cpu];
    if let Some(number) = asked.strip_prefix("cuda") {
        let number = number.trim_start_matches(':').parse().unwrap_or(0);
        devices.push(card(number).unwrap_or_else(|e| panic!("DEVICE={asked}: {e}")));
    } else if asked != "cpu" {
        devices.extend(card(0).ok());
        devices.extend(Device::new_metal(0).ok());
    }
    devices
}

/// The card that tests in f64 run on, where there is one, else the CPU; always the same. Metal has no f64.
pub fn device() -> &'static Device {
    static LAST: OnceLock<Device> = OnceLock::new();
    LAST.get_or_init(|| devices().into_iter().rfind(|device| !device.is_metal()).unwrap_or(Device::Cpu))
}

/// A file of `tests/fixtures`, or of the folder that `FIXTURES_DIR` names: a packed test program runs elsewhere than it
/// was built.
pub fn fixture(name: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::env::var_os("FIXTURES_DIR").map_or_else(built, PathBuf::from).join(name)
}

/// A tensor of [`numbers`].
pub fn tensor(shape: &[usize], seed: u64, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(numbers(shape.iter().product(), seed), shape, device)?.to_dtype(dtype)
}

/// max |a - b| / max |b|.
pub fn deviation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let largest = b.iter().fold(1e-300, |m: f64, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m: f64, (a, b)| {
        let d = (a - b).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    }) / largest
}

/// All elements as f64.
pub fn values(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Several tensors' elements, one after another.
pub fn flat(tensors: &[Tensor]) -> Result<Vec<f64>> {
    Ok(tensors.iter().map(values).collect::<Result<Vec<_>>>()?.concat())
}

/// Panics unless the largest difference is at most `tolerance` times the largest value of `b`.
#[track_caller]
pub fn assert_close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    let d = deviation(a, b);
    assert!(d <= tolerance, "{what}: off by {d:.2e} of the largest value, {tolerance:.0e} allowed");
}

/// Compares candle's gradient of the scalar `f(x)` with central differences at `probes` elements of `x`
/// (spread evenly). Returns the largest difference over the largest gradient element.
pub fn gradcheck(x: &Tensor, probes: usize, step: f64, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<f64> {
    let var = Var::from_tensor(&x.to_dtype(DType::F64)?)?;
    let grads = f(var.as_tensor())?.backward()?;
    let Some(gradient) = grads.get(var.as_tensor()) else { return Ok(f64::INFINITY) };
    let gradient = values(gradient)?;
    let base = values(var.as_tensor())?;
    let at = |i: usize, d: f64| -> Result<f64> {
        let mut moved = base.clone();
        moved[i] += d;
        f(&Tensor::from_vec(moved, x.shape(), x.device())?)?.to_dtype(DType::F64)?.to_scalar()
    };
    let largest = gradient.iter().fold(1e-300, |m: f64, g| m.max(g.abs()));
    let mut worst = 0.0f64;
    for p in 0..probes.min(base.len()) {
        let i = p * base.len() / probes.min(base.len());
        let numeric = (at(i, step)? - at(i, -step)?) / (2.0 * step);
        worst = worst.max((numeric - gradient[i]).abs() / largest);
    }
    Ok(worst)
}
