//! One GPU: its context, stream, compiled kernels and memory. This file and the folder of its name
//! are all that calls the driver.
//!
//! Invariants: all work is in one stream, in the order of the calls, but for what is recorded and not
//! run; a buffer is zero when it is
//! made and freed when it is dropped; ranges are checked against the buffer's length on the host;
//! uploads have left the caller's memory, and downloads are complete, when the call returns. A kernel
//! can only reach device memory: what a wrong launch could break is a result, or the device's
//! context, never the host's memory.

mod graph;
mod staging;

use crate::compile::compile;
use crate::error::CudaError;
use crate::memory::{DeviceBuffer, DeviceInfo, DeviceSlice, DeviceSliceMut};
use bytemuck::Pod;
use cudarc::driver::sys::{
    CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum, CUresult,
};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex};

pub use graph::Graph;
pub use staging::Staging;

/// An open device; clones are handles to the same.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>, Lane);

/// Where a handle's work goes.
#[derive(Clone, Copy)]
enum Lane {
    /// Into the stream in which it runs.
    Work,
    /// Into the stream that records.
    Recorder,
}

struct Inner {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Records launches for one thread at a time.
    recorder: sys::CUstream,
    recording: Mutex<()>,
    module: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, sys::CUfunction>>,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs, which
// `Gpu::enter` makes it before every call.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver serializes calls on one context itself.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the last handle; nothing made from them is alive, and those that were never made
        // are null. Errors have nobody to go to.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
            }
            if !self.module.is_null() {
                let _ = result::module::unload(self.module);
            }
            for stream in [self.stream, self.recorder].into_iter().filter(|s| !s.is_null()) {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl PartialEq for Gpu {
    /// Whether both are handles to the same device.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn failed(call: &'static str) -> impl Fn(result::DriverError) -> CudaError {
    move |error| CudaError::Driver { call, error: format!("{:?}", error.0) }
}

impl Gpu {
    /// Devices that the driver sees.
    ///
    /// # Errors
    /// No driver, or one that does not start.
    pub fn count() -> Result<usize, CudaError> {
        // SAFETY: looks for the library by name; the driver's initializers have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        match result::init() {
            Ok(()) => {}
            Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
            Err(error) => return Err(failed("cuInit")(error)),
        }
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Opens device `ordinal` and compiles the kernels for it, or takes them from the folder
    /// `cache` if it holds them.
    ///
    /// # Errors
    /// No such device, one that is too old, or kernels that do not compile.
    pub fn open(ordinal: usize, cache: Option<&Path>) -> Result<Self, CudaError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        let info = info(ordinal, device)?;
        let (major, minor) = info.capability;
        if major < 8 {
            return Err(CudaError::Capability { name: info.name, major, minor });
        }
        // A compiler that is older than the device may know the first of its generation, whose code
        // the later ones run.
        let (code, _) = match compile(&format!("sm_{major}{minor}"), &[], cache) {
            Err(error @ CudaError::Compile { .. }) if minor > 0 => {
                compile(&format!("sm_{major}0"), &[], cache).map_err(|_| error)
            }
            compiled => compiled,
        }?;
        // SAFETY: the device exists; the context is released with `Inner`.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // From here on `Inner` gives back what was taken.
        let (stream, module) = (std::ptr::null_mut(), std::ptr::null_mut());
        let (functions, recording) = (Mutex::default(), Mutex::default());
        let recorder = stream;
        let mut inner =
            Inner { info, device, context, stream, recorder, recording, module, functions };
        // SAFETY: the context was retained above.
        unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"))?;
        for stream in [&mut inner.stream, &mut inner.recorder] {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(failed("cuStreamCreate"))?;
        }
        // SAFETY: `code` is a whole image, as the compiler gave it or a cache kept it.
        inner.module = unsafe { result::module::load_data(code.as_ptr().cast()) }
            .map_err(failed("cuModuleLoadData"))?;
        Ok(Self(Arc::new(inner), Lane::Work))
    }

    /// What the device says about itself.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        self.enter()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(failed("cuMemGetInfo"))
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        self.enter()?;
        // The driver refuses to give nothing.
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: the size is not zero; the memory is freed with the buffer.
        let ptr = unsafe { result::malloc_sync(bytes) }.map_err(|error| self.full(bytes, error))?;
        let buffer = DeviceBuffer::new(self.clone(), ptr, len);
        // SAFETY: all of the allocation, which only this call knows.
        unsafe { result::memset_d8_async(ptr, 0, bytes, self.stream()) }
            .map_err(failed("cuMemsetD8Async"))?;
        Ok(buffer)
    }

    fn full(&self, bytes: usize, error: result::DriverError) -> CudaError {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return failed("cuMemAlloc")(error);
        }
        let free = self.free_bytes().unwrap_or(0);
        CudaError::OutOfMemory { bytes: bytes as u64, free, total: self.0.info.total_bytes }
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn upload_new<T: Pod>(&self, values: &[T]) -> Result<DeviceBuffer<T>, CudaError> {
        let mut buffer = self.alloc(values.len())?;
        self.upload(buffer.slice_mut(..), values)?;
        Ok(buffer)
    }

    /// Copies values to the device.
    ///
    /// # Errors
    /// What the driver says, also about kernels that ran before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload<T: Pod>(&self, to: DeviceSliceMut<T>, from: &[T]) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len(), "as many values as places");
        if from.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the range lies in a live buffer, and `from` outlives the copy: it is waited for.
        unsafe { result::memcpy_htod_async(to.ptr(), from, self.stream()) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.synchronize()
    }

    /// Copies values from the device, when all work before is done.
    ///
    /// # Errors
    /// What the driver says, also about kernels that ran before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn download<T: Pod>(&self, to: &mut [T], from: DeviceSlice<T>) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len(), "as many places as values");
        if to.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the range lies in a live buffer, and `to` outlives the copy: it is waited for.
        unsafe { result::memcpy_dtoh_async(to, from.ptr(), self.stream()) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.synchronize()
    }

    /// The values of a slice.
    ///
    /// # Errors
    /// As of [`Self::download`].
    pub fn to_vec<T: Pod>(&self, from: DeviceSlice<T>) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); from.len()];
        self.download(&mut values, from)?;
        Ok(values)
    }

    /// Copies from device to device.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy<T: Pod>(
        &self,
        to: DeviceSliceMut<T>,
        from: DeviceSlice<T>,
    ) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len(), "as many places as values");
        if to.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: both ranges lie in live buffers; those are freed in order with the stream's work.
        unsafe {
            result::memcpy_dtod_async(
                to.ptr(),
                from.ptr(),
                to.len() * size_of::<T>(),
                self.stream(),
            )
        }
        .map_err(failed("cuMemcpyDtoDAsync"))
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zero<T: Pod>(&self, to: DeviceSliceMut<T>) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the range lies in a live buffer.
        unsafe { result::memset_d8_async(to.ptr(), 0, to.len() * size_of::<T>(), self.stream()) }
            .map_err(failed("cuMemsetD8Async"))
    }

    /// Waits for all work so far.
    ///
    /// # Errors
    /// What became of it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream()) }.map_err(failed("a kernel"))
    }

    /// Runs a kernel of [`crate::kernel_sources`] whose argument struct has the layout of `args`.
    ///
    /// # Errors
    /// A launch that the driver refuses.
    pub(crate) fn launch<A: Copy>(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        args: &A,
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.enter()?;
        let function = self.function(kernel)?;
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let grid = (grid[0], grid[1], grid[2]);
        let (block, stream) = ((threads, 1, 1), self.stream());
        // SAFETY: the function is of the loaded module and takes one struct, which the driver
        // copies before it returns.
        unsafe { result::launch_kernel(function, grid, block, shared_bytes, stream, &mut params) }
            .map_err(failed(kernel))
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction, CudaError> {
        /// What every device from compute capability 8.0 on can give to a block.
        const SHARED_BYTES: i32 = 99 << 10;
        let mut functions = self.0.functions.lock().expect("no panic while it is held");
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let name = CString::new(kernel).expect("kernel names hold no zero byte");
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.0.module, name) }
            .map_err(failed("cuModuleGetFunction"))?;
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let fixed = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function was found above.
        unsafe {
            let fixed = result::function::get_function_attribute(function, fixed)
                .map_err(failed("cuFuncGetAttribute"))?;
            result::function::set_function_attribute(function, most, SHARED_BYTES - fixed)
                .map_err(failed("cuFuncSetAttribute"))?;
        }
        functions.insert(kernel, function);
        Ok(function)
    }

    /// Frees what [`Self::alloc`] allocated; the driver waits for kernels that use it.
    pub(crate) fn free(&self, ptr: u64) {
        if self.enter().is_ok() {
            // SAFETY: a buffer frees its memory once, when it is dropped. An error would be that of
            // a kernel before, which the next call reports.
            let _ = unsafe { result::free_sync(ptr) };
        }
    }

    fn stream(&self) -> sys::CUstream {
        match self.1 {
            Lane::Work => self.0.stream,
            Lane::Recorder => self.0.recorder,
        }
    }

    /// Makes the context that of this thread.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.0.context) }.map_err(failed("cuCtxSetCurrent"))
    }
}

fn info(ordinal: usize, device: sys::CUdevice) -> Result<DeviceInfo, CudaError> {
    let attribute = |which| {
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(device, which) }
            .map(|value| u32::try_from(value).unwrap_or(0))
            .map_err(failed("cuDeviceGetAttribute"))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
    // SAFETY: the device exists.
    let total = unsafe { result::device::total_mem(device) };
    let total_bytes = total.map_err(failed("cuDeviceTotalMem"))? as u64;
    let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
    Ok(DeviceInfo { ordinal, name, capability: (major, minor), multiprocessors, total_bytes })
}
