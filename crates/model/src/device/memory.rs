//! Device memory of states: slots for what Mamba layers carry, pages for keys and values.
//!
//! Invariants: a block is handed out zeroed and comes back when its last owner goes; memory once
//! taken from the driver is kept for later blocks, so that what is held is the most that was ever
//! needed at once; a block never moves.

use hybra_cuda::{CudaError, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use std::sync::{Arc, Mutex, MutexGuard};

/// Blocks of one size.
pub(super) struct Pool {
    gpu: Gpu,
    block_bytes: usize,
    /// Blocks of a chunk: the driver gives memory in pieces of 2 MiB.
    per_chunk: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    chunks: Vec<DeviceBuffer<u8>>,
    free: Vec<Place>,
}

/// Where a block lies: chunk, and number in it.
type Place = (usize, usize);

/// One block of a pool.
pub(super) struct Block {
    pool: Arc<Pool>,
    place: Place,
    address: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.lock().free.push(self.place);
    }
}

impl Pool {
    /// A pool that holds nothing yet.
    pub(super) fn new(gpu: &Gpu, block_bytes: usize, chunk_bytes: usize) -> Arc<Self> {
        let per_chunk = (chunk_bytes / block_bytes.max(1)).max(1);
        Arc::new(Self { gpu: gpu.clone(), block_bytes, per_chunk, inner: Mutex::default() })
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is behind the lock is whole at any time.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A block with what its last owner left in it.
    fn take(self: &Arc<Self>) -> Result<Block, CudaError> {
        let mut inner = self.lock();
        if inner.free.is_empty() {
            let chunk = self.gpu.alloc(self.block_bytes * self.per_chunk)?;
            let number = inner.chunks.len();
            inner.chunks.push(chunk);
            inner.free.extend((0..self.per_chunk).rev().map(|i| (number, i)));
        }
        let place = inner.free.pop().expect("filled above");
        let address = self.slice(&inner, place).ptr();
        drop(inner);
        Ok(Block { pool: Arc::clone(self), place, address })
    }

    /// A block of zeros.
    pub(super) fn zeroed(self: &Arc<Self>) -> Result<Block, CudaError> {
        let block = self.take()?;
        let mut inner = self.lock();
        self.gpu.zero(self.slice_mut(&mut inner, block.place))?;
        drop(inner);
        Ok(block)
    }

    /// A copy of a block of this pool.
    pub(super) fn copy_of(self: &Arc<Self>, block: &Block) -> Result<Block, CudaError> {
        let copy = self.take()?;
        let inner = self.lock();
        self.gpu.copy_within(self.slice(&inner, copy.place), self.slice(&inner, block.place))?;
        drop(inner);
        Ok(copy)
    }

    /// A block with these bytes.
    pub(super) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Block, CudaError> {
        let block = self.take()?;
        let mut inner = self.lock();
        self.gpu.upload(self.slice_mut(&mut inner, block.place), bytes)?;
        drop(inner);
        Ok(block)
    }

    fn slice<'a>(&self, inner: &'a Inner, (chunk, i): Place) -> DeviceSlice<'a, u8> {
        inner.chunks[chunk].slice(i * self.block_bytes..(i + 1) * self.block_bytes)
    }

    fn slice_mut<'a>(&self, inner: &'a mut Inner, (chunk, i): Place) -> DeviceSliceMut<'a, u8> {
        inner.chunks[chunk].slice_mut(i * self.block_bytes..(i + 1) * self.block_bytes)
    }
}

impl Block {
    /// Where kernels find it.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Copies it to the host.
    pub(super) fn download(&self, to: &mut [u8]) -> Result<(), CudaError> {
        let inner = self.pool.lock();
        self.pool.gpu.download(to, self.pool.slice(&inner, self.place))
    }
}
