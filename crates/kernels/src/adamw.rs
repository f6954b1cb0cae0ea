//! AdamW's step as one pass over the parameters.

use rayon::prelude::*;

/// Elements a task.
const TASK: usize = 1 << 15;

/// Adam with decoupled weight decay over a flat parameter vector, one pass: PyTorch's formula,
/// `p *= 1 - lr wd; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
/// p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)`.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
    /// Weight decay, on every parameter.
    pub weight_decay: f64,
    /// Steps done, this one included.
    pub t: u32,
}

impl AdamWStep {
    /// What the means' starting at 0 is made up for with: `1 - beta1^t` and `1 - beta2^t`.
    pub fn corrections(&self) -> [f64; 2] {
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(self.t as i32))
    }
}

/// Applies one step to `p` and its means of the gradient, `m`, and of its square, `v`.
pub fn adamw(step: AdamWStep, g: &[f32], m: &mut [f32], v: &mut [f32], p: &mut [f32]) {
    let [c1, c2] = step.corrections();
    let keep = (1.0 - step.lr * step.weight_decay) as f32;
    let (rate, root, eps) = ((step.lr / c1) as f32, (1.0 / c2.sqrt()) as f32, step.eps as f32);
    let [b1, b2] = [step.beta1, step.beta2].map(|beta| beta as f32);
    let [n1, n2] = [step.beta1, step.beta2].map(|beta| (1.0 - beta) as f32);
    let state = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
    p.par_chunks_mut(TASK).zip(state).zip(g.par_chunks(TASK)).for_each(|((p, (m, v)), g)| {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            *m = b1 * *m + n1 * g;
            *v = b2 * *v + n2 * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() * root + eps);
        }
    });
}
