//! A kernel of `cuda/device.cu`, by its name, on tensors of whichever device. All kernels take the same arguments.

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
    fn check(&self, layouts: &[&Layout]) -> Result<()> {
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
    fn on_host(&self, _: &[(&CpuStorage, &Layout)], _: &mut CpuStorage, to_layout: &Layout) -> Result<()> {
        self.check(&[to_layout])?;
        bail!("{} runs on a card; on the CPU a network runs as a stage", self.kernel)
    }
}

#[cfg(feature = "cuda-on-host")]
mod host {
    use std::ffi::{c_uint, c_void};

    use super::*;

    type Kernel = unsafe extern "C" fn(c_uint, *const c_void, *const c_void, *const c_void, *mut c_void, Numbers);

    macro_rules! kernels {
        ($($name:ident),* $(,)?) => {
            unsafe extern "C" {
                $(fn $name(work: c_uint, a: *const c_void, b: *const c_void, c: *const c_void, to: *mut c_void, numbers: Numbers);)*
            }
            /// The kernel of this name.
            fn kernel(name: &str) -> Option<Kernel> {
                match name {
                    $(stringify!($name) => Some($name),)*
                    _ => None,
                }
            }
        };
    }
    kernels!(
        im2col_2,
        im2col_4,
        im2col_8,
        im2col_16,
        col2im_f32,
        col2im_f64,
        col2im_bf16,
        col2im4_f32,
        col2im4_f64,
        col2im4_bf16,
        pack_weight_f32,
        pack_weight_f64,
        pack_weight_bf16,
        unpack_weight_f32,
        unpack_weight_f64,
        unpack_weight_bf16,
        moments_f32,
        moments_f64,
        moments_bf16,
        moments_merge_f32,
        moments_merge_f64,
        moments_merge_bf16,
        table_f32,
        table_f64,
        table_bf16,
        normalize_f32,
        normalize_f64,
        normalize_bf16,
        gradient_sums_f32,
        gradient_sums_f64,
        gradient_sums_bf16,
        gradient_merge_f32,
        gradient_merge_f64,
        gradient_merge_bf16,
        normalize_back_f32,
        normalize_back_f64,
        normalize_back_bf16,
        pool_f32,
        pool_f64,
        pool_bf16,
        pool_back_f32,
        pool_back_f64,
        pool_back_bf16,
        sgd_buffer_f32,
        sgd_buffer_f64,
        sgd_buffer_bf16,
        sgd_f32,
        sgd_f64,
        sgd_bf16,
    );

    /// The memory behind a contiguous view.
    fn bytes(storage: &CpuStorage, layout: &Layout) -> Result<*const c_void> {
        let at = layout.start_offset();
        Ok(match storage {
            CpuStorage::F32(v) => v[at..].as_ptr().cast(),
            CpuStorage::F64(v) => v[at..].as_ptr().cast(),
            CpuStorage::BF16(v) => v[at..].as_ptr().cast(),
            other => bail!("no device kernel takes {:?}", candle_core::backend::BackendStorage::dtype(other)),
        })
    }

    impl Launch {
        pub(super) fn on_host(
            &self,
            inputs: &[(&CpuStorage, &Layout)],
            to: &mut CpuStorage,
            to_layout: &Layout,
        ) -> Result<()> {
            let layouts: Vec<&Layout> = inputs.iter().map(|(_, l)| *l).chain([to_layout]).collect();
            self.check(&layouts)?;
            let Some(kernel) = kernel(&self.kernel) else { bail!("there is no kernel {}", self.kernel) };
            let mut pointers = [std::ptr::null(); 3];
            for (pointer, (storage, layout)) in pointers.iter_mut().zip(inputs) {
                *pointer = bytes(storage, layout)?;
            }
            let [a, b, c] = pointers;
            let out = bytes(to, to_layout)?.cast_mut();
            // SAFETY: the caller has given inputs and an output of the sizes that the kernel's numbers say; the output is
            // borrowed mutably, and no input shares its memory.
            unsafe { kernel(self.work as c_uint, a, b, c, out, self.numbers) };
            Ok(())
        }
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

#[cfg(feature = "cuda")]
mod card {
    use candle_core::cuda_backend::cudarc::driver::{
        CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
    };
    use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};

    use super::*;

    /// What nvcc makes of `cuda/device.cu`.
    const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/device.ptx"));

    /// Threads of a block, as in `cuda/portable.h`.
    const BLOCK: u32 = 256;

    /// Blocks of a grid that has more items than threads: enough for every card, and a loop inside.
    const GRID: u32 = 4096;

    // SAFETY: plain numbers, laid out as C does.
    unsafe impl DeviceRepr for Numbers {}

    /// The address of a contiguous view on the card.
    fn address<'a>(storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
        let at = layout.start_offset();
        let ((address, guard), size) = match &storage.slice {
            CudaStorageSlice::F32(s) => (s.device_ptr(stream), 4),
            CudaStorageSlice::F64(s) => (s.device_ptr(stream), 8),
            CudaStorageSlice::BF16(s) => (s.device_ptr(stream), 2),
            _ => bail!("no device kernel takes this type"),
        };
        Ok((address + (at * size) as u64, guard))
    }

    impl Launch {
        pub(super) fn on_card_anew(
            &self,
            inputs: &[(&CudaStorage, &Layout)],
            shape: &Shape,
            dtype: DType,
        ) -> Result<CudaStorage> {
            let (device, len) = (inputs[0].0.device.clone(), shape.elem_count());
            // SAFETY: the kernel writes every element before anything reads one.
            let mut out = unsafe {
                match dtype {
                    DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(len)?, device),
                    DType::F64 => CudaStorage::wrap_cuda_slice(device.alloc::<f64>(len)?, device),
                    DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(len)?, device),
                    other => bail!("{}: no output of {other:?}", self.kernel),
                }
            };
            self.on_card(inputs, &mut out, &Layout::contiguous(shape))?;
            Ok(out)
        }

        pub(super) fn on_card(
            &self,
            inputs: &[(&CudaStorage, &Layout)],
            to: &mut CudaStorage,
            to_layout: &Layout,
        ) -> Result<()> {
            let layouts: Vec<&Layout> = inputs.iter().map(|(_, l)| *l).chain([to_layout]).collect();
            self.check(&layouts)?;
            if self.work == 0 {
                return Ok(());
            }
            let (device, stream) = (to.device.clone(), to.device.cuda_stream());
            let (mut addresses, mut guards) = ([0u64; 3], Vec::new());
            for (address_of, (storage, layout)) in addresses.iter_mut().zip(inputs) {
                let (found, guard) = address(storage, layout, &stream)?;
                *address_of = found;
                guards.push(guard);
            }
            let (out, guard) = address(to, to_layout, &stream)?;
            guards.push(guard);
            let function = device.get_or_load_custom_func(&self.kernel, "kernels::device", PTX)?;
            let work = self.work as u32;
            let grid = if self.blocks { work.min(65_535) } else { work.div_ceil(BLOCK).min(GRID) };
            let config = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
            let mut builder = function.builder();
            builder.arg(&work);
            addresses.iter().for_each(|address| {
                builder.arg(address);
            });
            builder.arg(&out).arg(&self.numbers);
            // SAFETY: as on the host; the stream runs one kernel after another, so that inputs are complete.
            unsafe { builder.launch(config) }.w()?;
            drop(guards);
            Ok(())
        }
    }
}
