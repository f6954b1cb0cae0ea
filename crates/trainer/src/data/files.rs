//! Image files on their way to a set: which can be used, and why others cannot.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::decode::{decode, is_turned, of_file};
use super::images::{Images, Object};
use super::prepare::Prepare;

/// Images of files are kept in memory up to this many bytes: more are read again whenever they are used.
const IN_MEMORY: usize = 1 << 30;

/// Image files, each with its label and the objects in it, on their way to a set.
pub struct Files {
    prepare: Prepare,
    kept: Vec<(PathBuf, u32, Vec<Object>)>,
    /// What cannot be used, and why.
    left_out: Vec<String>,
}

impl Files {
    /// None yet.
    pub fn new(prepare: Prepare) -> Files {
        Files { prepare, kept: vec![], left_out: vec![] }
    }

    /// Adds a file.
    pub fn push(&mut self, path: PathBuf, label: u32) {
        self.kept.push((path, label, vec![]));
    }

    /// Adds a file of which `read` finds the label and the objects, or leaves it out and keeps the reason.
    pub fn add(&mut self, path: PathBuf, read: impl FnOnce() -> Result<(u32, Vec<Object>)>) {
        match read() {
            Ok((label, objects)) => self.kept.push((path, label, objects)),
            Err(error) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.leave_out(format!("{name}: {error:#}"));
            }
        }
    }

    /// Keeps in mind that something is left out.
    pub fn leave_out(&mut self, why: String) {
        self.left_out.push(why);
    }

    /// The set: decoded now if it fits into [`IN_MEMORY`], else whenever its images are used.
    ///
    /// # Errors
    /// If one of the files cannot be read.
    pub fn images(self, classes: usize) -> Result<Images> {
        Ok(self.within(IN_MEMORY, classes, true)?.0)
    }

    /// The same of the files that can be read, which must be some, and the objects in each; the set's notes name the
    /// others. `set` is its name in an error.
    pub fn readable(self, classes: usize, set: &Path) -> Result<(Images, Vec<Vec<Object>>)> {
        let (mut images, objects, left_out) = self.within(IN_MEMORY, classes, false)?;
        ensure!(!images.is_empty() || !left_out.is_empty(), "{} holds no image", set.display());
        ensure!(!images.is_empty(), "no image of {} could be used: {}", set.display(), some_of(&left_out));
        images.note_left_out(&left_out);
        Ok((images, objects))
    }

    /// The set, its objects, and what is left out.
    pub(super) fn within(
        self,
        memory: usize,
        classes: usize,
        all: bool,
    ) -> Result<(Images, Vec<Vec<Object>>, Vec<String>)> {
        let Files { prepare, kept, mut left_out } = self;
        let shape = prepare.shape();
        let in_memory = kept.len().saturating_mul(shape.iter().product()) <= memory;
        let read = |bytes: &[u8]| {
            // A file that is not whole is found now in any case, not in the middle of a run.
            Ok((if in_memory { decode(bytes, Some(prepare))?.0 } else { vec![] }, is_turned(bytes)?))
        };
        let each: Vec<Result<_>> = kept.par_iter().map(|(path, ..)| of_file(path, read)).collect();
        let (mut pixels, mut paths, mut labels, mut objects, mut turned) = (vec![], vec![], vec![], vec![], vec![]);
        for ((path, label, found), read) in kept.into_iter().zip(each) {
            match read {
                Ok((bytes, is_turned)) => {
                    pixels.extend(bytes);
                    paths.push(path);
                    labels.push(label);
                    objects.push(found);
                    turned.push(is_turned);
                }
                Err(error) if all => return Err(error),
                Err(error) => left_out.push(format!("{error:#}")),
            }
        }
        let images = match in_memory {
            true => Images::new(pixels, labels, shape, classes),
            false => Images::of_files(paths, prepare, labels, classes),
        };
        Ok((images?.note_turned(&turned), objects, left_out))
    }
}

/// The first few of some reasons, and how many more there are.
pub(super) fn some_of(reasons: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = reasons.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{more}", reasons[..reasons.len().min(SHOWN)].join("; "))
}
