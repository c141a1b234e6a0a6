//! Device memory of states: slots for what Mamba layers carry, pages for keys and values.
//!
//! Invariants: a block comes back when its last owner goes, and is handed out again before more
//! memory is asked for; memory goes back to the driver when [`Pool::release`] is called, by whoever
//! finds the device full; a block never moves. Blocks may be used from any thread: all work on the
//! device is in one stream, so what one owner left is overwritten in order.

use hybra_cuda::{CudaError, DeviceBuffer, DeviceSlice, Gpu};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Blocks of one size.
pub(super) struct Pool {
    gpu: Gpu,
    block_bytes: usize,
    /// Blocks of a chunk: the driver gives memory in pieces of 2 MiB.
    per_chunk: usize,
    free: Mutex<Vec<Place>>,
}

/// Where a block lies.
#[derive(Clone)]
struct Place {
    chunk: Arc<DeviceBuffer<u8>>,
    range: Range<usize>,
}

/// One block of a pool.
pub(super) struct Block {
    pool: Arc<Pool>,
    place: Place,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.free().push(self.place.clone());
    }
}

impl Pool {
    /// A pool that holds nothing yet.
    pub(super) fn new(gpu: &Gpu, block_bytes: usize, chunk_bytes: usize) -> Arc<Self> {
        let per_chunk = (chunk_bytes / block_bytes.max(1)).max(1);
        Arc::new(Self { gpu: gpu.clone(), block_bytes, per_chunk, free: Mutex::default() })
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Gives chunks of which no block is used back to the driver.
    pub(super) fn release(&self) {
        let mut free = self.free();
        // A chunk is held by its blocks alone, those in the list and those in use.
        let is_whole = |place: &Place| Arc::strong_count(&place.chunk) == self.per_chunk;
        let (whole, rest) = free.drain(..).collect::<Vec<_>>().into_iter().partition(is_whole);
        *free = rest;
        drop::<Vec<Place>>(whole);
    }

    /// A block of zeros.
    pub(super) fn zeroed(self: &Arc<Self>) -> Result<Block, CudaError> {
        let block = self.take()?;
        self.gpu.zero(block.slice().written())?;
        Ok(block)
    }

    /// A copy of a block of this pool.
    pub(super) fn copy_of(self: &Arc<Self>, block: &Block) -> Result<Block, CudaError> {
        let copy = self.take()?;
        self.gpu.copy(copy.slice().written(), block.slice())?;
        Ok(copy)
    }

    /// A block with these bytes.
    pub(super) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Block, CudaError> {
        let block = self.take()?;
        self.gpu.upload(block.slice().written(), bytes)?;
        Ok(block)
    }

    /// A block with what its last owner left in it.
    fn take(self: &Arc<Self>) -> Result<Block, CudaError> {
        let mut free = self.free();
        if free.is_empty() {
            let chunk = Arc::new(self.gpu.alloc(self.block_bytes * self.per_chunk)?);
            free.extend((0..self.per_chunk).rev().map(|i| Place {
                chunk: Arc::clone(&chunk),
                range: i * self.block_bytes..(i + 1) * self.block_bytes,
            }));
        }
        let place = free.pop().expect("filled above");
        Ok(Block { pool: Arc::clone(self), place })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Place>> {
        // The list is whole at any time.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// Where kernels find it.
    pub(super) fn address(&self) -> u64 {
        self.slice().ptr()
    }

    /// Copies it to the host.
    pub(super) fn download(&self, to: &mut [u8]) -> Result<(), CudaError> {
        self.pool.gpu.download(to, self.slice())
    }

    fn slice(&self) -> DeviceSlice<'_, u8> {
        self.place.chunk.slice(self.place.range.clone())
    }
}
