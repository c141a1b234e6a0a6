//! Numeric ops on the CPU: the only SIMD of the project; no model, no files.
//!
//! **An op** is a function of its arguments: it takes `&Cpu` (instruction set and worker pool)
//! and slices or matrix views, reads no clock, no environment and no file, and gives the same
//! bits for any number of threads. Each op's file holds its formula and source, a naive
//! reference and tests that run on every instruction set of the machine.
//!
//! **Dispatch.** [`Isa`] is chosen once. A body generic over [`simd::Simd`] is compiled for each
//! instruction set; [`simd::dispatch`] picks one at run time and hands it a zero-size token that
//! proves that the CPU has the features, so op bodies hold no `unsafe`.
//!
//! **Row independence.** The value of an output row never depends on how many other rows are
//! computed with it: a sequence gets the same bits alone and in a batch.
//!
//! **Shapes**: T tokens, S sequences, D hidden size, H heads, P head dim, N state size,
//! G groups, V vocabulary, K reduction length, Q chunk length. Matrices are row-major.
//!
//! **To add an op**: write `ops/<name>.rs` with formula, naive twin, body over `Simd`, and a test
//! that loops over `Isa::available()`; list it in `ops/mod.rs`.

pub mod arch;
pub mod buffer;
pub mod dtype;
pub mod huge_bytes;
pub mod isa;
pub mod limits;
pub mod ops;
pub mod simd;
pub mod threads;

pub use buffer::{MatMut, MatRef};
pub use dtype::{DType, WeightRef};
pub use huge_bytes::HugeBytes;
pub use isa::Isa;
pub use threads::ThreadPool;

/// Execution context of every op: instruction set and worker pool.
pub struct Cpu {
    isa: Isa,
    pool: ThreadPool,
}

impl Cpu {
    /// A context with `threads` threads (the caller's included; at least one).
    ///
    /// # Panics
    /// If this machine lacks `isa`.
    pub fn new(isa: Isa, threads: usize) -> Self {
        assert!(isa.is_available(), "instruction set {isa} is not available on this machine");
        Self { isa, pool: ThreadPool::new(threads) }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The worker pool.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }
}
