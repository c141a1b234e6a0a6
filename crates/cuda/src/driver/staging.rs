//! Uploads that nobody waits for.
//!
//! Invariants: a copy reads page-locked memory of the host that is neither written again nor freed
//! before the copy is done, which an event behind it tells; two such buffers take turns, so that
//! whoever stages one pass after the other waits only for the pass before the last.

use super::{Gpu, failed};
use crate::error::CudaError;
use crate::memory::DeviceSliceMut;
use bytemuck::Pod;
use cudarc::driver::sys::CUevent_flags_enum;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Memory of the host from which uploads go on while the host goes on.
pub struct Staging {
    gpu: Gpu,
    sides: [Side; 2],
    next: usize,
}

/// One of the buffers; null before the first use.
struct Side {
    memory: *mut c_void,
    bytes: usize,
    /// Behind the last copy from it.
    copied: sys::CUevent,
}

// SAFETY: the memory is its owner's alone, and handles of the driver may be used from any thread
// whose current context is theirs, which `Gpu::enter` makes it before every call.
unsafe impl Send for Side {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for Side {}

impl Staging {
    /// Without memory; it grows with the first uploads.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let side = || Side { memory: null_mut(), bytes: 0, copied: null_mut() };
        Self { gpu: gpu.clone(), sides: [side(), side()], next: 0 }
    }

    /// The device it uploads to.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Copies values to the device, behind all work so far. `from` is free when the call returns.
    ///
    /// # Errors
    /// What the driver says, also about kernels that ran before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload<T: Pod>(&mut self, to: DeviceSliceMut<T>, from: &[T]) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len(), "as many values as places");
        let bytes = bytemuck::cast_slice::<T, u8>(from);
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.enter()?;
        let side = &mut self.sides[self.next];
        side.wait()?;
        side.grow(bytes.len())?;
        let stream = self.gpu.stream();
        // SAFETY: the buffer is at least as long, belongs to this side alone and no copy reads it:
        // the last one was waited for. The range on the device lies in a live buffer, and buffers
        // are freed behind the stream's work; `wait` goes before whatever writes or frees the host's.
        unsafe {
            side.memory.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            let staged = std::slice::from_raw_parts(side.memory.cast::<u8>(), bytes.len());
            result::memcpy_htod_async(to.ptr(), staged, stream)
                .map_err(failed("cuMemcpyHtoDAsync"))?;
            result::event::record(side.copied, stream).map_err(failed("cuEventRecord"))?;
        }
        self.next = 1 - self.next;
        Ok(())
    }
}

impl Side {
    /// Waits for the last copy.
    fn wait(&mut self) -> Result<(), CudaError> {
        if self.copied.is_null() {
            let flags = CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
            self.copied = result::event::create(flags).map_err(failed("cuEventCreate"))?;
        }
        // SAFETY: the event was created, here or before. One that was never recorded is done.
        unsafe { result::event::synchronize(self.copied) }.map_err(failed("a kernel"))
    }

    /// Makes room, of no use to anybody yet; no copy is under way.
    fn grow(&mut self, bytes: usize) -> Result<(), CudaError> {
        if self.bytes >= bytes {
            return Ok(());
        }
        self.free();
        let bytes = bytes.next_power_of_two();
        // SAFETY: the size is not zero; the memory is freed with this side.
        let memory = unsafe { result::malloc_host(bytes, 0) }.map_err(failed("cuMemHostAlloc"))?;
        (self.memory, self.bytes) = (memory, bytes);
        Ok(())
    }

    /// Gives the memory back.
    fn free(&mut self) {
        if !self.memory.is_null() {
            // SAFETY: allocated by `grow`, and no copy is under way. Errors have nobody to go to.
            let _ = unsafe { result::free_host(self.memory) };
        }
        (self.memory, self.bytes) = (null_mut(), 0);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Without its context nothing of it is left.
        if self.gpu.enter().is_err() {
            return;
        }
        for side in self.sides.iter_mut().filter(|side| !side.copied.is_null()) {
            // After an error no copy is under way either.
            let _ = side.wait();
            side.free();
            // SAFETY: created by `wait`, and destroyed once.
            let _ = unsafe { result::event::destroy(side.copied) };
        }
    }
}
