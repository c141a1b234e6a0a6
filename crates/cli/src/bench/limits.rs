//! The machine's limits, measured once a round beside the points, and what came of all rounds.

use super::plan::Spread;
use anyhow::Result;
use hybra_cuda::Gpu;
use hybra_cuda::ops::limits::DeviceLimits;
use hybra_kernels::limits::{ArithmeticLimit, MemoryReader};
use hybra_kernels::{Cpu, limits};
use serde::Serialize;

/// The buffer whose reading is timed: this many times the last cache, and at least
/// [`LEAST_BYTES`].
const CACHES: u64 = 4;
const LEAST_BYTES: u64 = 256 << 20;
/// Machines with very large caches share them among many cores; more memory than this is not
/// spent on measuring.
const MOST_BYTES: u64 = 1 << 30;

/// Rounds of products to begin with.
const MMA_ROUNDS: u32 = 64;

/// Samples of every limit.
pub(crate) struct Limits {
    source: Source,
    memory: Vec<f64>,
    arithmetic: [Samples; 3],
}

/// What is measured, and the memory that it takes.
enum Source {
    Cpu(MemoryReader),
    Gpu(DeviceLimits),
}

/// One kind of arithmetic; no samples where the CPU has no instruction for it.
struct Samples {
    kind: &'static str,
    measure: fn(&Cpu) -> Option<ArithmeticLimit>,
    instruction: &'static str,
    ops: Vec<f64>,
}

/// The limits after some rounds. Bytes and operations per second.
#[derive(Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) memory_read: Spread,
    pub(crate) f32_fma: Option<Arithmetic>,
    pub(crate) bf16_dot: Option<Arithmetic>,
    pub(crate) int8_dot: Option<Arithmetic>,
}

/// A kind of arithmetic and the instruction that was timed.
#[derive(Clone, Serialize)]
pub(crate) struct Arithmetic {
    #[serde(flatten)]
    pub(crate) ops: Spread,
    pub(crate) instruction: &'static str,
}

impl Limits {
    /// Takes the memory that is read; it stays until the end, so that the peak of the rest is
    /// known.
    pub(crate) fn new(last_cache_bytes: Option<u64>) -> Self {
        let bytes = last_cache_bytes.unwrap_or(0).saturating_mul(CACHES);
        Self::of(Source::Cpu(MemoryReader::new(bytes.clamp(LEAST_BYTES, MOST_BYTES) as usize)))
    }

    /// As [`Self::new`] on a device.
    pub(crate) fn of_device(gpu: &Gpu) -> Result<Self> {
        let bytes = (gpu.info().total_bytes / 16).min(MOST_BYTES);
        Ok(Self::of(Source::Gpu(DeviceLimits::new(gpu, bytes as usize)?)))
    }

    fn of(source: Source) -> Self {
        let samples = |kind, measure| Samples { kind, measure, instruction: "", ops: Vec::new() };
        Self {
            source,
            memory: Vec::new(),
            arithmetic: [
                samples("f32", |cpu| Some(limits::f32_fma(cpu))),
                samples("bf16", limits::bf16_dot),
                samples("int8", limits::int8_dot),
            ],
        }
    }

    /// Bytes of the machine's memory that are held for measuring.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.source {
            Source::Cpu(reader) => reader.bytes() as u64,
            Source::Gpu(_) => 0,
        }
    }

    /// One sample of each.
    pub(crate) fn sample(&mut self, cpu: &Cpu) -> Result<()> {
        match &mut self.source {
            Source::Cpu(reader) => self.memory.push(reader.median(cpu)),
            Source::Gpu(device) => {
                self.memory.push(device.memory_read()?);
                let [_, bf16, _] = &mut self.arithmetic;
                bf16.instruction = "mma.sync m16n8k16";
                bf16.ops.push(device.mma_bf16(MMA_ROUNDS)?);
                return Ok(());
            }
        }
        for samples in &mut self.arithmetic {
            if let Some(limit) = (samples.measure)(cpu) {
                samples.instruction = limit.instruction;
                samples.ops.push(limit.ops_per_second);
            }
        }
        Ok(())
    }

    /// What the samples say.
    ///
    /// # Panics
    /// If none was taken.
    pub(crate) fn measured(&self) -> Measured {
        let arithmetic = |kind: &str| {
            let samples = self.arithmetic.iter().find(|s| s.kind == kind)?;
            let ops = Spread::of(&samples.ops)?;
            Some(Arithmetic { ops, instruction: samples.instruction })
        };
        Measured {
            memory_read: Spread::of(&self.memory).expect("a sample was taken"),
            f32_fma: arithmetic("f32"),
            bf16_dot: arithmetic("bf16"),
            int8_dot: arithmetic("int8"),
        }
    }
}
