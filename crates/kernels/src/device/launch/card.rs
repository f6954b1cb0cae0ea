//! The kernels as PTX, on a card.

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
        self.check(inputs, to_layout)?;
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
