//! The kernels as C functions, on the CPU.

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
        self.check(inputs, to_layout)?;
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
