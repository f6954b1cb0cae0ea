//! A teacher asked once for everything that several runs will want to know.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::Device;

use super::claim::Claim;
use super::teacher::{self, cache_of, views};
use crate::config::{Config, Teacher as Section};
use crate::data::loader::Loader;
use crate::data::{Images, Splits};
use crate::distill::cache::Cache;
use crate::distill::teacher::Frozen;
use crate::distill::{Objective, Part};
use crate::error::Claimed;
use crate::nn::{Backend, Network};

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

/// Runs that ask the same teacher about the same views.
struct Group<'c> {
    /// With their terms.
    runs: Vec<(&'c Config, Objective)>,
    views: u64,
}

/// Fills the caches of all of these runs, each teacher asked once for a view, until `stop` says so. Several processes
/// may ask at once: one works, the others wait for it. What goes wrong with one teacher does not keep the others from
/// being asked.
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
        let (first, objective) = &self.runs[0];
        let images = Splits::load(&first.data)?.train;
        let (dtype, precision) = first.train.dtype.parts();
        let backend = Backend { precision, ..Backend::new(dtype, device) };
        let section = first.teacher.as_ref().context("a run without a teacher has no cache")?;
        let dir = section.cache.as_ref().context("a run without a cache was grouped")?;
        let key = teacher::key(first, &images, &backend)?;
        let parts = self.parts(&teacher::network(first, objective, backend.clone())?.1)?;
        let mut cache = Cache::new(dir, &key, teacher::names(&parts)?, &images, device)?;
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
        let section = Section { cache: None, ..section.clone() };
        let loaded = teacher::load(&section, first, objective, &images, backend)?;
        say(&loaded.note);
        let shapes = teacher::shapes(&parts, &loaded.teacher.model)?;
        say(&teacher::sized(&cache, self.views, &shapes, section.cache_limit_mb, images.len())?);
        let teacher = Frozen::new(loaded.teacher.model, parts);
        for (done, view) in wanted.iter().enumerate() {
            if self.fill(&mut cache, &teacher, &images, *view, stop)? == Prepared::Interrupted {
                return Ok(Prepared::Interrupted);
            }
            say(&format!("teacher's cache: view {} of {}", done + 1, wanted.len()));
        }
        Ok(Prepared::Done)
    }

    /// What any of its runs asks for, each part once.
    fn parts(&self, teacher: &Network) -> Result<Vec<Part>> {
        let mut parts = vec![];
        for (_, objective) in &self.runs {
            for part in objective.parts(teacher)? {
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
        }
        Ok(parts)
    }

    /// Asks the teacher about every image of a view.
    fn fill(
        &self,
        cache: &mut Cache,
        teacher: &Frozen<Network>,
        images: &Images,
        view: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Prepared> {
        let data = &self.runs[0].0.data;
        let loader = Loader { batch: BATCH, seed: 0, data_seed: data.seed, views: 0, augment: data.augment };
        let positions: Vec<usize> = (0..images.len()).collect();
        for positions in positions.chunks(BATCH) {
            if stop() {
                return Ok(Prepared::Interrupted);
            }
            let batch = loader.batch(images, positions, view)?;
            cache.remember(&batch, &teacher.ask(&batch)?.tensors())?;
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

/// The runs with a cache, by teacher, views and layers.
fn groups<'c>(configs: &[&'c Config]) -> Result<Vec<Group<'c>>> {
    let mut keys: Vec<String> = vec![];
    let mut groups: Vec<Group> = vec![];
    for config in configs.iter().copied().filter(|c| cache_of(c).is_some()) {
        let objective = config.objective()?;
        // Where a network is cut must not change its bits, but nothing is lost by asking it as the run would.
        let layers = objective.layers(&["attention".to_string()]);
        let key = format!("{:?} {:?} {layers:?} {:?}", config.teacher, config.data, config.train.dtype);
        let at = keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            keys.push(key);
            groups.push(Group { runs: vec![], views: 0 });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.views = group.views.max(views(config));
        let same = |(other, _): &(&Config, Objective)| {
            (&other.loss, &other.interpreter) == (&config.loss, &config.interpreter)
        };
        if !group.runs.iter().any(same) {
            group.runs.push((config, objective));
        }
    }
    Ok(groups)
}
