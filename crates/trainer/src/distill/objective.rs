//! The terms of a run: built once from their settings, checked there.

use anyhow::{Result, ensure};
use cams::methods::Methods;
use candle_core::Tensor;

use super::output::{MapOf, Part};
use super::terms::{self, Inputs, LIST, Loss, Term, WeightSchedule};
use crate::nn::Model;

/// What a student is to do.
pub struct Objective {
    terms: Vec<Weighted>,
    /// The map that is shown of its models.
    pub shown: MapOf,
}

/// A term with its weight over time.
struct Weighted {
    name: &'static str,
    weight: f64,
    schedule: WeightSchedule,
    term: Box<dyn Term>,
}

/// A term's value at a step.
#[derive(Clone, Debug)]
pub struct Value {
    /// The term's name.
    pub name: &'static str,
    /// Unweighted, a scalar.
    pub value: Tensor,
    /// Its weight at this step, above 0.
    pub weight: f64,
}

/// The terms that take part in a step.
#[derive(Clone, Debug)]
pub struct Losses(pub Vec<Value>);

impl Losses {
    /// `sum of weight * term`.
    pub fn total(&self) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for Value { value, weight, .. } in &self.0 {
            let term = (value * *weight)?;
            total = Some(match total {
                Some(t) => (t + term)?,
                None => term,
            });
        }
        total.ok_or_else(|| anyhow::anyhow!("no term of the loss has a weight at this step"))
    }

    /// The value of a term, if it takes part.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|v| v.name == name).map(|v| &v.value)
    }
}

impl Objective {
    /// The terms that have a weight.
    ///
    /// # Errors
    /// If a setting of one of them is impossible: an interpreter that cannot be matched, at this layer or at all.
    pub fn new(loss: &Loss, methods: &Methods) -> Result<Objective> {
        let (weights, schedules) = (loss.weights.each(), loss.schedule.each());
        let terms = terms::build(loss, methods)?.into_iter().map(|(at, term)| {
            let (name, weight) = weights[at];
            debug_assert_eq!(name, LIST[at].name);
            Weighted { name, weight, schedule: schedules[at], term }
        });
        Ok(Objective { terms: terms.collect(), shown: loss.map(methods) })
    }

    /// Whether any term ever asks a teacher.
    pub fn needs_teacher(&self) -> bool {
        self.terms.iter().any(|t| t.term.needs_teacher())
    }

    /// A term that speaks of activations alone, if there is one.
    pub fn of_activations(&self) -> Option<&'static str> {
        self.terms.iter().find(|t| t.term.is_of_activations()).map(|t| t.name)
    }

    /// Whether a term asks one at this time, in epochs from 0.
    pub fn needs_teacher_at(&self, epoch: f64) -> bool {
        self.at(epoch).any(|(t, _)| t.term.needs_teacher())
    }

    /// What this teacher is asked for.
    pub fn parts(&self, teacher: &dyn Model) -> Result<Vec<Part>> {
        let mut parts = vec![Part::Logits];
        for weighted in &self.terms {
            for part in weighted.term.parts(teacher)? {
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
        }
        Ok(parts)
    }

    /// The layers that a model with these attention layers must hand out.
    pub fn layers(&self, attention: &[String]) -> Vec<String> {
        let mut layers = vec!["last".to_string(), self.shown.layer.clone()];
        layers.extend(self.terms.iter().flat_map(|t| t.term.layers(attention)));
        layers.sort();
        layers.dedup();
        layers
    }

    /// The terms with a weight at a time, in epochs from 0, and that weight.
    fn at(&self, epoch: f64) -> impl Iterator<Item = (&Weighted, f64)> {
        let weight = move |t: &Weighted| t.weight * t.schedule.factor(epoch);
        self.terms.iter().map(move |t| (t, weight(t))).filter(|(_, weight)| *weight > 0.0)
    }

    /// Every term whose weight is not 0 at this time.
    pub fn losses(&self, epoch: f64, inputs: &Inputs) -> Result<Losses> {
        let of = |(t, weight): (&Weighted, f64)| {
            let value = t.term.value(inputs)?;
            ensure!(value.rank() == 0, "the term {} is no scalar: {:?}", t.name, value.dims());
            Ok(Value { name: t.name, value, weight })
        };
        self.at(epoch).map(of).collect::<Result<_>>().map(Losses)
    }

    /// The first of these steps, `steps` of them an epoch, at which no term has a weight.
    pub fn first_idle_step(&self, steps: usize, total: usize) -> Option<usize> {
        // Weights vanish at the start, while they ramp up, and where they are cut off.
        let ends = self.terms.iter().filter_map(|t| t.schedule.end());
        let mut looked: Vec<usize> = ends.map(|end| (end * steps as f64).ceil() as usize).chain([0]).collect();
        looked.sort_unstable();
        let is_idle = |step: usize| self.at(step as f64 / steps as f64).next().is_none();
        looked.into_iter().find(|step| *step < total && is_idle(*step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_runs_out_is_seen_from_the_start() -> Result<()> {
        let idle = |text: &str, steps, total| -> Result<Option<usize>> {
            Ok(Objective::new(&toml::from_str(text)?, &Methods::default())?.first_idle_step(steps, total))
        };
        let both = "weights = { ce = 1.0, kd = 1.0 }\n";
        assert_eq!(idle(both, 10, 40)?, None);
        assert_eq!(idle(&format!("{both}schedule.ce.cut_off = 2.5"), 10, 40)?, None);
        let cut = format!("{both}schedule.ce.cut_off = 2.5\nschedule.kd.cut_off = 1.0");
        assert_eq!(idle(&cut, 10, 40)?, Some(25));
        assert_eq!(idle(&cut, 10, 25)?, None);
        assert_eq!(idle(&format!("{both}schedule.ce.cut_off = 0.0\nschedule.kd.ramp = 1.0"), 10, 40)?, Some(0));
        Ok(())
    }
}
