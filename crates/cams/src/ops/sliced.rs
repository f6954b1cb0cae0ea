//! From an op on slices to a candle op.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

/// A contiguous tensor as numbers.
pub struct Array<'a, T> {
    /// Its values, last axis innermost.
    pub values: &'a [T],
    /// Its shape.
    pub dims: &'a [usize],
}

/// Each input's gradient, where it is wanted.
pub type Gradients<T> = Vec<Option<Vec<T>>>;

/// An op on the values of f32 or f64 tensors; the shapes were checked by who applies it.
pub trait Rule: Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;
    /// The result's shape.
    fn shape(&self, inputs: &[&[usize]]) -> Vec<usize>;
    /// Writes the result over zeros.
    fn forward<T: WithDType>(&self, inputs: &[Array<T>], out: &mut [T]);
    /// The inputs' gradients from the result's.
    fn backward<T: WithDType>(&self, inputs: &[Array<T>], g: &[T], wanted: &[bool]) -> Gradients<T>;
}

/// Whether rules apply to these tensors.
pub fn are_plain(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    let dtype = first.dtype();
    matches!(dtype, DType::F32 | DType::F64) && tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == dtype)
}

/// Applies a rule of one input.
pub fn apply1<R: Rule>(a: &Tensor, rule: R) -> Result<Tensor> {
    a.contiguous()?.apply_op1(Op(rule))
}

/// Applies a rule of two inputs.
pub fn apply2<R: Rule>(a: &Tensor, b: &Tensor, rule: R) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Op(rule))
}

struct Op<R>(R);

fn array<'a, T: WithDType>((storage, layout): (&'a CpuStorage, &'a Layout)) -> Result<Array<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("rules take contiguous tensors") };
    Ok(Array { values: &storage.as_slice::<T>()?[start..end], dims: layout.dims() })
}

impl<R: Rule> Op<R> {
    fn forward(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        match inputs[0].0 {
            CpuStorage::F32(_) => self.forward_in::<f32>(inputs),
            CpuStorage::F64(_) => self.forward_in::<f64>(inputs),
            _ => bail!("{} takes f32 and f64 tensors", R::NAME),
        }
    }

    fn forward_in<T: WithDType>(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let inputs = inputs.iter().map(|input| array::<T>(*input)).collect::<Result<Vec<_>>>()?;
        let dims: Vec<_> = inputs.iter().map(|input| input.dims).collect();
        let shape = Shape::from(self.0.shape(&dims));
        let mut out = vec![T::zero(); shape.elem_count()];
        self.0.forward(&inputs, &mut out);
        Ok((T::to_cpu_storage_owned(out), shape))
    }

    fn backward(&self, inputs: &[&Tensor], g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        match g.dtype() {
            DType::F32 => self.backward_in::<f32>(inputs, g),
            DType::F64 => self.backward_in::<f64>(inputs, g),
            other => bail!("{} takes f32 and f64 tensors, not {other:?}", R::NAME),
        }
    }

    fn backward_in<T: WithDType>(&self, inputs: &[&Tensor], g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
        let g = g.contiguous()?;
        let guards: Vec<_> = inputs.iter().chain([&&g]).map(|t| t.storage_and_layout()).collect();
        let mut arrays = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            let Storage::Cpu(storage) = &**storage else { bail!("{} runs on the CPU", R::NAME) };
            arrays.push(array::<T>((storage, layout))?);
        }
        let Some(g) = arrays.pop() else { bail!("{} has no gradient", R::NAME) };
        let found = self.0.backward(&arrays, g.values, &wanted);
        let tensors = found.into_iter().zip(inputs).zip(wanted);
        tensors
            .map(|((values, input), wanted)| match values.filter(|_| wanted) {
                Some(values) => Tensor::from_vec(values, input.shape(), input.device()).map(Some),
                None => Ok(None),
            })
            .collect()
    }
}

impl<R: Rule> CustomOp1 for Op<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(storage, layout)])
    }
    fn bwd(&self, a: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[a], g)?.pop().flatten())
    }
}

impl<R: Rule> CustomOp2 for Op<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }
    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }
    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut found = self.backward(&[a, b], g)?;
        let second = found.pop().flatten();
        Ok((found.pop().flatten(), second))
    }
}
