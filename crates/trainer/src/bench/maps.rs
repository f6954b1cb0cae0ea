//! What a map costs, and what matching it costs a training step.

use anyhow::{Context, Result};
use cams::methods::{Computation, Methods, ShapCam, Space};
use cams::{Differentiable, Score};

use super::median_ms;
use super::step::{batch, network, train_ms};
use crate::nn::{Backend, Mode, Model};

/// One method's figures.
pub struct Cost {
    /// Its name, and what was set.
    pub method: String,
    /// How its maps come about.
    pub estimator: String,
    /// Images at a time.
    pub images: usize,
    /// Median milliseconds per map, given the forward pass.
    pub ms_per_map: f64,
    /// Evaluations beyond that pass, per image.
    pub evaluations: usize,
    /// Matching a batch's maps: both maps from their passes, the distance, backward to activations and head.
    pub matching_ms: Option<f64>,
    /// Largest error estimate or standard error over the largest value, where the method has one.
    pub error: Option<f64>,
}

/// All figures.
pub struct Maps {
    /// The model's training step on the whole batch, in milliseconds.
    pub train_ms: f64,
    /// The model's forward pass in eval mode, in milliseconds per image.
    pub forward_ms: f64,
    /// The methods.
    pub methods: Vec<Cost>,
}

/// Every method as it comes, and the variants whose cost is another: their settings and name.
fn methods() -> Vec<(String, Methods, &'static str)> {
    let mut all: Vec<_> = Methods::NAMES.iter().map(|name| (name.to_string(), Methods::default(), *name)).collect();
    let mut features = Methods::default();
    features.score_cam.space = Space::Features;
    all.push(("score_cam, features".into(), features, "score_cam"));
    let estimators =
        [("det2", Computation::Det2, 2000), ("aumann", Computation::Aumann, 2000), ("mc 1000", Computation::Mc, 1000)];
    for (name, estimator, permutations) in estimators {
        let mut shap = Methods::default();
        let (score, tolerance) = (Score::Prob, 0.0);
        shap.shap_cam = ShapCam { score, estimator, permutations, tolerance, ..ShapCam::default() };
        all.push((format!("shap_cam prob, {name}"), shap, "shap_cam"));
    }
    all
}

/// Times every method on one architecture with random weights.
pub fn run(arch: &str, images: usize, few: usize, repeats: u32, backend: &Backend) -> Result<Maps> {
    let trained = network(arch, true, backend)?;
    let frozen = network(arch, false, backend)?;
    let mut costs = Vec::new();
    for (label, settings, name) in methods() {
        let method = settings.get(name).context("it is in the list")?;
        let cut = frozen.cut("last")?;
        let explained = |n: usize| -> Result<_> {
            let batch = batch(n)?;
            let pass = frozen.observe(&frozen.images(&batch.pixels)?)?;
            let forward = pass.seen(&*cut, "last", &batch.ids)?;
            let classes = batch.labels_on(frozen.device())?;
            let found = method.explain(&forward, &classes)?;
            Ok((batch, forward, classes, found))
        };
        // A method that takes passes is timed on a few images; which do is known once it has explained them.
        let mut first = explained(few)?;
        let passes = first.3.evaluations > 0;
        if !passes {
            first = explained(images)?;
        }
        let (batch, forward, classes, found) = first;
        let timed = if passes { 1 } else { repeats };
        let ms = median_ms(timed, frozen.device(), || Ok(method.explain(&forward, &classes).map(drop)?))?;
        let error = match &found.error {
            Some(error) => {
                let largest = |t: &candle_core::Tensor| -> Result<f64> {
                    Ok(t.abs()?.flatten_all()?.max(0)?.to_dtype(candle_core::DType::F64)?.to_scalar()?)
                };
                Some(largest(error)? / largest(&found.map)?.max(f64::MIN_POSITIVE))
            }
            None => None,
        };
        let mut matching_ms = None;
        if !passes && matches!(method.differentiable(), Differentiable::ClosedForm | Differentiable::WeightsConstant) {
            // The student's activations as a variable of their own: the trunk's backward pass belongs to the step.
            let student = trained.forward(&trained.images(&batch.pixels)?, Mode::Eval)?;
            let cut = trained.cut("last")?;
            let features = candle_core::Var::from_tensor(&student.at("last")?.detach())?;
            matching_ms = Some(median_ms(repeats, frozen.device(), || {
                let target = method.signed(&forward, &classes)?.map;
                let mut own = student.seen(&*cut, "last", &batch.ids)?;
                own.features = features.as_tensor().clone();
                own.logits = own.model.head(&own.features)?;
                let map = method.signed(&own, &classes)?.map;
                let grads = (map - target)?.sqr()?.sum((1, 2))?.mean_all()?.backward()?;
                grads.get(&features).context("no gradient reached the activations")?;
                Ok(())
            })?);
        }
        costs.push(Cost {
            method: label,
            estimator: found.estimators[0].name().into(),
            images: batch.len(),
            ms_per_map: ms / batch.len() as f64,
            evaluations: found.evaluations,
            matching_ms,
            error,
        });
    }
    let whole = frozen.images(&batch(images)?.pixels)?;
    let forward_ms =
        median_ms(repeats, frozen.device(), || frozen.forward(&whole, Mode::Eval).map(drop))? / images as f64;
    Ok(Maps { train_ms: train_ms(arch, images, repeats, backend)?, forward_ms, methods: costs })
}
