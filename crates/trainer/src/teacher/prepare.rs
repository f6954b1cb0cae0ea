//! A teacher asked once for everything that several runs will want to know.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::Device;

use super::cache::Cache;
use super::{Teacher, cache_of, views};
use crate::claim::Claim;
use crate::config::{Config, Teacher as Section};
use crate::data::loader::Plan;
use crate::data::{Images, Portions};
use crate::error::Claimed;
use crate::nn::Backend;
use crate::objective;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Everything is there.
    Done,
    /// Stopped early; the views that are whole are kept.
    Interrupted,
}

/// Images a forward pass.
const BATCH: usize = 128;

/// Runs that ask the same teacher about the same views, and what they want to know.
struct Group<'c> {
    /// One for each set of parts.
    configs: Vec<&'c Config>,
    /// File name of each part, the configuration that makes it, and its place among that one's tensors.
    parts: Vec<(String, usize, usize)>,
    views: u64,
}

/// Fills the caches of all of these runs, each teacher asked once for a view, until `stop` says so. Several processes may ask at once:
/// one works, the others wait for it. What goes wrong with one teacher does not keep the others from being asked.
pub fn prepare(
    configs: &[&Config],
    device: &Device,
    stop: &dyn Fn() -> bool,
    say: &mut dyn FnMut(&str),
) -> Result<Prepared> {
    let mut failed = None;
    for group in groups(configs)? {
        match group.prepare(device, stop, say) {
            Ok(Prepared::Done) => {}
            Ok(Prepared::Interrupted) => return Ok(Prepared::Interrupted),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(Prepared::Done), Err)
}

impl Group<'_> {
    fn prepare(&self, device: &Device, stop: &dyn Fn() -> bool, say: &mut dyn FnMut(&str)) -> Result<Prepared> {
        let first = self.configs[0];
        let images = Portions::load(&first.data)?.train;
        let (dtype, precision) = first.train.dtype.parts();
        let backend = Backend { precision, ..Backend::new(dtype, device) };
        let section = first.teacher.as_ref().context("a run without a teacher has no cache")?;
        let dir = section.cache.as_ref().context("a run without a cache was grouped")?;
        let key = super::key(first, &images, &backend)?;
        let names: Vec<String> = self.parts.iter().map(|(name, ..)| name.clone()).collect();
        let mut cache = Cache::new(dir, &key, names, &images)?;
        let missing = |cache: &Cache| (0..self.views).filter(|v| !cache.missing(*v).is_empty()).collect::<Vec<_>>();
        if missing(&cache).is_empty() {
            return Ok(Prepared::Done);
        }
        let Some(_claim) = claim(cache.dir(), stop, say)? else { return Ok(Prepared::Interrupted) };
        cache.tidy();
        let wanted = missing(&cache);
        if wanted.is_empty() {
            return Ok(Prepared::Done);
        }
        // Its note speaks of the first run's parts alone.
        let teacher = Teacher::load(&Section { cache: None, ..section.clone() }, first, &images, backend)?;
        say(&teacher.note);
        let shape = |(_, config, at): &(String, usize, usize)| {
            objective::parts(self.configs[*config])[*at].shape(self.configs[*config], &teacher.network)
        };
        let shapes: Vec<Vec<usize>> = self.parts.iter().map(shape).collect::<Result<_>>()?;
        say(&super::sized(&cache, self.views, &shapes, section.cache_limit_mb, images.len())?);
        for (done, view) in wanted.iter().enumerate() {
            if self.fill(&mut cache, &teacher, &images, *view, stop)? == Prepared::Interrupted {
                return Ok(Prepared::Interrupted);
            }
            say(&format!("teacher's cache: view {} of {}", done + 1, wanted.len()));
        }
        Ok(Prepared::Done)
    }

    /// Asks the teacher about every image of a view.
    fn fill(
        &self,
        cache: &mut Cache,
        teacher: &Teacher,
        images: &Images,
        view: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Prepared> {
        let data = &self.configs[0].data;
        let plan = Plan { batch: BATCH, seed: 0, data_seed: data.seed, views: 0, augment: data.augment };
        let network = &teacher.network;
        let positions: Vec<usize> = (0..images.len()).collect();
        for positions in positions.chunks(BATCH) {
            if stop() {
                return Ok(Prepared::Interrupted);
            }
            let batch = plan.batch(images, positions, view);
            let pass = network.signal_pass(&network.images(&batch)?)?;
            let told = self
                .configs
                .iter()
                .map(|config| Ok(objective::signal(config, network, &pass, &batch)?.tensors()))
                .collect::<Result<Vec<_>>>()?;
            let tensors: Vec<_> = self.parts.iter().map(|(_, config, at)| told[*config][*at].clone()).collect();
            cache.remember(&batch, &tensors)?;
        }
        Ok(Prepared::Done)
    }
}

/// Claims a cache's folder, waiting for whoever has it; None if told to stop meanwhile.
fn claim(dir: &Path, stop: &dyn Fn() -> bool, say: &mut dyn FnMut(&str)) -> Result<Option<Claim>> {
    let mut told = false;
    loop {
        match Claim::take(dir) {
            Ok(mut claim) => {
                claim.keep();
                return Ok(Some(claim));
            }
            Err(error) => {
                let Some(claimed) = error.downcast_ref::<Claimed>() else { return Err(error) };
                if !told {
                    say(&format!(
                        "the teacher's cache {} is being filled by {}: waiting",
                        dir.display(),
                        claimed.holder
                    ));
                }
                told = true;
            }
        }
        if stop() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The runs with a cache, by teacher, views and layers; a run whose parts others make too is left out.
fn groups<'c>(configs: &[&'c Config]) -> Result<Vec<Group<'c>>> {
    let mut keys: Vec<String> = vec![];
    let mut groups: Vec<Group> = vec![];
    for config in configs.iter().copied().filter(|c| cache_of(c).is_some()) {
        let (data, layers) = (&config.data, BTreeSet::from_iter(objective::layers(&config.loss)));
        // Where a network is cut must not change its bits, but nothing is lost by asking it as the run would.
        let key = format!("{:?} {data:?} {layers:?} {:?}", config.teacher, config.train.dtype);
        let at = keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            keys.push(key);
            groups.push(Group { configs: vec![], parts: vec![], views: 0 });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.views = group.views.max(views(config));
        let mut made = false;
        for (i, part) in objective::parts(config).into_iter().enumerate() {
            let name = part.name(config)?;
            if !group.parts.iter().any(|(known, ..)| *known == name) {
                group.parts.push((name, group.configs.len(), i));
                made = true;
            }
        }
        if made {
            group.configs.push(config);
        }
    }
    Ok(groups)
}
