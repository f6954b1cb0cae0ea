//! Data sets: u8 images in memory, the list of names, and what is read from where.

pub mod augment;
pub mod cifar;
pub mod decode;
pub mod fetch;
mod folder;
pub mod loader;
pub mod mini;
mod planted;
mod settings;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;

use crate::error::unknown;
use crate::files::sha256;
use crate::random::{Purpose, stream};
pub use decode::{is_image, kinds, read_image};
pub use folder::Found;
pub use settings::Data;

/// Part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For the final figure, read once a run.
    Test,
}

/// Labelled images of one size, as they were stored: u8, channels first.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// (n, channels, h, w).
    pub pixels: Vec<u8>,
    /// (n,).
    pub labels: Vec<u32>,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Position of each image in the set it was taken from: the key of its views.
    pub index: Vec<u64>,
    /// Where the object is, (x0, y0, x1, y1), x0 <= x < x1, if the set says so.
    pub boxes: Option<Vec<[u32; 4]>>,
    /// What whoever uses them should know: files that were passed over, classes without images.
    pub notes: Vec<String>,
}

impl Images {
    /// Checks sizes and labels.
    pub fn new(pixels: Vec<u8>, labels: Vec<u32>, shape: [usize; 3], classes: usize) -> Result<Images> {
        let len: usize = shape.iter().product();
        ensure!(
            pixels.len() == labels.len() * len,
            "{} bytes are not {} images of {shape:?}",
            pixels.len(),
            labels.len()
        );
        if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l as usize >= classes) {
            bail!("image {i} has label {label}, but there are {classes} classes (0 to {})", classes as i64 - 1);
        }
        let index = (0..labels.len() as u64).collect();
        Ok(Images { pixels, labels, shape, classes, index, boxes: None, notes: vec![] })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of an image.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The pixels of image `i`.
    pub fn image(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.pixels[i * self.image_len()..][..self.image_len()]))
    }

    /// A hash of pixels, labels and positions: what a run or a cache depends on.
    pub fn fingerprint(&self) -> Result<String> {
        let mut bytes = self.pixels.clone();
        bytes.extend(self.labels.iter().flat_map(|l| l.to_le_bytes()));
        bytes.extend(self.index.iter().flat_map(|i| i.to_le_bytes()));
        Ok(sha256(&bytes))
    }

    /// The images at these positions, which keep their index.
    pub fn select(&self, positions: &[usize]) -> Images {
        let len = self.image_len();
        Images {
            pixels: positions.iter().flat_map(|&i| &self.pixels[i * len..][..len]).copied().collect(),
            labels: positions.iter().map(|&i| self.labels[i]).collect(),
            index: positions.iter().map(|&i| self.index[i]).collect(),
            boxes: self.boxes.as_ref().map(|b| positions.iter().map(|&i| b[i]).collect()),
            notes: vec![],
            shape: self.shape,
            classes: self.classes,
        }
    }

    /// Mean and standard deviation of each channel of the pixels / 255.
    pub fn mean_std(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let [channels, h, w] = self.shape;
        let mut mean = vec![0.0; channels];
        let mut std = vec![1.0; channels];
        let count = (self.len() * h * w).max(1) as f64;
        for c in 0..channels {
            let values = || {
                let plane = move |i| &self.pixels[i * self.image_len() + c * h * w..][..h * w];
                (0..self.len()).flat_map(move |i| plane(i).iter().map(|p| f64::from(*p)))
            };
            let m = values().sum::<f64>() / count;
            let v = values().map(|p| (p - m) * (p - m)).sum::<f64>() / count;
            mean[c] = m / 255.0;
            if v > 0.0 {
                std[c] = v.sqrt() / 255.0;
            }
        }
        Ok((mean, std))
    }
}

/// A data set as a command or a configuration names it.
#[derive(Clone, Debug)]
pub struct Source {
    /// A name of [`LIST`].
    pub name: String,
    /// Its folder; `data/<name>` where none is given.
    pub dir: Option<PathBuf>,
    /// Height and width for the sets that let one choose.
    pub size: Option<usize>,
    /// Seed of a procedural set.
    pub seed: u64,
}

/// What a data set says of itself.
pub struct DataSet {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Reads a split.
    pub load: fn(&Source, Split) -> Result<Images>,
    /// The mean and standard deviation of its pixels / 255 that everybody uses; None where those of the images at hand are taken.
    pub statistics: Option<[[f64; 3]; 2]>,
    /// The set that this one is a part of.
    pub part_of: Option<&'static str>,
    /// How its files come to this machine, where there are files to fetch.
    pub fetch: Option<Fetch>,
}

/// How a data set's files are brought and checked.
pub struct Fetch {
    /// Brings them into a folder, perhaps from somewhere on this machine; says where they are.
    pub bring: fn(&Path, Option<&Path>) -> Result<PathBuf>,
    /// Each file in a folder, and its hash; an error names the first that is missing or not what it should be.
    pub verify: fn(&Path) -> Result<Vec<(String, String)>>,
}

/// The one list of data sets.
pub const LIST: &[DataSet] = &[cifar::CIFAR10, cifar::CIFAR100, mini::MINI, planted::PLANTED, folder::FOLDER];

impl Source {
    /// Parses `NAME[:DIR]`.
    pub fn parse(text: &str) -> Result<Source> {
        let (name, dir) = text.split_once(':').map_or((text, None), |(n, d)| (n, Some(PathBuf::from(d))));
        let source = Source { name: name.to_string(), dir, size: None, seed: 0 };
        source.entry()?;
        Ok(source)
    }

    /// The same, of the size a model takes, where the set lets one choose.
    pub fn of_size(self, size: usize) -> Source {
        Source { size: Some(size), ..self }
    }

    /// What the list says of it.
    pub fn entry(&self) -> Result<&'static DataSet> {
        LIST.iter().find(|d| d.name == self.name).ok_or_else(|| {
            let names: Vec<_> = LIST.iter().map(|d| d.name).collect();
            unknown("data set", &self.name, &names)
        })
    }

    /// The folder to read.
    pub fn folder(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| Path::new("data").join(&self.name))
    }

    /// `NAME[:DIR]:SPLIT[A..B]`: a slice of a split; None if it is not written so.
    pub fn slice(text: &str) -> Option<(Result<Source>, Split, std::ops::Range<usize>)> {
        let (head, range) = text.strip_suffix(']')?.split_once('[')?;
        let (name, split) = head.rsplit_once(':')?;
        let split = match split {
            "test" => Split::Test,
            "train" => Split::Train,
            _ => return None,
        };
        let (start, end) = range.split_once("..")?;
        let start = if start.is_empty() { 0 } else { start.parse().ok()? };
        let end = if end.is_empty() { usize::MAX } else { end.parse().ok()? };
        Some((Source::parse(name), split, start..end))
    }

    /// Reads one split.
    pub fn load(&self, split: Split) -> Result<Images> {
        (self.entry()?.load)(self, split).with_context(|| format!("data set {}", self.name))
    }
}

/// The images of a run.
pub struct Splits {
    /// For training.
    pub train: Images,
    /// For the curve, after each epoch: the held-out images, or the test set where none are held out.
    pub curve: Images,
    /// The test set, where the curve does not use it; read at the start, so that a run cannot fail at its end.
    pub test: Option<Images>,
    /// What whoever uses them should know.
    pub notes: Vec<String>,
}

impl Splits {
    /// Reads and splits what `[data]` names.
    pub fn load(data: &Data) -> Result<Splits> {
        let all = data.source().load(Split::Train)?;
        let mut positions: Vec<usize> = (0..all.len()).collect();
        let mut held_out = Vec::new();
        if data.validation > 0 {
            ensure!(
                data.validation < all.len(),
                "data.validation is {}, but there are only {} training images",
                data.validation,
                all.len()
            );
            positions.shuffle(&mut stream(data.seed, Purpose::Split, 0));
            held_out = positions.split_off(all.len() - data.validation);
            positions.sort_unstable();
            held_out.sort_unstable();
        }
        if data.limit > 0 && data.limit < positions.len() {
            // Evenly spread, so that a set sorted by class keeps all of them.
            positions = (0..data.limit).map(|i| positions[i * positions.len() / data.limit]).collect();
        }
        let train = all.select(&positions);
        let test = data.source().load(Split::Test)?;
        let notes = [&all.notes[..], &test.notes[..]].concat();
        if data.validation > 0 {
            return Ok(Splits { train, curve: all.select(&held_out), test: Some(test), notes });
        }
        Ok(Splits { train, curve: test, test: None, notes })
    }
}
