//! A kernel of `cuda/device.cu`, by its name, on tensors of whichever device. All kernels take the same arguments.

#[cfg(feature = "cuda")]
mod card;
#[cfg(feature = "cuda-on-host")]
mod host;

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::bf16;

/// The numbers that a kernel takes beside its tensors; `cuda/portable.h` has the same.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Numbers {
    /// Whole ones.
    pub n: [i32; 12],
    /// Others.
    pub x: [f64; 4],
}

impl Numbers {
    /// Of these; the rest are 0.
    pub fn new(whole: &[usize], others: &[f64]) -> Result<Numbers> {
        let mut numbers = Numbers::default();
        for (to, from) in numbers.n.iter_mut().zip(whole) {
            let Ok(small) = i32::try_from(*from) else { bail!("{from} is too large a size for a device kernel") };
            *to = small;
        }
        numbers.x.iter_mut().zip(others).for_each(|(to, from)| *to = *from);
        Ok(numbers)
    }
}

/// A launch: how often, and of what.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // Without a card, or a host in its place, nobody launches.
pub struct Launch {
    /// `im2col_4`, `normalize_bf16`.
    pub kernel: String,
    /// Items, or blocks.
    pub work: usize,
    /// Whether `work` counts blocks.
    pub blocks: bool,
    /// See [`Numbers`].
    pub numbers: Numbers,
}

/// A type's name in those of its kernels.
pub fn suffix(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::BF16 => "bf16",
        other => bail!("the device's kernels compute in f32, f64 and bf16, not in {other:?}"),
    })
}

impl Launch {
    /// One item each, of numbers of this type.
    pub fn items(kernel: &str, dtype: DType, work: usize, numbers: Numbers) -> Result<Launch> {
        Ok(Launch { kernel: format!("{kernel}_{}", suffix(dtype)?), work, blocks: false, numbers })
    }

    /// A block each.
    pub fn blocks(kernel: &str, dtype: DType, work: usize, numbers: Numbers) -> Result<Launch> {
        Ok(Launch { blocks: true, ..Launch::items(kernel, dtype, work, numbers)? })
    }

    /// Runs on up to three contiguous inputs; every element of the output is written.
    pub fn run(&self, inputs: &[&Tensor], shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let Some(first) = inputs.first() else { bail!("{} needs an input", self.kernel) };
        let guards: Vec<_> = inputs.iter().map(|t| t.storage_and_layout()).collect();
        let storage = match &*guards[0].0 {
            Storage::Cpu(_) => {
                let mut inputs = Vec::new();
                for (storage, layout) in &guards {
                    let Storage::Cpu(storage) = &**storage else { bail!("{}: inputs on two devices", self.kernel) };
                    inputs.push((storage, *layout));
                }
                let mut out = match dtype {
                    DType::F32 => CpuStorage::F32(vec![0.0; shape.elem_count()]),
                    DType::F64 => CpuStorage::F64(vec![0.0; shape.elem_count()]),
                    DType::BF16 => CpuStorage::BF16(vec![bf16::ZERO; shape.elem_count()]),
                    other => bail!("{}: no output of {other:?}", self.kernel),
                };
                self.on_host(&inputs, &mut out, &Layout::contiguous(&shape))?;
                Storage::Cpu(out)
            }
            Storage::Cuda(_) => {
                let mut inputs = Vec::new();
                for (storage, layout) in &guards {
                    let Storage::Cuda(storage) = &**storage else { bail!("{}: inputs on two devices", self.kernel) };
                    inputs.push((storage, *layout));
                }
                Storage::Cuda(self.on_card_anew(&inputs, &shape, dtype)?)
            }
            Storage::Metal(_) => bail!("{}: there are no kernels for {:?}", self.kernel, first.device()),
        };
        Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }

    /// Runs on one or two inputs, and writes to a view of a tensor that nothing is recorded of.
    pub fn run_into(&self, to: &Tensor, first: &Tensor, second: Option<&Tensor>) -> Result<()> {
        match second {
            None => to.inplace_op2(first, self),
            Some(second) => to.inplace_op3(first, second, self),
        }
    }

    /// What a launch must fulfil: sizes that a kernel's 32-bit positions reach, and contiguous inputs.
    fn check<S>(&self, inputs: &[(&S, &Layout)], to: &Layout) -> Result<()> {
        let layouts: Vec<&Layout> = inputs.iter().map(|(_, layout)| *layout).chain([to]).collect();
        let elements = layouts.iter().map(|l| l.shape().elem_count()).max().unwrap_or(0);
        if self.work.max(elements) >= 1 << 31 {
            bail!(
                "{}: {elements} elements at once are more than a device kernel takes: use smaller batches",
                self.kernel
            );
        }
        if layouts.len() > 4 || layouts.iter().any(|l| !l.is_contiguous()) {
            bail!("{}: up to three contiguous inputs are taken", self.kernel);
        }
        Ok(())
    }
}

impl InplaceOp2 for Launch {
    fn name(&self) -> &'static str {
        "device kernel"
    }
    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, a: &CpuStorage, a_layout: &Layout) -> Result<()> {
        self.on_host(&[(a, a_layout)], to, to_layout)
    }
    fn cuda_fwd(&self, to: &mut CudaStorage, to_layout: &Layout, a: &CudaStorage, a_layout: &Layout) -> Result<()> {
        self.on_card(&[(a, a_layout)], to, to_layout)
    }
}

impl InplaceOp3 for Launch {
    fn name(&self) -> &'static str {
        "device kernel"
    }
    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        to_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        self.on_host(&[(a, a_layout), (b, b_layout)], to, to_layout)
    }
    fn cuda_fwd(
        &self,
        to: &mut CudaStorage,
        to_layout: &Layout,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        self.on_card(&[(a, a_layout), (b, b_layout)], to, to_layout)
    }
}

#[cfg(not(feature = "cuda-on-host"))]
impl Launch {
    fn on_host(&self, inputs: &[(&CpuStorage, &Layout)], _: &mut CpuStorage, to_layout: &Layout) -> Result<()> {
        self.check(inputs, to_layout)?;
        bail!("{} runs on a card; on the CPU a network runs as a stage", self.kernel)
    }
}

#[cfg(not(feature = "cuda"))]
impl Launch {
    fn on_card_anew(&self, _: &[(&CudaStorage, &Layout)], _: &Shape, _: DType) -> Result<CudaStorage> {
        bail!("this build has no kernels for a card: feature `cuda`")
    }
    fn on_card(&self, _: &[(&CudaStorage, &Layout)], _: &mut CudaStorage, _: &Layout) -> Result<()> {
        bail!("this build has no kernels for a card: feature `cuda`")
    }
}
