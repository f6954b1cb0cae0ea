//! CIFAR-10 and CIFAR-100 in their official binary form (Krizhevsky 2009).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{DataSet, Fetch, Images, Source, Split, fetch};

const PIXELS: usize = 3 * 32 * 32;

/// The usual mean and standard deviation of CIFAR-10's pixels.
pub const CIFAR10_STATISTICS: [[f64; 3]; 2] = [[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]];

pub(super) const CIFAR10: DataSet = DataSet {
    name: "cifar10",
    about: "60,000 images of 10 classes (binary files; `trainer data fetch cifar10`)",
    load: cifar10,
    statistics: Some(CIFAR10_STATISTICS),
    part_of: None,
    fetch: Some(Fetch { bring: fetch::cifar10, verify: fetch::verify }),
    make: None,
};

pub(super) const CIFAR100: DataSet = DataSet {
    name: "cifar100",
    about: "60,000 images of 100 classes (binary files)",
    load: cifar100,
    statistics: None,
    part_of: None,
    fetch: None,
    make: None,
};

/// CIFAR-10: one label byte, then 1024 bytes of red, green and blue.
pub fn cifar10(source: &Source, split: Split) -> Result<Images> {
    source.has_no_files()?;
    let train = ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
    let files = if split == Split::Train { &train[..] } else { &["test_batch.bin"] };
    let path = |file: &&str| locate(&source.folder(), fetch::FOLDER, file, fetch::HINT);
    load(&files.iter().map(path).collect::<Result<Vec<_>>>()?, 1, 10, 10_000)
}

/// CIFAR-100: a coarse and a fine label byte, then the pixels; the fine label is used.
pub fn cifar100(source: &Source, split: Split) -> Result<Images> {
    source.has_no_files()?;
    let (file, records) = if split == Split::Train { ("train.bin", 50_000) } else { ("test.bin", 10_000) };
    let hint = "unpack the official cifar-100-binary.tar.gz there";
    let path = locate(&source.folder(), "cifar-100-binary", file, hint)?;
    load(&[path], 2, 100, records)
}

/// A file in a folder, or in the official archive's folder in it: the one that is read, checked and fetched.
pub(super) fn locate(dir: &Path, inner: &str, file: &str, hint: &str) -> Result<PathBuf> {
    let found = [dir.join(file), dir.join(inner).join(file)].into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no {file} in {} or in its {inner}: {hint} (or give another folder)", dir.display()))
}

fn load(paths: &[PathBuf], label_bytes: usize, classes: usize, records: usize) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for path in paths {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let (images, of) =
            records_of(&bytes, label_bytes, classes, records).with_context(|| path.display().to_string())?;
        pixels.extend(images);
        labels.extend(of);
    }
    Images::new(pixels, labels, [3, 32, 32], classes)
}

/// The pixels and labels of a file of `records` images, `label_bytes` bytes of label in front of each.
pub fn records_of(bytes: &[u8], label_bytes: usize, classes: usize, records: usize) -> Result<(Vec<u8>, Vec<u32>)> {
    let record = label_bytes + PIXELS;
    if bytes.len() != records * record {
        bail!(
            "it has {} bytes, {} are expected ({records} images): it is truncated or not a CIFAR file; fetch it again",
            bytes.len(),
            records * record
        );
    }
    let (mut pixels, mut labels) = (Vec::with_capacity(records * PIXELS), Vec::with_capacity(records));
    for (i, r) in bytes.chunks_exact(record).enumerate() {
        let label = u32::from(r[label_bytes - 1]);
        if label as usize >= classes {
            bail!("image {i} has label {label}, accepted are 0 to {}", classes - 1);
        }
        labels.push(label);
        pixels.extend_from_slice(&r[label_bytes..]);
    }
    Ok((pixels, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is checked is what is read: each file by itself, the folder before the archive's folder in it.
    #[test]
    fn a_file_is_looked_for_in_one_order() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let inner = dir.path().join(fetch::FOLDER);
        fs::create_dir(&inner)?;
        let [train, test] = [fetch::CIFAR10[0].0, fetch::CIFAR10[5].0];
        let find = |file| locate(dir.path(), fetch::FOLDER, file, fetch::HINT);
        fs::write(inner.join(train), "")?;
        fs::write(inner.join(test), "")?;
        assert_eq!(find(test)?, inner.join(test));
        fs::write(dir.path().join(test), "")?;
        assert_eq!([find(train)?, find(test)?], [inner.join(train), dir.path().join(test)]);
        assert!(format!("{:#}", find("x").unwrap_err()).contains(fetch::HINT));
        Ok(())
    }
}
