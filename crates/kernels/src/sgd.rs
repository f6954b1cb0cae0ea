//! The optimiser's step as one pass over the parameters.

use rayon::prelude::*;

use crate::simd::Element;

/// Elements a task.
const TASK: usize = 1 << 15;

/// SGD with momentum over a flat parameter vector, one pass: PyTorch's formula,
/// `g += wd p; buffer = momentum buffer + g; p -= lr (nesterov ? g + momentum buffer : buffer)`.
#[derive(Clone, Copy, Debug)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Momentum factor.
    pub momentum: f64,
    /// Whether the step looks ahead.
    pub nesterov: bool,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
}

/// Applies one step to `p` and its momentum `buffer`.
pub fn sgd<E: Element>(step: SgdStep, g: &[E], buffer: &mut [E], p: &mut [E]) {
    let [lr, momentum, decay] = [step.lr, step.momentum, step.weight_decay].map(E::of);
    p.par_chunks_mut(TASK).zip(buffer.par_chunks_mut(TASK)).zip(g.par_chunks(TASK)).for_each(|((p, buffer), g)| {
        for ((p, b), g) in p.iter_mut().zip(buffer).zip(g) {
            let g = *g + decay * *p;
            *b = momentum * *b + g;
            *p -= lr * if step.nesterov { g + momentum * *b } else { *b };
        }
    });
}
