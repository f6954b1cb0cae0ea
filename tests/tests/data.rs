//! Data sets and the loader.

use cams::metrics::localization;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use candle_core::DType;
use trainer::config::Config;
use trainer::data::augment::{Augment, Padding};
use trainer::data::loader::{Batch, Epoch, Loader};
use trainer::data::{Images, Object, Source, Split, Splits, fetch};

fn source(text: &str) -> Result<Source> {
    Source::parse(text)
}

/// Files of CIFAR-10's form with pseudo-random content, the same each time.
fn write_files(dir: &Path, files: &[(&str, usize, usize, usize)]) -> Result<()> {
    for (seed, (file, records, label_bytes, classes)) in files.iter().enumerate() {
        let mut state = seed as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        let mut bytes = Vec::with_capacity(records * (label_bytes + 3072));
        for _ in 0..*records {
            bytes.extend((0..*label_bytes).map(|_| next() % *classes as u8));
            bytes.extend((0..3072).map(|_| next()));
        }
        std::fs::write(dir.join(file), &bytes)?;
    }
    Ok(())
}

/// candle-datasets reads the same files: an oracle for ours, though not a replacement (it makes f32 tensors of all
/// images, panics on damaged files and knows no CIFAR-100).
#[test]
fn cifar10_is_read_as_candle_datasets_reads_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files: Vec<_> = fetch::CIFAR10.iter().map(|(file, _)| (*file, 10_000, 1, 10)).collect();
    write_files(dir.path(), &files)?;
    let theirs = candle_datasets::vision::cifar::load_dir(dir.path())?;
    for (split, images, labels) in [
        (Split::Train, &theirs.train_images, &theirs.train_labels),
        (Split::Test, &theirs.test_images, &theirs.test_labels),
    ] {
        let ours = source(&format!("cifar10:{}", dir.path().display()))?.load(split)?;
        assert_eq!(ours.labels, labels.to_dtype(DType::U32)?.to_vec1::<u32>()?);
        let n = ours.len();
        assert_eq!(images.dims(), [n, 3, 32, 32]);
        for i in [0, 1, 9_999, n / 2, n - 1] {
            let expected: Vec<f32> = images.get(i)?.flatten_all()?.to_vec1()?;
            let expected: Vec<u8> = expected.iter().map(|p| (p * 255.0).round() as u8).collect();
            assert!(*ours.image(i)? == *expected, "image {i}");
        }
    }
    Ok(())
}

#[test]
fn cifar100_uses_the_fine_label() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_files(dir.path(), &[("test.bin", 10_000, 2, 100)])?;
    let images = source(&format!("cifar100:{}", dir.path().display()))?.load(Split::Test)?;
    let bytes = std::fs::read(dir.path().join("test.bin"))?;
    assert_eq!((images.classes, images.len()), (100, 10_000));
    assert_eq!(images.labels[7], u32::from(bytes[7 * 3074 + 1]));
    assert_eq!(*images.image(7)?, bytes[7 * 3074 + 2..8 * 3074]);
    Ok(())
}

/// The embedded images are CIFAR-10's own: with the full set at hand, every byte is compared.
#[test]
fn the_embedded_set_is_part_of_cifar10() -> Result<()> {
    let mini = source("cifar10-mini")?;
    let (train, test) = (mini.load(Split::Train)?, mini.load(Split::Test)?);
    for (images, per_class) in [(&train, 500), (&test, 100)] {
        assert_eq!(images.len(), 10 * per_class);
        for class in 0..10 {
            assert_eq!(images.labels.iter().filter(|l| **l == class).count(), per_class);
        }
    }
    // Fingerprints of what was compared with the full set when the sheets were made.
    let (mean, std) = train.mean_std()?;
    let close = |a: &[f64], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.01);
    assert!(close(&mean, [0.4914, 0.4822, 0.4465]) && close(&std, [0.2470, 0.2435, 0.2616]), "{mean:?} {std:?}");
    let full = source(&format!("cifar10:{}", testkit::program::root().join("data/cifar10").display()))?;
    match full.load(Split::Test) {
        Err(reason) => println!("not compared with the full set: {reason:#}"),
        Ok(full) => {
            let mut seen = [0; 10];
            for (i, label) in full.labels.iter().enumerate().filter(|(_, l)| **l < 10) {
                let rank = &mut seen[*label as usize];
                if *rank < 100 {
                    assert_eq!(test.image(*label as usize * 100 + *rank)?, full.image(i)?);
                    *rank += 1;
                }
            }
        }
    }
    Ok(())
}

/// Each object lies in its box and stands out from what surrounds it; the set is a function of its seed.
#[test]
fn planted_objects_lie_in_their_boxes() -> Result<()> {
    let mut planted = source("planted")?;
    planted.size = Some(48);
    let images = planted.load(Split::Test)?;
    assert_eq!((images.shape, images.classes), ([3, 48, 48], 6));
    let objects = images.objects.as_ref().expect("objects");
    let mut stands_out = 0;
    for (i, objects) in objects.iter().enumerate() {
        let [Object { class, bounds: [x0, y0, x1, y1], .. }] = &objects[..] else {
            panic!("{} objects", objects.len())
        };
        assert!(x0 < x1 && y0 < y1 && *x1 <= 48 && *y1 <= 48 && *class == images.labels[i], "{objects:?}");
        assert!((x1 - x0) * (y1 - y0) < 48 * 48 / 3, "small objects");
        let image = images.image(i)?;
        let distance =
            |x: usize, y: usize| (0..3).map(|c| (f64::from(image[(c * 48 + y) * 48 + x]) - 127.5).abs()).sum::<f64>();
        let (mut inside, mut outside) = (vec![], vec![]);
        for y in 0..48 {
            for x in 0..48 {
                let within = (*x0..*x1).contains(&(x as u32)) && (*y0..*y1).contains(&(y as u32));
                if within { &mut inside } else { &mut outside }.push(distance(x, y));
            }
        }
        // A map that knows the truth has all of its energy there; one that knows nothing has the box's share.
        let truth = localization::inside(&[[*x0, *y0, *x1, *y1]], 48, 48);
        let perfect: Vec<f64> = truth.iter().map(|inside| f64::from(u8::from(*inside))).collect();
        assert_eq!(localization::energy(&perfect, &truth), Some(1.0));
        let share = localization::energy(&vec![0.25; 48 * 48], &truth).expect("a share");
        assert!((share - f64::from((x1 - x0) * (y1 - y0)) / (48.0 * 48.0)).abs() < 1e-12, "{share}");
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        stands_out += usize::from(mean(&inside) > mean(&outside));
    }
    assert!(stands_out > 980, "{stands_out} of 1000 objects differ more from grey than their background");
    assert_eq!(planted.load(Split::Test)?, images);
    planted.seed = 1;
    assert_ne!(planted.load(Split::Test)?.image(0)?, images.image(0)?);
    Ok(())
}

fn counted(n: usize) -> Images {
    let pixels = (0..n * 3 * 8 * 8).map(|i| (i * 31 % 256) as u8).collect();
    Images::new(pixels, (0..n as u32).map(|i| i % 3).collect(), [3, 8, 8], 3).expect("an image set")
}

fn loader() -> Loader {
    let augment = Augment { pad: 2, padding: Padding::Reflect, flip: true, cutout: 3 };
    Loader { batch: 7, seed: 1, data_seed: 2, views: 3, augment }
}

/// Pixels and labels.
fn contents(batches: &[Batch]) -> Result<Vec<(Vec<u8>, Vec<u32>)>> {
    batches.iter().map(|b| Ok((b.pixels.flatten_all()?.to_vec1()?, b.labels.clone()))).collect()
}

/// An epoch shows every image once; resuming in its middle shows the rest; views repeat after `views` epochs.
#[test]
fn epochs_are_functions_of_the_seed() -> Result<()> {
    let images = Arc::new(counted(30));
    let loader = loader();
    let epoch = |epoch, first| Epoch::new(&images, &loader, epoch, first).collect::<Result<Vec<Batch>>>();
    let whole = epoch(4, 0)?;
    assert_eq!(whole.iter().map(Batch::len).collect::<Vec<_>>(), [7, 7, 7, 7, 2]);
    let seen: BTreeSet<u64> = whole.iter().flat_map(|b| &b.ids).map(|id| id.sample).collect();
    assert_eq!(seen.len(), 30);
    assert_eq!(contents(&epoch(4, 3)?)?, contents(&whole[3..])?);
    assert!(whole.iter().flat_map(|b| &b.ids).all(|id| id.view == 1));
    let view = |batches: &[Batch], sample| {
        let batch = batches.iter().find_map(|b| Some((b, b.ids.iter().position(|id| id.sample == sample)?)));
        let (batch, at) = batch.expect("every image is shown");
        contents(std::slice::from_ref(batch)).expect("pixels")[0].0[at * 192..(at + 1) * 192].to_vec()
    };
    let again = epoch(7, 0)?;
    assert!(contents(&whole)? != contents(&again)?, "another order");
    for sample in 0..30 {
        assert_eq!(view(&whole, sample), view(&again, sample), "the same view");
    }
    let other = epoch(5, 0)?;
    assert!((0..30).filter(|s| view(&whole, *s) == view(&other, *s)).count() < 10, "other views");
    Ok(())
}

/// What breaks while a batch is made ends the epoch with an error, not with silence.
#[test]
fn a_batch_that_cannot_be_made_is_told() {
    let mut images = counted(30);
    images.index.truncate(9);
    let mut epoch = Epoch::new(&Arc::new(images), &loader(), 0, 0);
    let told = epoch.find_map(Result::err).expect("an error");
    assert!(told.to_string().contains("reading the images of a batch has failed"), "{told}");
    assert!(epoch.next().is_none());
}

/// The view of an image does not depend on which others are used.
#[test]
fn limits_and_splits_keep_an_images_identity() -> Result<()> {
    let load = |sets: &str| -> Result<Splits> {
        let text = format!("student.arch = 'resnet8'\n[data]\nname = 'cifar10-mini'\n{sets}");
        Splits::load(&Config::from_table(text.parse()?)?.data)
    };
    let all = load("")?;
    assert!(all.test.is_none() && all.train.len() == 5000 && all.curve.len() == 1000);
    let limited = load("limit = 50")?.train;
    assert_eq!(limited.len(), 50);
    for class in 0..10 {
        assert_eq!(limited.labels.iter().filter(|l| **l == class).count(), 5, "a limit keeps every class");
    }
    for (i, index) in limited.index.iter().enumerate() {
        assert_eq!(limited.image(i)?, all.train.image(*index as usize)?);
    }
    let split = load("validation = 500")?;
    assert!(split.test.is_some_and(|t| t.len() == 1000) && split.train.len() == 4500 && split.curve.len() == 500);
    let both: BTreeSet<u64> = split.train.index.iter().chain(&split.curve.index).copied().collect();
    assert_eq!(both.len(), 5000, "nothing is lost, nothing stands on both sides");
    assert_eq!(load("validation = 500")?.curve.index, split.curve.index);
    assert!(load("validation = 500\nseed = 1")?.curve.index != split.curve.index);
    Ok(())
}
