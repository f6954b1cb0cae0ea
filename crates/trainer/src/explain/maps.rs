//! Images times methods: one pass of a batch serves every method.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cams::Interpreter;
use candle_core::{D, DType, Tensor};

use crate::data::Images;
use crate::data::loader::{Batch, Loader};
use crate::error::sentence;
use crate::nn::Model;

/// Images a forward pass; no map depends on it.
const BATCH: usize = 32;

/// Which class is explained.
pub enum Class {
    /// The label.
    Label,
    /// The most probable one.
    Top1,
    /// This one.
    Number(u32),
    /// One for each image.
    Given(Vec<u32>),
}

impl Class {
    /// `label`, `top1` or a number; without a word the label, where there is one. Errors begin with the setting's name.
    pub fn parse(name: &str, text: Option<&str>, labelled: bool) -> Result<Class> {
        Ok(match text {
            None if labelled => Class::Label,
            None | Some("top1") => Class::Top1,
            Some("label") if labelled => Class::Label,
            Some("label") => {
                bail!(
                    "{name} is label, but no labels of the model's classes are known of these images: use top1 or a number"
                )
            }
            Some(n) => Class::Number(
                n.parse()
                    .ok()
                    .with_context(|| format!("{name} is \"{n}\": expected label, top1 or a class's number"))?,
            ),
        })
    }

    /// The classes (n,) of a batch that lies at `positions`.
    fn of(&self, batch: &Batch, positions: &[usize], logits: &Tensor) -> Result<Tensor> {
        let device = logits.device();
        Ok(match self {
            Class::Label => batch.labels_on(device)?,
            Class::Top1 => logits.argmax(D::Minus1)?,
            Class::Number(c) => {
                let classes = logits.dim(1)?;
                ensure!((*c as usize) < classes, "class {c}: there are {classes} classes, 0 to {}", classes - 1);
                Tensor::full(*c, batch.len(), device)?
            }
            Class::Given(all) => Tensor::new(positions.iter().map(|i| all[*i]).collect::<Vec<_>>(), device)?,
        })
    }
}

/// What a model's methods say about all images.
#[derive(Clone, Debug)]
pub struct Explained {
    /// One for each method.
    pub outcomes: Vec<Outcome>,
    /// Methods that cannot explain this layer, and why, in a sentence that names them.
    pub skipped: Vec<(String, String)>,
    /// Explained, one per image.
    pub classes: Vec<u32>,
    /// (images, classes).
    pub logits: Vec<f32>,
}

/// One method's maps and what they cost.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub method: String,
    /// How each image's map came about.
    pub estimators: Vec<&'static str>,
    /// Of the network or its head, per image, beyond the one pass.
    pub evaluations: usize,
    /// As if it had been asked for alone.
    pub seconds: f64,
    /// Height and width of a map.
    pub shape: [usize; 2],
    /// (images, h, w).
    pub values: Vec<f32>,
    /// Standard errors or error estimates of these, where the method has them.
    pub error: Vec<f32>,
}

impl Outcome {
    fn new(method: &str) -> Outcome {
        Outcome {
            method: method.into(),
            estimators: vec![],
            evaluations: 0,
            seconds: 0.0,
            shape: [0; 2],
            values: vec![],
            error: vec![],
        }
    }

    /// A map that is the same everywhere, for all images.
    pub fn constant(method: &str, images: usize, shape: [usize; 2], value: f32) -> Outcome {
        let values = vec![value; images * shape[0] * shape[1]];
        Outcome { estimators: vec!["constant"; images], shape, values, ..Outcome::new(method) }
    }

    /// Takes a batch's maps.
    fn add(&mut self, explanation: &cams::Explanation) -> Result<()> {
        let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (_, h, w) = explanation.map.dims3()?;
        self.shape = [h, w];
        self.estimators.extend(explanation.estimators.iter().map(|e| e.name()));
        self.evaluations = self.evaluations.max(explanation.evaluations);
        self.values.extend(flat(&explanation.map)?);
        if let Some(error) = &explanation.error {
            self.error.extend(flat(error)?);
        }
        Ok(())
    }

    /// The ways its maps came about, each once: `det2`, or `det2+mc`.
    pub fn estimator(&self) -> String {
        let mut names = self.estimators.clone();
        names.sort_unstable();
        names.dedup();
        names.join("+")
    }
}

/// Every method's maps of all images, from one pass per batch. Of several methods those that cannot explain this layer
/// are left out.
pub fn explain(
    methods: &[(&str, &dyn Interpreter)],
    model: &dyn Model,
    layer: &str,
    images: &Images,
    class: &Class,
) -> Result<Explained> {
    let cut = model.cut(layer)?;
    let outcomes = methods.iter().map(|(name, _)| Outcome::new(name)).collect();
    let mut methods = methods.to_vec();
    let mut found = Explained { outcomes, skipped: vec![], classes: vec![], logits: vec![] };
    let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    for batch in Loader::each(images, BATCH) {
        let (positions, batch) = batch?;
        let clock = Instant::now();
        let pass = model.observe(&model.images(&batch.pixels)?)?;
        let broken = pass.logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        if let Some(at) = broken.iter().position(|logits| !logits.iter().all(|z| z.is_finite())) {
            bail!(
                "the model's logits of image {} are not finite: its weights overflow, or it is given other pixels than it was trained \
                 with (mean, std)",
                images.index[positions[at]]
            );
        }
        let forward = pass.seen(&*cut, layer, &batch.ids)?;
        let wanted = class.of(&batch, &positions, &pass.logits)?;
        let of_pass = clock.elapsed().as_secs_f64();
        let mut failed = Vec::new();
        for (outcome, (name, method)) in found.outcomes.iter_mut().zip(&methods) {
            let clock = Instant::now();
            let explanation = match method.explain(&forward, &wanted) {
                Ok(explanation) => explanation,
                Err(e) => {
                    failed.push((*name, anyhow::Error::from(e)));
                    continue;
                }
            };
            // As if it had been asked for alone.
            outcome.seconds += of_pass + clock.elapsed().as_secs_f64();
            outcome.add(&explanation)?;
        }
        for (method, e) in failed {
            found.outcomes.retain(|o| o.method != method);
            methods.retain(|(name, _)| *name != method);
            if found.outcomes.is_empty() {
                let others: String = found.skipped.iter().map(|(_, why)| format!("; {why}")).collect();
                return Err(e.context(format!("method {method}{others}")));
            }
            found.skipped.push((method.to_string(), format!("{method}: {}", sentence(&e))));
        }
        found.classes.extend(wanted.to_dtype(DType::U32)?.to_vec1::<u32>()?);
        found.logits.extend(flat(&pass.logits)?);
    }
    Ok(found)
}

impl Explained {
    /// Each image's probability of its explained class, in percent.
    pub fn probabilities(&self) -> Vec<f32> {
        let width = self.logits.len() / self.classes.len().max(1);
        let of = |(class, row): (&u32, &[f32])| {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let total: f32 = row.iter().map(|z| (z - largest).exp()).sum();
            100.0 * (row[*class as usize] - largest).exp() / total
        };
        self.classes.iter().zip(self.logits.chunks_exact(width.max(1))).map(of).collect()
    }
}
