//! What this machine can do at most, measured: memory reads, f32 multiply-adds, dot products of
//! bf16 and int8. Benchmarks state speeds as shares of these, because absolute numbers on shared
//! machines wander.
//!
//! Not ops: these functions read the clock. Invariants: arithmetic is timed in registers, memory
//! in a buffer that the caller makes larger than every cache; each runs on all threads of the
//! pool for less than a second; results are operations (a multiply-add counts as two) or bytes
//! per second. Noise only lowers a measurement, but rates of memory drift by themselves: compare
//! them with what ran at the same time.

use crate::Cpu;
use crate::arch::peaks::{self, PeakLoop};
use crate::simd::{Simd, WithSimd, dispatch};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Seconds that one timed run lasts at least.
const RUN_SECONDS: f64 = 0.02;
/// Timed runs; the median counts.
const RUNS: usize = 9;
/// Pieces of work for each thread in a run, so that a late thread takes fewer.
const PIECES: usize = 8;

/// A rate of arithmetic and the instruction that reached it.
#[derive(Clone, Copy, Debug)]
pub struct ArithmeticLimit {
    /// Operations per second; a multiply-add counts as two.
    pub ops_per_second: f64,
    /// The instruction timed.
    pub instruction: &'static str,
}

/// f32 multiply-adds of the instruction set of `cpu`.
pub fn f32_fma(cpu: &Cpu) -> ArithmeticLimit {
    let isa = cpu.isa();
    let ops_per_turn = dispatch(isa, FmaOps);
    let ops_per_second = rate(cpu, ops_per_turn, |turns| dispatch(isa, Fma { turns }));
    ArithmeticLimit { ops_per_second, instruction: isa.name() }
}

/// Dot products of bf16 with sums in f32; `None` where the CPU has no instruction for them.
pub fn bf16_dot(cpu: &Cpu) -> Option<ArithmeticLimit> {
    peaks::bf16_dot(cpu.isa()).map(|peak| arithmetic(cpu, peak))
}

/// Dot products of int8 with sums in int32; `None` where the CPU has no instruction for them.
pub fn int8_dot(cpu: &Cpu) -> Option<ArithmeticLimit> {
    peaks::int8_dot(cpu.isa()).map(|peak| arithmetic(cpu, peak))
}

fn arithmetic(cpu: &Cpu, peak: PeakLoop) -> ArithmeticLimit {
    let ops_per_second = rate(cpu, peak.ops_per_turn, |turns| peak.run(turns));
    ArithmeticLimit { ops_per_second, instruction: peak.instruction }
}

/// Operations per second of a loop that runs on all threads.
fn rate(cpu: &Cpu, ops_per_turn: usize, body: impl Fn(usize) + Sync) -> f64 {
    let pieces = cpu.pool().threads() * PIECES;
    let seconds = |turns: usize| {
        let start = Instant::now();
        cpu.pool().run(pieces, |_| body(turns));
        start.elapsed().as_secs_f64().max(1e-9)
    };
    let mut turns = 1000;
    let mut once = seconds(turns);
    while once < RUN_SECONDS {
        turns *= 2;
        once = seconds(turns);
    }
    let ops = (pieces * turns * ops_per_turn) as f64;
    median((0..RUNS).map(|_| ops / seconds(turns)).collect())
}

/// Chains of multiply-adds that one turn advances: enough to hide the latency of every unit.
const fn chains(registers: usize) -> usize {
    if registers >= 32 { 24 } else { 12 }
}

struct FmaOps;

impl WithSimd for FmaOps {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        chains(S::REGISTERS) * S::LANES * 2
    }
}

struct Fma {
    turns: usize,
}

impl WithSimd for Fma {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::REGISTERS >= 32 {
            fma_loop::<S, { chains(32) }>(s, self.turns);
        } else {
            fma_loop::<S, { chains(16) }>(s, self.turns);
        }
    }
}

#[inline(always)]
fn fma_loop<S: Simd, const CHAINS: usize>(s: S, turns: usize) {
    // The values tend to 1: no infinities, no subnormal numbers. The starts are opaque, so that
    // no two chains are the same to the compiler.
    let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.5)));
    let mut acc: [S::V; CHAINS] = std::array::from_fn(|i| s.splat(black_box(i as f32)));
    for _ in 0..turns {
        for v in &mut acc {
            *v = s.fma(*v, a, b);
        }
    }
    let mut total = s.zero();
    for v in acc {
        total = s.add(total, v);
    }
    black_box(s.sum(total));
}

/// A buffer that is read from memory on all threads, again and again.
pub struct MemoryReader {
    values: Vec<f32>,
}

impl MemoryReader {
    /// A buffer of about `bytes` bytes, all of them written once. Make it several times the last
    /// cache, or the cache is what is measured.
    pub fn new(bytes: usize) -> Self {
        // Not zeros: those would be mapped to one shared page and never come from memory.
        Self { values: vec![1.0; (bytes / 4).next_multiple_of(BLOCK)] }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.values.len()
    }

    /// Reads the buffer once; bytes per second.
    pub fn sample(&self, cpu: &Cpu) -> f64 {
        let isa = cpu.isa();
        let blocks = self.values.len() / BLOCK;
        let sink = AtomicU32::new(0);
        let start = Instant::now();
        cpu.pool().run(blocks, |i| {
            let sum = dispatch(isa, Sum(&self.values[i * BLOCK..(i + 1) * BLOCK]));
            sink.fetch_add(sum.to_bits(), Ordering::Relaxed);
        });
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        black_box(sink.into_inner());
        self.bytes() as f64 / seconds
    }

    /// The median of several samples.
    pub fn median(&self, cpu: &Cpu) -> f64 {
        median((0..RUNS).map(|_| self.sample(cpu)).collect())
    }
}

/// Values that a thread reads at a time: 1 MiB.
const BLOCK: usize = 256 * 1024;

struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Eight sums: one chain of additions would be slower than memory.
        let mut acc = [s.zero(); 8];
        for values in self.0.chunks_exact(8 * S::LANES) {
            for (acc, v) in acc.iter_mut().zip(values.chunks_exact(S::LANES)) {
                *acc = s.add(*acc, s.load(v));
            }
        }
        acc.into_iter().map(|v| s.sum(v)).sum()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rates_are_those_of_a_computer() {
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let fma = f32_fma(&cpu);
            // The clock of no CPU is above 10 GHz; no core ends four 16-lane products in a cycle.
            let most = 2.0 * 10e9 * 4.0 * 16.0 * 2.0;
            assert!(fma.ops_per_second > 1e7 && fma.ops_per_second < most, "{fma:?}");
            for dot in [bf16_dot(&cpu), int8_dot(&cpu)].into_iter().flatten() {
                let slowest = 1e8..8.0 * most;
                assert!(slowest.contains(&dot.ops_per_second), "{dot:?}");
            }
        }
    }

    #[test]
    fn memory_is_read_as_a_whole() {
        let reader = MemoryReader::new(3 << 20);
        assert_eq!(reader.bytes(), 3 << 20);
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Sum(&reader.values[..BLOCK])), BLOCK as f32, "{isa}");
            let speed = reader.median(&Cpu::new(isa, 2));
            assert!(speed > 1e7 && speed < 1e13, "{isa}: {speed}");
        }
    }
}
