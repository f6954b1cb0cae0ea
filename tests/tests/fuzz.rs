//! Every reader of foreign bytes, on real files with pieces changed, cut, doubled and swapped: no panic, no memory
//! beyond the file's size times a constant, and no damaged state or cache taken for a whole one.
//!
//! `FUZZ_INPUTS=100000 cargo test --release --test fuzz` tries that many inputs a reader; a few hundred are tried with
//! every test.

use std::path::Path;

use anyhow::Result;
use peak_alloc::PeakAlloc;
use trainer::checkpoint::File;
use trainer::checkpoint::pth::{self, Pth};
use trainer::config::Config;
use trainer::data::boxes::{self, Counting};
use trainer::data::prepare::Prepare;
use trainer::data::{cifar, decode};
use trainer::distill::cache;
use trainer::nn::StateDict;
use trainer::run::state::{EpochFigures, Inputs, State, Sums};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A generator of our own: the same inputs everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n.max(1)
    }
}

/// Numbers that lengths and counts like to go wrong at.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

fn mutate(seed: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + chance.below(4) {
        let len = bytes.len();
        let (at, span) = (chance.below(len), 1 + chance.below(16));
        let end = (at + span).min(len);
        match chance.below(8) {
            0 => bytes.truncate(at),
            1 if len > 0 => bytes[at] ^= 1 << chance.below(8),
            2 if len > 0 => bytes[at] = chance.below(256) as u8,
            3 => {
                let edge = EDGES[chance.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][chance.below(4)].min(len - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = chance.below(len);
                bytes.splice(to..to, piece);
            }
            6 => {
                let piece = bytes[at..end].to_vec();
                let to = chance.below(len.saturating_sub(piece.len()));
                bytes[to..to + piece.len()].copy_from_slice(&piece);
            }
            _ => {
                let piece: Vec<u8> = (0..span).map(|_| chance.below(256) as u8).collect();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Feeds `read` mutated seeds and watches its memory.
fn feed(what: &str, seeds: &[Vec<u8>], usual: usize, [constant, factor]: [usize; 2], mut read: impl FnMut(&[u8])) {
    let count = std::env::var("FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    for seed in seeds {
        read(seed);
    }
    let mut worst = (0.0, 0);
    for i in 0..count {
        let bytes = mutate(&seeds[i % seeds.len()], &mut chance);
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        read(&bytes);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        if taken > worst.1 {
            worst = (taken as f64 / (bytes.len() + 1) as f64, taken);
        }
        assert!(taken <= constant + factor * bytes.len(), "{what}: {} bytes took {taken} bytes of memory", bytes.len());
    }
    println!("{what}: {count} inputs, at most {} kB of memory ({:.1} times the file)", worst.1 / 1000, worst.0);
}

fn state() -> State {
    State {
        step: 7,
        student: StateDict { parameters: vec![1.0, -2.5, 0.25], running: vec![0.5] },
        optimizer: [("momentum".to_string(), vec![0.1, 0.2, 0.3])].into(),
        sums: Sums { images: 3.0, wrong: 1.0, total: 0.7, terms: [("ce".to_string(), 0.1)].into() },
        epochs: vec![EpochFigures { train_error: 1.0, train_loss: 2.0, curve_error: Some(3.0) }],
        commits: vec!["abc".into()],
        best: 12.5,
        inputs: Inputs::from([("teacher".into(), "00ff".into())]),
        ..State::default()
    }
}

/// One test: the allocator's peak is the process's.
#[test]
fn foreign_bytes() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |name: &str| std::fs::read(root.join(name));

    let configs = ["../configs/quickstart.toml", "../configs/teacher.toml", "../configs/distill.toml"];
    let configs = configs.iter().map(|c| file(c)).collect::<std::io::Result<Vec<_>>>()?;
    feed("configuration", &configs, 400, [4 << 20, 64], |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(table) = text.parse()
        {
            let _ = Config::from_table(table);
        }
    });

    let checkpoint = file("fixtures/wrn-10-1.outputs.safetensors")?;
    let header = File::parse("seed".into(), checkpoint.clone())?;
    assert!(header.shapes()?.contains_key("logits"));
    let mut named = checkpoint_with_metadata()?;
    named.push(checkpoint);
    feed("safetensors", &named, 400, [1 << 20, 64], |bytes| {
        if let Ok(file) = File::parse("fuzzed".into(), bytes.to_vec()) {
            let _ = (file.normalization(), file.feature_mean());
            if let Ok(architecture) = file.architecture(None) {
                // A graph's description may be larger than a small file; it is bounded by what names can say.
                if architecture.parameters() < 1 << 20 {
                    let _ = file.state_dict(&architecture);
                }
            }
        }
    });

    let pth = file("fixtures/wrn-10-1.pth")?;
    assert_eq!(Pth::parse(pth.clone())?.mappings.len(), 1);
    // Most of the file is weights: the pickle and the directory, where the structure is, are mutated more often alone.
    feed("pth", &[pth], 400, [1 << 20, 64], |bytes| {
        if let Ok(mut pth) = Pth::parse(bytes.to_vec()) {
            for at in 0..pth.mappings.len().min(4) {
                let _ = pth.tensors(at);
            }
        }
    });
    feed("pickle", &[pickle_of(&file("fixtures/wrn-10-1.pth")?)], 400, [1 << 20, 64], |bytes| {
        let _ = pth::check_pickle(bytes);
    });

    let records: Vec<u8> = (0..3 * 3073).map(|i| (i % 9) as u8).collect();
    feed("CIFAR", &[records], 400, [1 << 20, 64], |bytes| {
        let _ = cifar::records_of(bytes, 1, 10, 3);
    });

    let picture = image::DynamicImage::ImageRgb8(image::RgbImage::from_fn(9, 7, |x, y| {
        image::Rgb([(x * 29) as u8, (y * 31) as u8, (x * y) as u8])
    }));
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    for format in [Png, Jpeg, Bmp, WebP, Gif] {
        let mut seed = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut seed, format)?;
        feed(&format!("image {format:?}"), &[seed.into_inner()], 150, [48 << 20, 1 << 16], |bytes| {
            let _ = decode::decode(bytes, Some(Prepare::stretched(8)));
        });
    }

    let annotation = "<annotation><size><width>50</width><height>37</height></size><object><name>cat</name><bndbox>\
                      <xmin>1</xmin><ymin>2</ymin><xmax>50</xmax><ymax>20</ymax></bndbox></object></annotation>";
    feed("annotation", &[annotation.as_bytes().to_vec()], 400, [1 << 20, 256], |bytes| {
        if let Ok(found) = boxes::parse(&String::from_utf8_lossy(bytes), Counting::FromOne) {
            let [w, h] = found.size.map(f64::from);
            assert!(found.objects.iter().all(|o| o.bounds[0] < o.bounds[2] && o.bounds[2] <= w && o.bounds[3] <= h));
        }
    });

    let values: Vec<f32> = (0..5 * 6).map(|v| v as f32 / 3.0).collect();
    let view = cache::encode(&[2, 3], &values)?;
    feed("view of a cache", std::slice::from_ref(&view), 400, [1 << 20, 64], |bytes| {
        assert!(cache::decode(bytes, 5).is_none() || bytes == view, "a damaged view was taken for a whole one");
    });

    let (dir, state) = (tempfile::tempdir()?, state());
    state.save(&dir.path().join("state"))?;
    let bytes = std::fs::read(dir.path().join("state"))?;
    feed("state", &[bytes], 400, [1 << 20, 64], |bytes| {
        if let Ok(found) = File::parse("fuzzed".into(), bytes.to_vec()).and_then(|file| State::from_file(&file)) {
            assert!(found == state, "a damaged state was taken for a whole one");
        }
    });
    Ok(())
}

/// Small checkpoints with everything in their metadata.
fn checkpoint_with_metadata() -> Result<Vec<Vec<u8>>> {
    use trainer::checkpoint::{Entry, Metadata, write_tensors};
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    let layers = r#"[{"conv":{"channels":2}},{"bn":{}},{"relu":{}},{"residual":{"layers":[{"conv":{"channels":2}}]}}]"#;
    let mut all = vec![];
    for arch in ["layers", "wrn-10-1", "resnet8"] {
        let metadata: Metadata = [
            ("arch", arch),
            ("num_classes", "10"),
            ("input_size", "[3, 32, 32]"),
            ("mean", "[0.5,0.5,0.5]"),
            ("std", "[0.25,0.25,0.25]"),
            ("shortcut", "raw"),
            ("layers", layers),
            ("feature_mean", "[0.1,0.2]"),
        ]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into();
        let tensors = [("conv1.weight".to_string(), Entry::f32(&[2, 3], &[0.5; 6]))].into();
        write_tensors(&path, &tensors, &metadata)?;
        all.push(std::fs::read(&path)?);
    }
    Ok(all)
}

/// The pickle inside a file of torch.save: stored uncompressed, from its protocol's mark to its end.
fn pickle_of(file: &[u8]) -> Vec<u8> {
    let start = file.windows(2).position(|w| w == [0x80, 2]).expect("a pickle");
    let end = start + file[start..].windows(4).position(|w| w == b"PK\x07\x08" || w == b"PK\x03\x04").expect("its end");
    file[start..end].to_vec()
}
