//! What a device can do at most: bytes read in a second, and operations of tensor cores.
//!
//! Both are measured, in the same run as whatever is compared with them. Tensor cores are driven
//! with `mma.sync` from registers, as the ops drive them: GPUs with `wgmma` can do more.

use crate::driver::Gpu;
use crate::error::CudaError;
use crate::memory::DeviceBuffer;
use std::time::Instant;

/// As in limits.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct LimitArgs {
    from: u64,
    out: u64,
    len: u64,
    rounds: u32,
    _end: u32,
}

/// Threads of a block, as in limits.cu.
const THREADS: u32 = 256;
/// Blocks on each multiprocessor.
const BLOCKS: usize = 4;
/// Launches between two looks at the clock, so that what a launch costs the host does not count
/// where it would.
const REPEATS: u32 = 16;
const LONG_SECONDS: f64 = 0.01;
/// A faster device than any is measured with no more.
const MOST_ROUNDS: u32 = 1 << 16;
/// Operations of a round of a warp: eight products of 16 × 8 × 16.
const ROUND_OPS: u64 = 8 * 2 * 16 * 8 * 16;

/// Memory for measuring a device.
pub struct DeviceLimits {
    gpu: Gpu,
    values: DeviceBuffer<[u32; 4]>,
    out: DeviceBuffer<f32>,
}

impl DeviceLimits {
    /// Takes `bytes` of the device, which should be many times its last cache.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        let values = gpu.alloc(bytes.div_ceil(16))?;
        let out = gpu.alloc(BLOCKS * gpu.info().multiprocessors)?;
        Ok(Self { gpu: gpu.clone(), values, out })
    }

    /// Bytes read in a second.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory_read(&mut self) -> Result<f64, CudaError> {
        let bytes = self.values.bytes() as f64;
        self.run("limit_memory_read", 1).map(|seconds| bytes / seconds)
    }

    /// Operations in a second, two for each product, of bf16 with f32 sums; from `rounds` on as many
    /// as take a millisecond.
    ///
    /// # Errors
    /// What the driver says.
    pub fn mma_bf16(&mut self, mut rounds: u32) -> Result<f64, CudaError> {
        let warps = (self.out.len() as u64) * u64::from(THREADS / 32);
        loop {
            let seconds = self.run("limit_mma_bf16", rounds)?;
            if seconds > 1e-3 || rounds > MOST_ROUNDS {
                return Ok((warps * ROUND_OPS * u64::from(rounds)) as f64 / seconds);
            }
            rounds *= 4;
        }
    }

    /// What the blocks of the last measurement gave.
    ///
    /// # Errors
    /// What the driver says.
    pub fn results(&self) -> Result<Vec<f32>, CudaError> {
        self.gpu.to_vec(self.out.slice(..))
    }

    /// Seconds of a kernel, after one that is not counted; of one of several in a row if it is short.
    fn run(&mut self, kernel: &'static str, rounds: u32) -> Result<f64, CudaError> {
        let (from, len) = (self.values.slice(..).ptr(), self.values.len() as u64);
        let out = self.out.slice_mut(..).ptr();
        let args = LimitArgs { from, out, len, rounds, _end: 0 };
        let blocks = self.out.len() as u32;
        let launch = || self.gpu.launch(kernel, [blocks, 1, 1], THREADS, 0, &args);
        let timed = |times: u32| {
            let started = Instant::now();
            (0..times).try_for_each(|_| launch())?;
            self.gpu.synchronize()?;
            Ok(started.elapsed().as_secs_f64() / f64::from(times))
        };
        timed(1)?;
        match timed(1)? {
            seconds if seconds > LONG_SECONDS => Ok(seconds),
            _ => timed(REPEATS),
        }
    }
}
