//! Batches, made ahead of the training step on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use cams::SampleId;
use rand::seq::SliceRandom;

use super::Images;
use super::augment::Augment;
use crate::random::{Purpose, stream};

/// A few images as the data set has them; each model normalises them itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// (n, c, h, w).
    pub pixels: Vec<u8>,
    /// (n,).
    pub labels: Vec<u32>,
    /// (n,).
    pub ids: Vec<SampleId>,
    /// Channels, height, width.
    pub shape: [usize; 3],
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// How an epoch's batches are made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Images a batch; the last one may be smaller.
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

impl Plan {
    /// The images as they are, in order.
    pub fn plain(batch: usize) -> Plan {
        Plan { batch, seed: 0, data_seed: 0, views: 0, augment: Augment::default() }
    }

    /// Steps an epoch.
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
    pub fn batch(&self, images: &Images, positions: &[usize], view: u64) -> Batch {
        let len = images.image_len();
        let mut pixels = vec![0; positions.len() * len];
        for (out, &i) in pixels.chunks_exact_mut(len).zip(positions) {
            self.augment.apply(self.data_seed, images.index[i], view, images.shape, images.image(i), out);
        }
        Batch {
            pixels,
            labels: positions.iter().map(|&i| images.labels[i]).collect(),
            ids: positions.iter().map(|&i| SampleId { sample: images.index[i], view }).collect(),
            shape: images.shape,
        }
    }
}

/// An epoch's batches in order, made by a thread that stays a few batches ahead and does not use rayon: with one thread
/// its pool is the thread that waits for the batch.
pub struct Epoch {
    batches: Receiver<Batch>,
    _worker: JoinHandle<()>,
}

impl Epoch {
    /// Starts with step `first` of epoch `epoch`.
    pub fn new(images: &Arc<Images>, plan: &Plan, epoch: usize, first: usize) -> Epoch {
        const AHEAD: usize = 4;
        let (sender, batches) = sync_channel(AHEAD);
        let (images, plan) = (images.clone(), plan.clone());
        let worker = std::thread::spawn(move || {
            let view = plan.view(epoch);
            for positions in plan.order(images.len(), epoch).chunks(plan.batch).skip(first) {
                if sender.send(plan.batch(&images, positions, view)).is_err() {
                    return; // The epoch was left early.
                }
            }
        });
        Epoch { batches, _worker: worker }
    }
}

impl Iterator for Epoch {
    type Item = Batch;
    fn next(&mut self) -> Option<Batch> {
        self.batches.recv().ok()
    }
}
