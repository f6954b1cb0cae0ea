//! The device kernels: PTX by nvcc for a card (feature `cuda`), a C library for the host (feature `cuda-on-host`).

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    #[cfg(feature = "cuda-on-host")]
    on_host();
    #[cfg(feature = "cuda")]
    for_cards();
}

/// The same source as C. No product is fused with a sum, so that every processor computes the same bits.
#[cfg(feature = "cuda-on-host")]
fn on_host() {
    cc::Build::new()
        .file("cuda/device.cu")
        .flags(["-x", "c", "-std=c11", "-ffp-contract=off"])
        .opt_level(2)
        .warnings(false)
        .compile("device");
}

/// PTX for the oldest card that is served (`CUDA_COMPUTE_CAP`, as candle's own kernels take it); newer ones compile it as
/// they load it.
#[cfg(feature = "cuda")]
fn for_cards() {
    use std::{env, path::PathBuf, process::Command};
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let cap = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let nvcc = match env::var_os("CUDA_HOME") {
        Some(home) => PathBuf::from(home).join("bin/nvcc"),
        None => "nvcc".into(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("device.ptx");
    let mut command = Command::new(&nvcc);
    command.args(["--ptx", "-O3", "--std=c++17", "-arch"]).arg(format!("compute_{cap}"));
    let status = command.arg("cuda/device.cu").arg("-o").arg(out).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}", nvcc.display()),
        Err(e) => panic!(
            "{}: {e}; the feature `cuda` needs NVIDIA's compiler (scripts/build-cuda.sh fetches it)",
            nvcc.display()
        ),
    }
}
