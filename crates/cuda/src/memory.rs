//! Memory of a device as Rust sees it: buffers, and parts of them that ops read and write.
//!
//! Invariants: a buffer is freed when it is dropped; a slice lies inside its buffer and does not
//! outlive it.

use crate::driver::Gpu;
use std::marker::PhantomData;
use std::ops::{Bound, Deref, Range, RangeBounds};

/// What a device says about itself.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its number among the driver's devices.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub total_bytes: u64,
}

/// `len` values in device memory.
pub struct DeviceBuffer<T> {
    gpu: Gpu,
    ptr: u64,
    len: usize,
    values: PhantomData<T>,
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        self.gpu.free(self.ptr);
    }
}

impl<T> DeviceBuffer<T> {
    /// Takes over memory that the device allocated for `len` values.
    #[cfg(feature = "cuda")]
    pub(crate) fn new(gpu: Gpu, ptr: u64, len: usize) -> Self {
        Self { gpu, ptr, len, values: PhantomData }
    }

    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device it is on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Some of the values.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> DeviceSlice<'_, T> {
        let (ptr, len) = self.place(range);
        DeviceSlice { ptr, len, values: PhantomData }
    }

    /// Some of the values, to be written.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'_, T> {
        let (ptr, len) = self.place(range);
        DeviceSlice { ptr, len, values: PhantomData }.written()
    }

    fn place(&self, range: impl RangeBounds<usize>) -> (u64, usize) {
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&last) => last + 1,
            Bound::Excluded(&to) => to,
            Bound::Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "{from}..{to} of a buffer of {}", self.len);
        (self.ptr + (from * size_of::<T>()) as u64, to - from)
    }
}

/// Values in device memory, read only.
pub struct DeviceSlice<'a, T> {
    ptr: u64,
    len: usize,
    values: PhantomData<&'a T>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Default for DeviceSlice<'_, T> {
    /// No values.
    fn default() -> Self {
        Self { ptr: 0, len: 0, values: PhantomData }
    }
}

// Whatever T is: a slice is an address and a number.
impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T> DeviceSlice<'a, T> {
    /// Some of them.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        let (Range { start, end }, Self { ptr, len, values }) = (range, self);
        assert!(start <= end && end <= len, "{start}..{end} of {len} values");
        Self { ptr: ptr + (start * size_of::<T>()) as u64, len: end - start, values }
    }

    /// The same values, to be written: for whoever knows that no other reads or writes them
    /// meanwhile, as the owner of a part of a shared buffer does.
    #[must_use]
    pub fn written(self) -> DeviceSliceMut<'a, T> {
        DeviceSliceMut { values: self, written: PhantomData }
    }

    /// Address of the first.
    #[must_use]
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a> DeviceSlice<'a, u64> {
    /// The same memory as twice as many numbers, the lower halves first.
    #[must_use]
    pub fn halves(self) -> DeviceSlice<'a, u32> {
        DeviceSlice { ptr: self.ptr, len: 2 * self.len, values: PhantomData }
    }
}

/// Values in device memory that an op writes; they can be read as a [`DeviceSlice`], too.
pub struct DeviceSliceMut<'a, T> {
    values: DeviceSlice<'a, T>,
    written: PhantomData<&'a mut T>,
}

impl<'a, T> Deref for DeviceSliceMut<'a, T> {
    type Target = DeviceSlice<'a, T>;
    fn deref(&self) -> &DeviceSlice<'a, T> {
        &self.values
    }
}

impl<T> DeviceSliceMut<'_, T> {
    /// Some of them.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn part(&mut self, range: Range<usize>) -> DeviceSliceMut<'_, T> {
        self.values.part(range).written()
    }

    /// The same values for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        self.part(0..self.len())
    }
}
