//! A card as this program uses it: one stream, and memory that is kept.

use candle_core::{Device, Result};

/// The card of this number.
///
/// # Errors
/// If the driver has none of it, or this build is without the feature `cuda`.
pub fn card(number: usize) -> Result<Device> {
    // With a stream of its own: the one that belongs to a thread would be another in every thread.
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    keep_memory(&device)?;
    Ok(device)
}

/// Freed memory stays with the program instead of going back to the driver whenever the host waits for the card, and no
/// events are recorded around allocations, which would order streams that are not there.
#[cfg(feature = "cuda")]
fn keep_memory(device: &Device) -> Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let cuda = device.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    // SAFETY: every tensor of this device is made, used and freed on its one stream.
    unsafe { cuda.disable_event_tracking() };
    let mut most = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is the context's; the attribute is a number of 64 bits, which the call reads.
    let set = unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device());
        pool.and_then(|pool| result::mem_pool::set_attribute(pool, threshold, (&raw mut most).cast()))
    };
    match set {
        // A card without pools allocates otherwise.
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_SUPPORTED => Ok(()),
        other => other.w(),
    }
}
