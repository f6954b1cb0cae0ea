//! Against reference values of real checkpoints: every file that lies in `GOLDEN_DIR`.
//! The definitions, and where the tolerances come from, stand in that folder's README.

mod maps;
mod metrics;
mod peers;
mod training;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kernels::stage::Precision;
use testkit::{assert_close, deviation, values};
use trainer::checkpoint::File;
use trainer::data::Images;
use trainer::data::loader::{Batch, Loader};
use trainer::nn::{Backend, Engine, Mode, Model, Network, Pass};

/// The golden files whose name starts so, or why there are none.
fn files(prefix: &str) -> Vec<PathBuf> {
    let Some(dir) = std::env::var_os("GOLDEN_DIR") else {
        println!("skipped: GOLDEN_DIR is not set, so there are no golden files to compare with");
        return vec![];
    };
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("GOLDEN_DIR {}: {e}", dir.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    found.retain(|p| {
        let name = p.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(prefix) && name.ends_with(".safetensors")
    });
    found.sort();
    found.iter().for_each(|f| println!("golden file {}", f.display()));
    assert!(!found.is_empty(), "GOLDEN_DIR holds no {prefix}*.safetensors");
    found
}

/// Where an engine is tested: a card's on the card, if there is one.
fn device(engine: Engine) -> Device {
    let card = (engine == Engine::Device).then(|| kernels::device::card(0).ok()).flatten();
    card.unwrap_or(Device::Cpu)
}

fn network(path: &Path, layers: &[&str], trained: bool, dtype: DType, engine: Engine) -> Result<Network> {
    let file = File::read(path)?;
    let architecture = file.architecture(None)?;
    let weights = file.state_dict(&architecture)?;
    Network::new(
        architecture,
        weights,
        file.normalization()?,
        &layers.iter().map(|l| l.to_string()).collect::<Vec<_>>(),
        trained,
        Backend { engine, dtype, precision: Precision::F32, device: device(engine) },
    )
}

fn images(file: &File) -> Result<Images> {
    let pixels = file.f64("images_u8")?.into_iter().map(|p| p as u8).collect();
    Images::new(pixels, file.f64("labels")?.into_iter().map(|l| l as u32).collect(), [3, 32, 32], 10)
}

fn batch(images: &Images, positions: &[usize]) -> Result<Batch> {
    Loader::plain(1).batch(images, positions, 0)
}

/// Every engine, as the test's device axis: the CPU kernels, those for a card (here as C on the host), candle's own ops.
const ENGINES: [Engine; 3] = [Engine::Kernels, Engine::Device, Engine::Ops];

/// A file of maps and the checkpoint they were made from.
struct Maps {
    file: File,
    weights: PathBuf,
    images: Images,
}

impl Maps {
    fn all() -> Result<Vec<Maps>> {
        files("maps-").iter().map(|path| Maps::open(path)).collect()
    }

    fn open(path: &Path) -> Result<Maps> {
        let file = File::read(path)?;
        let weights = path.parent().context("folder")?.join("..").join(file.get("weights")?);
        Ok(Maps { images: images(&file)?, weights, file })
    }

    /// The network on the first `count` images.
    fn seen(&self, count: usize, layers: &[&str], dtype: DType, engine: Engine) -> Result<Seen> {
        let batch = batch(&self.images, &(0..count).collect::<Vec<_>>())?;
        let network = network(&self.weights, layers, false, dtype, engine)?;
        let pass = network.forward(&network.images(&batch.pixels)?, Mode::Eval)?;
        let labels = batch.labels_on(network.device())?;
        Ok(Seen { batch, network, pass, labels })
    }

    /// A tensor of the file, f32.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.file.f64(name)?, shape, &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    /// Compares with the file.
    #[track_caller]
    fn assert_close(&self, what: &str, found: &Tensor, tolerance: f64) {
        let (found, expected) = (values(found).unwrap(), self.file.f64(what).unwrap());
        println!("{what}: {:.1e}", deviation(&found, &expected));
        assert_close(what, &found, &expected, tolerance);
    }
}

/// A network and what it sees in a batch.
struct Seen {
    batch: Batch,
    network: Network,
    pass: Pass,
    labels: Tensor,
}
