//! Who says what a student is to match.

use anyhow::Result;
use candle_core::Tensor;

use super::cache::Cache;
use super::output::{Part, TeacherOutput, bias};
use crate::data::loader::Batch;
use crate::nn::Model;

/// Says something about a batch.
pub trait Teacher {
    /// The parts that a loss asks for.
    fn output(&mut self, batch: &Batch) -> Result<TeacherOutput>;
}

/// A frozen model that is asked at every step, or a cache in front of it.
pub struct Frozen<M> {
    /// The model.
    pub model: M,
    /// What is asked for.
    parts: Vec<Part>,
    bias: Option<Tensor>,
    cache: Option<Cache>,
}

impl<M: Model> Frozen<M> {
    /// A teacher that is asked for these parts.
    pub fn new(model: M, parts: Vec<Part>) -> Frozen<M> {
        let bias = bias(&model);
        Frozen { model, parts, bias, cache: None }
    }

    /// The same with a cache of its outputs.
    pub fn with_cache(self, cache: Cache) -> Frozen<M> {
        Frozen { cache: Some(cache), ..self }
    }

    /// What the model itself says.
    pub fn ask(&self, batch: &Batch) -> Result<TeacherOutput> {
        let pass = self.model.glance(&self.model.images(&batch.pixels)?)?;
        let labels = batch.labels_on(pass.logits.device())?;
        TeacherOutput::of(&self.parts, &self.model, &pass, &labels, &batch.ids)
    }
}

impl<M: Model> Teacher for Frozen<M> {
    /// Read from the cache, or computed and remembered.
    fn output(&mut self, batch: &Batch) -> Result<TeacherOutput> {
        if let Some(cache) = &mut self.cache
            && let Some(tensors) = cache.read(batch)?
        {
            return Ok(TeacherOutput::new(&self.parts, tensors, self.bias.clone()));
        }
        let output = self.ask(batch)?;
        if let Some(cache) = &mut self.cache {
            cache.remember(batch, &output.tensors())?;
        }
        Ok(output)
    }
}

impl<T: Teacher + ?Sized> Teacher for Box<T> {
    fn output(&mut self, batch: &Batch) -> Result<TeacherOutput> {
        (**self).output(batch)
    }
}

/// The same answer to everything: for measuring a step without its teacher.
impl Teacher for TeacherOutput {
    fn output(&mut self, _: &Batch) -> Result<TeacherOutput> {
        Ok(self.clone())
    }
}
