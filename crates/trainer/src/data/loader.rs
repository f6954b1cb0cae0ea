//! Batches, made ahead of the training step on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, ensure};
use cams::SampleId;
use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;

use super::Images;
use super::augment::Augment;
use crate::random::{Purpose, stream};

/// A few images as the data set has them; each model normalises them itself.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (n, c, h, w): u8 from our data sets, anything that the models read from one's own.
    pub pixels: Tensor,
    /// (n,).
    pub labels: Vec<u32>,
    /// (n,).
    pub ids: Vec<SampleId>,
    /// (n, classes), see [`Images::shown`], where images may show several classes.
    pub shown: Option<Vec<f32>>,
}

impl Batch {
    /// One's own tensor (n, c, h, w) and labels; images are numbered in order.
    pub fn new(pixels: Tensor, labels: Vec<u32>) -> Result<Batch> {
        ensure!(pixels.dim(0)? == labels.len(), "{:?} are not {} images", pixels.dims(), labels.len());
        let ids = (0..labels.len() as u64).map(|sample| SampleId { sample, view: 0 }).collect();
        Ok(Batch { pixels, labels, ids, shown: None })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The labels (n,), u32, on a device.
    pub fn labels_on(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.labels, self.len(), device)?)
    }

    /// What each image shows (n, classes), f32, on a device, where it may be several classes.
    pub fn shown_on(&self, device: &Device) -> Result<Option<Tensor>> {
        let tensor =
            |shown: &Vec<f32>| Tensor::from_slice(shown, (self.len(), shown.len() / self.len().max(1)), device);
        Ok(self.shown.as_ref().map(tensor).transpose()?)
    }
}

/// How an epoch's batches are made.
#[derive(Clone, Debug)]
pub struct Loader {
    /// Images per batch; the last one may be smaller.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Seed of the views.
    pub data_seed: u64,
    /// Number of different views of an image; 0 for a new one every epoch.
    pub views: u64,
    /// What a view is.
    pub augment: Augment,
}

impl Loader {
    /// The images as they are, in order.
    pub fn plain(batch: usize) -> Loader {
        Loader { batch, seed: 0, data_seed: 0, views: 0, augment: Augment::default() }
    }

    /// Steps per epoch.
    pub fn steps(&self, images: usize) -> usize {
        images.div_ceil(self.batch)
    }

    /// The order of epoch `epoch` (from 0).
    pub fn order(&self, images: usize, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..images).collect();
        order.shuffle(&mut stream(self.seed, Purpose::Order, epoch as u64));
        order
    }

    /// The view that epoch `epoch` shows.
    pub fn view(&self, epoch: usize) -> u64 {
        if self.views == 0 { epoch as u64 } else { epoch as u64 % self.views }
    }

    /// The images at `positions` in view `view`.
    pub fn batch(&self, images: &Images, positions: &[usize], view: u64) -> Result<Batch> {
        let ([c, h, w], len) = (images.shape, images.image_len());
        let mut pixels = vec![0; positions.len() * len];
        for (out, &i) in pixels.chunks_exact_mut(len.max(1)).zip(positions) {
            self.augment.apply(self.data_seed, images.index[i], view, images.shape, &images.image(i)?, out);
        }
        Ok(Batch {
            pixels: Tensor::from_vec(pixels, (positions.len(), c, h, w), &Device::Cpu)?,
            labels: positions.iter().map(|&i| images.labels[i]).collect(),
            ids: positions.iter().map(|&i| SampleId { sample: images.index[i], view }).collect(),
            shown: positions.iter().map(|&i| images.shown(i)).collect::<Option<Vec<_>>>().map(|all| all.concat()),
        })
    }

    /// All images in order, as they are, a few at a time, with their positions.
    pub fn each<'i>(images: &'i Images, batch: usize) -> impl Iterator<Item = Result<(Vec<usize>, Batch)>> + 'i {
        let loader = Loader::plain(batch);
        (0..images.len()).step_by(batch.max(1)).map(move |from| {
            let positions: Vec<usize> = (from..(from + batch).min(images.len())).collect();
            let batch = loader.batch(images, &positions, 0)?;
            Ok((positions, batch))
        })
    }
}

/// An epoch's batches in order, made by a thread that stays a few batches ahead and does not use rayon: with one thread
/// its pool is the thread that waits for the batch.
pub struct Epoch {
    batches: Receiver<Result<Batch>>,
    /// None once it has ended and been asked why.
    worker: Option<JoinHandle<()>>,
}

impl Epoch {
    /// Starts with step `first` of epoch `epoch`.
    pub fn new(images: &Arc<Images>, loader: &Loader, epoch: usize, first: usize) -> Epoch {
        const AHEAD: usize = 4;
        let (sender, batches) = sync_channel(AHEAD);
        let (images, loader) = (images.clone(), loader.clone());
        let worker = std::thread::spawn(move || {
            let view = loader.view(epoch);
            for positions in loader.order(images.len(), epoch).chunks(loader.batch).skip(first) {
                let batch = loader.batch(&images, positions, view);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return; // The epoch was left early.
                }
            }
        });
        Epoch { batches, worker: Some(worker) }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;
    fn next(&mut self) -> Option<Result<Batch>> {
        if let Ok(batch) = self.batches.recv() {
            return Some(batch);
        }
        // The last batch has been handed out, or the thread broke in the middle of one: what reads images is not all ours.
        let ended = self.worker.take()?.join();
        ended.err().map(|_| Err(anyhow!("reading the images of a batch has failed (see the message above)")))
    }
}
