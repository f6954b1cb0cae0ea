//! Labelled images of one size: in memory, or read from their files when they are asked for.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::read_image;
use super::files::some_of;
use super::prepare::Prepare;

/// An object in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its class.
    pub class: u32,
    /// Where it is, (x0, y0, x1, y1) in pixels, x0 <= x < x1.
    pub bounds: [u32; 4],
    /// Whether the annotators call it difficult.
    pub difficult: bool,
}

/// Labelled images, u8, channels first.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    pixels: Pixels,
    /// (n,).
    pub labels: Vec<u32>,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Position of each image in the set it was taken from: the key of its views.
    pub index: Vec<u64>,
    /// The objects in each image, if the set says so.
    pub objects: Option<Vec<Vec<Object>>>,
    /// Whether an image may show several classes, those of its objects; elsewhere its label is its class.
    pub several: bool,
    /// What whoever uses them should know: files that were passed over, classes without images.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Pixels {
    /// (n, channels, h, w).
    Memory(Vec<u8>),
    /// A file for each image, prepared when it is read.
    Files(Vec<PathBuf>, Prepare),
}

/// Of a class that an image neither shows nor does not.
pub const UNSAID: f32 = -1.0;

impl Images {
    /// Images in memory; checks sizes and labels.
    pub fn new(pixels: Vec<u8>, labels: Vec<u32>, shape: [usize; 3], classes: usize) -> Result<Images> {
        let len: usize = shape.iter().product();
        ensure!(
            pixels.len() == labels.len() * len,
            "{} bytes are not {} images of {shape:?}",
            pixels.len(),
            labels.len()
        );
        Images::labelled(Pixels::Memory(pixels), labels, shape, classes)
    }

    /// Images that are read from their files whenever they are used.
    pub(super) fn of_files(paths: Vec<PathBuf>, prepare: Prepare, labels: Vec<u32>, classes: usize) -> Result<Images> {
        Images::labelled(Pixels::Files(paths, prepare), labels, prepare.shape(), classes)
    }

    fn labelled(pixels: Pixels, labels: Vec<u32>, shape: [usize; 3], classes: usize) -> Result<Images> {
        if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l as usize >= classes) {
            bail!("image {i} has label {label}, but there are {classes} classes (0 to {})", classes as i64 - 1);
        }
        let index = (0..labels.len() as u64).collect();
        Ok(Images { pixels, labels, shape, classes, index, objects: None, several: false, notes: vec![] })
    }

    /// Notes how many images ask for a turn that they do not get.
    pub(super) fn note_turned(mut self, turned: &[bool]) -> Images {
        let count = turned.iter().filter(|turned| **turned).count();
        if count > 0 {
            let what = "ask to be turned or mirrored (EXIF): they are used as they are stored, as by torchvision";
            self.notes.push(format!("{count} of {} images {what}", turned.len()));
        }
        self
    }

    /// Notes what could not be used, so that whoever uses the rest knows.
    pub(super) fn note_left_out(&mut self, left_out: &[String]) {
        if !left_out.is_empty() {
            self.notes.push(format!("{} images are left out: {}", left_out.len(), some_of(left_out)));
        }
    }

    /// Without the images whose files cannot be decoded, which its notes name. Those in memory have been.
    pub fn readable(self) -> Images {
        if matches!(self.pixels, Pixels::Memory(_)) {
            return self;
        }
        let read: Vec<Result<()>> = (0..self.len()).into_par_iter().map(|i| self.image(i).map(|_| ())).collect();
        let left_out: Vec<String> =
            read.iter().filter_map(|read| Some(format!("{:#}", read.as_ref().err()?))).collect();
        if left_out.is_empty() {
            return self;
        }
        let kept: Vec<usize> = (0..self.len()).filter(|i| read[*i].is_ok()).collect();
        let mut images = self.select(&kept);
        images.notes = self.notes;
        images.note_left_out(&left_out);
        images
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
    ///
    /// # Errors
    /// If its file has gone or changed since the set was opened.
    pub fn image(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        Ok(match &self.pixels {
            Pixels::Memory(pixels) => Cow::Borrowed(&pixels[i * self.image_len()..][..self.image_len()]),
            Pixels::Files(paths, prepare) => Cow::Owned(read_image(&paths[i], Some(*prepare))?.0),
        })
    }

    /// For each class whether image `i` shows it: 1 or 0, and [`UNSAID`] where all its objects are difficult, which the
    /// VOC challenge counts neither way. None where an image has one class, its label.
    pub fn shown(&self, i: usize) -> Option<Vec<f32>> {
        let objects = self.objects.as_ref().filter(|_| self.several)?;
        let mut shown = vec![0.0; self.classes];
        for object in &objects[i] {
            let shown = &mut shown[object.class as usize];
            *shown = if object.difficult && *shown != 1.0 { UNSAID } else { 1.0 };
        }
        Some(shown)
    }

    /// A hash of pixels (of files: of their bytes), labels, objects and positions: what a run or a cache depends on.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.pixels {
            Pixels::Memory(pixels) => hash.update(pixels),
            Pixels::Files(paths, prepare) => {
                hash.update(format!("{prepare:?}"));
                for path in paths {
                    hash.update(fs::read(path).with_context(|| format!("reading {}", path.display()))?);
                }
            }
        }
        self.labels.iter().for_each(|l| hash.update(l.to_le_bytes()));
        self.index.iter().for_each(|i| hash.update(i.to_le_bytes()));
        if let Some(objects) = &self.objects {
            hash.update(format!("{objects:?}"));
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// At most `count` of them, evenly spread.
    pub fn spread(&self, count: usize) -> Images {
        let count = count.min(self.len());
        self.select(&(0..count).map(|i| i * self.len() / count).collect::<Vec<_>>())
    }

    /// The images at these positions, which keep their index.
    pub fn select(&self, positions: &[usize]) -> Images {
        let len = self.image_len();
        let pixels = match &self.pixels {
            Pixels::Memory(pixels) => {
                Pixels::Memory(positions.iter().flat_map(|&i| &pixels[i * len..][..len]).copied().collect())
            }
            Pixels::Files(paths, prepare) => {
                Pixels::Files(positions.iter().map(|&i| paths[i].clone()).collect(), *prepare)
            }
        };
        Images {
            pixels,
            labels: positions.iter().map(|&i| self.labels[i]).collect(),
            index: positions.iter().map(|&i| self.index[i]).collect(),
            objects: self.objects.as_ref().map(|o| positions.iter().map(|&i| o[i].clone()).collect()),
            several: self.several,
            notes: vec![],
            shape: self.shape,
            classes: self.classes,
        }
    }

    /// Mean and standard deviation of each channel of the pixels / 255.
    pub fn mean_std(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let [channels, h, w] = self.shape;
        let count = (self.len() * h * w).max(1) as f64;
        // Image by image, and in f64: the sums of whole numbers are exact, in memory or not.
        let mut sums = vec![[0.0f64; 2]; channels];
        for i in 0..self.len() {
            for (sums, plane) in sums.iter_mut().zip(self.image(i)?.chunks_exact((h * w).max(1))) {
                for p in plane {
                    let p = f64::from(*p);
                    (sums[0], sums[1]) = (sums[0] + p, sums[1] + p * p);
                }
            }
        }
        let mean = sums.iter().map(|[sum, _]| sum / count / 255.0).collect();
        let std = sums.iter().map(|[sum, squares]| {
            let variance = squares / count - (sum / count).powi(2);
            if variance > 0.0 { variance.sqrt() / 255.0 } else { 1.0 }
        });
        Ok((mean, std.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::Files;
    use super::*;

    #[test]
    fn files_are_the_same_images_in_memory_or_not() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut paths = vec![];
        for i in 0..5u32 {
            let pixel = |x: u32, y: u32| image::Rgb([(x * 9 + i) as u8, (y * 11) as u8, (x * y * i) as u8]);
            paths.push(dir.path().join(format!("{i}.png")));
            image::RgbImage::from_fn(21, 17, pixel).save(&paths[i as usize])?;
        }
        let labels = vec![0, 1, 0, 1, 0];
        let of = |memory| {
            let prepare = Prepare::stretched(16);
            let mut files = Files::new(prepare);
            paths.iter().zip(&labels).for_each(|(path, label)| files.push(path.clone(), *label));
            anyhow::Ok(files.within(memory, 2, true)?.0)
        };
        let (there, read) = (of(1 << 20)?, of(0)?);
        assert!(matches!(there.pixels, Pixels::Memory(_)) && matches!(read.pixels, Pixels::Files(..)));
        let picked = [there.select(&[4, 1]), read.select(&[4, 1])];
        for i in 0..5 {
            assert_eq!(there.image(i)?, read.image(i)?);
        }
        assert_eq!(picked[0].image(1)?, picked[1].image(1)?);
        assert_eq!(picked[1].index, [4, 1]);
        assert_eq!(there.mean_std()?, read.mean_std()?);
        assert_eq!(read.fingerprint()?, of(0)?.fingerprint()?);
        // Its end is there, and its middle is not what it was: that shows when it is decoded.
        let whole = std::fs::read(&paths[3])?;
        let mut damaged = whole.clone();
        damaged[45..60].fill(0xff);
        std::fs::write(&paths[3], damaged)?;
        let error = format!("{:#}", of(1 << 20).unwrap_err());
        assert!(error.contains("3.png cannot be decoded"), "{error}");
        let rest = of(0)?.readable();
        assert_eq!((rest.index.clone(), &rest.labels), (vec![0, 1, 2, 4], &vec![0, 1, 0, 0]));
        assert!(
            rest.notes[0].starts_with("1 images are left out") && rest.notes[0].contains("3.png"),
            "{:?}",
            rest.notes
        );
        std::fs::write(&paths[3], &whole[..60])?;
        assert!(read.image(3).is_err() && of(0).is_err(), "a file that is not whole");
        Ok(())
    }
}
