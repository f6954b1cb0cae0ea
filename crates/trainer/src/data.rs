//! Data sets: the list of names, what each says of itself, and the splits of a run.

pub mod augment;
pub mod boxes;
pub mod cifar;
pub mod decode;
pub mod fetch;
mod files;
mod folder;
pub mod imagenet;
mod images;
pub mod loader;
#[cfg(feature = "mini")]
pub mod mini;
mod planted;
pub mod prepare;
mod settings;
pub mod voc;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;

use crate::error::{self, unknown};
use crate::random::{Purpose, stream};
pub use decode::{is_image, kinds, read_image};
pub use folder::Found;
pub use images::{Images, Object, UNSAID};
pub use settings::Data;

/// Part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For the final figure, read once per run.
    Test,
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
    /// What the shorter side of an image file becomes before its middle is kept; the whole image is resized where none is given.
    pub shorter: Option<usize>,
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
    /// The mean and standard deviation of its pixels / 255 that everybody uses; None where those of the images at hand
    /// are taken.
    pub statistics: Option<[[f64; 3]; 2]>,
    /// The set that this one is a part of.
    pub part_of: Option<&'static str>,
    /// How its files come to this machine, where there are files to fetch.
    pub fetch: Option<Fetch>,
    /// Makes the files that it is read from anew, in a folder, where the program has them inside; says which.
    pub make: Option<Make>,
}

/// Writes files into a folder, and says which.
pub type Make = fn(&Path) -> Result<Vec<PathBuf>>;

/// Files and their hashes.
pub type Hashes = Vec<(String, String)>;

/// How a data set's files are brought and checked.
pub struct Fetch {
    /// Brings them into a folder, perhaps from somewhere on this machine; says where they are.
    pub bring: fn(&Path, Option<&Path>) -> Result<PathBuf>,
    /// Each file in a folder, and its hash; an error names the first that is missing or not what it should be.
    pub verify: fn(&Path) -> Result<Hashes>,
}

/// The longest that a shorter side may become.
const SHORTER: usize = 4096;

/// The one list of data sets.
pub const LIST: &[DataSet] = &[
    cifar::CIFAR10,
    cifar::CIFAR100,
    #[cfg(feature = "mini")]
    mini::MINI,
    planted::PLANTED,
    folder::FOLDER,
    imagenet::IMAGENET,
    voc::VOC,
];

impl Source {
    /// Parses `NAME[:DIR]`.
    pub fn parse(text: &str) -> Result<Source> {
        let (name, dir) = text.split_once(':').map_or((text, None), |(n, d)| (n, Some(PathBuf::from(d))));
        let source = Source { name: name.to_string(), dir, size: None, shorter: None, seed: 0 };
        source.entry()?;
        Ok(source)
    }

    /// The same, of the size a model takes, where the set lets one choose.
    pub fn of_size(self, size: usize) -> Source {
        Source { size: Some(size), ..self }
    }

    /// How its files become images, of this size where none is asked for.
    ///
    /// # Errors
    /// If the shorter side would be less than that.
    pub fn prepare(&self, side: usize) -> Result<prepare::Prepare> {
        let side = self.size.unwrap_or(side);
        if let Some(shorter) = self.shorter {
            let possible = side..=SHORTER;
            ensure!(possible.contains(&shorter), "resize is {shorter}: {side} to {SHORTER} pixels are possible");
        }
        Ok(prepare::Prepare { side, shorter: self.shorter })
    }

    /// Of a set that is not read from image files: refuses what only those can have done to them.
    fn has_no_files(&self) -> Result<()> {
        ensure!(
            self.shorter.is_none(),
            "data.resize (model.resize) is for sets of image files, which {} is not: leave it out",
            self.name
        );
        Ok(())
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
        (self.entry()?.load)(self, split).with_context(|| error::Data(self.name.clone()))
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
        if let Some(size) = data.size {
            let [_, h, w] = all.shape;
            ensure!(
                [h, w] == [size; 2],
                "data.size is {size}, but the images of {} are {h} x {w}: leave it out",
                data.name
            );
        }
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
