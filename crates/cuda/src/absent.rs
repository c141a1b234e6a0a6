//! What stands in for the driver in a build without the feature `cuda`: no device can be opened,
//! so nothing else of it can ever be called.

use crate::error::CudaError;
use crate::memory::{DeviceBuffer, DeviceInfo, DeviceSlice, DeviceSliceMut};
use bytemuck::Pod;
use std::path::Path;

/// A device, of which there is none.
#[derive(Clone, PartialEq)]
pub struct Gpu(Never);

#[derive(Clone, Copy, PartialEq)]
enum Never {}

/// Recorded launches on a device, of which there is none.
pub struct Graph(Never);

/// Uploads to a device, of which there is none.
pub struct Staging(Never);

#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)]
impl Staging {
    pub fn new(gpu: &Gpu) -> Self {
        match gpu.0 {}
    }

    pub fn gpu(&self) -> &Gpu {
        match self.0 {}
    }

    pub fn upload<T: Pod>(&mut self, _: DeviceSliceMut<T>, _: &[T]) -> Result<(), CudaError> {
        match self.0 {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)]
impl Gpu {
    pub fn count() -> Result<usize, CudaError> {
        Err(CudaError::NotBuilt)
    }

    pub fn open(_: usize, _: Option<&Path>) -> Result<Self, CudaError> {
        Err(CudaError::NotBuilt)
    }

    pub fn info(&self) -> &DeviceInfo {
        match self.0 {}
    }

    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        match self.0 {}
    }

    pub fn alloc<T: Pod>(&self, _: usize) -> Result<DeviceBuffer<T>, CudaError> {
        match self.0 {}
    }

    pub fn upload_new<T: Pod>(&self, _: &[T]) -> Result<DeviceBuffer<T>, CudaError> {
        match self.0 {}
    }

    pub fn upload<T: Pod>(&self, _: DeviceSliceMut<T>, _: &[T]) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub fn download<T: Pod>(&self, _: &mut [T], _: DeviceSlice<T>) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub fn to_vec<T: Pod>(&self, _: DeviceSlice<T>) -> Result<Vec<T>, CudaError> {
        match self.0 {}
    }

    pub fn copy<T: Pod>(&self, _: DeviceSliceMut<T>, _: DeviceSlice<T>) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub fn zero<T: Pod>(&self, _: DeviceSliceMut<T>) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub fn record(
        &self,
        _: impl FnOnce(&Self) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        match self.0 {}
    }

    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        match graph.0 {}
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub(crate) fn launch<A: Copy>(
        &self,
        _: &'static str,
        _: [u32; 3],
        _: u32,
        _: u32,
        _: &A,
    ) -> Result<(), CudaError> {
        match self.0 {}
    }

    pub(crate) fn free(&self, _: u64) {
        match self.0 {}
    }
}
