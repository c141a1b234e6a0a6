//! Options about the machine: threads and instruction set.

use anyhow::Result;
use hybra_kernels::{Cpu, Isa};

/// Options shared by every command that computes.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Machine")]
pub(crate) struct CpuArgs {
    /// Threads to compute with [default: all cores]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
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
}
