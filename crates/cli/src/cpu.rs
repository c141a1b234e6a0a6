//! Options about the machine: threads, instruction set; and about the arithmetic of a model.

use crate::device::{self, Device};
use crate::source::sized;
use anyhow::Result;
use clap::ValueEnum;
use hybra_kernels::{Cpu, Isa};

/// How activations meet the large matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arithmetic {
    #[default]
    /// Weights packed; activations in int8 (block formats) or bf16 (bf16 weights, and on a GPU)
    Fast,
    /// Weights as stored (on a GPU f32), activations f32: slow, for comparison
    Exact,
}

impl Arithmetic {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned())
    }
}

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

/// Options shared by every command that runs a model.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Machine")]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    cpu: CpuArgs,
    /// What runs the model: cpu, cuda or cuda:N (a GPU), auto (a GPU where there is one)
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device::parse)]
    device: Device,
    /// Arithmetic of matrix products [default: fast; of verify: exact]
    #[arg(long, value_enum)]
    arithmetic: Option<Arithmetic>,
    /// Keep packed weights in MODEL.packed beside the model: later starts take them from there
    #[arg(long)]
    weight_cache: bool,
    /// The student of this name in a model that `hybra prune --nested` made
    #[arg(long, value_name = "NAME")]
    size: Option<String>,
}

/// How weights are loaded; by default for fast arithmetic, without a cache.
#[derive(Clone, Copy, Default)]
pub(crate) struct LoadOptions {
    pub(crate) arithmetic: Arithmetic,
    pub(crate) weight_cache: bool,
    pub(crate) device: Device,
}

impl LoadOptions {
    /// For this arithmetic on the CPU, without a cache.
    pub(crate) fn on_cpu(arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..Self::default() }
    }
}

impl ModelArgs {
    /// As [`CpuArgs::cpu`].
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        self.cpu.cpu()
    }

    /// The MODEL, or its student where a size is asked for.
    pub(crate) fn sized(&self, model: Option<&str>) -> Result<Option<String>> {
        sized(model, self.size.as_deref())
    }

    /// As [`CpuArgs::threads`].
    pub(crate) fn threads(&self) -> usize {
        self.cpu.threads()
    }

    /// What was asked for, with `default` arithmetic.
    pub(crate) fn load_options(&self, default: Arithmetic) -> LoadOptions {
        let arithmetic = self.arithmetic.unwrap_or(default);
        LoadOptions { arithmetic, weight_cache: self.weight_cache, device: self.device }
    }
}
