//! Options about the machine: threads, instruction set, arithmetic.

use anyhow::Result;
use clap::ValueEnum;
use hybra_kernels::{Cpu, Isa};

/// How activations meet the large matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arithmetic {
    /// Weights packed; activations in int8 (block formats) or bf16 (bf16 weights)
    Fast,
    /// Weights as stored, activations f32: slow, for comparison
    Exact,
}

/// Options shared by every command that computes.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Machine")]
pub(crate) struct CpuArgs {
    /// Threads to compute with [default: all cores]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Arithmetic of matrix products [default: fast; of verify: exact]
    #[arg(long, value_enum)]
    arithmetic: Option<Arithmetic>,
}

impl CpuArgs {
    /// The execution context; the instruction set comes from `HYBRA_ISA` or detection.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu::new(Isa::from_env()?, self.threads()))
    }

    /// Threads asked for, or all cores.
    pub(crate) fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, usize::from)
    }

    /// What was asked for, or `default`.
    pub(crate) fn arithmetic(&self, default: Arithmetic) -> Arithmetic {
        self.arithmetic.unwrap_or(default)
    }
}
