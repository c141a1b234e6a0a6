//! `--device`: which processor runs the model, and what a GPU asks of the other options.
//!
//! Invariants: without the option everything runs on the CPU; a device that was asked for by name
//! and cannot be used is an error, never a silent CPU; which one was taken is said on stderr.

use crate::cpu::Arithmetic;
use crate::options::{KvDtypeArg, StateArgs};
use crate::progress::Progress;
use crate::size;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hybra_cuda::{Compute, CudaError, DeviceInfo, Gpu};
use hybra_engine::EngineConfig;
use hybra_kernels::Cpu;
use hybra_kernels::ops::attention::KvDtype;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::{NemotronH, StateDtypes};
use std::path::PathBuf;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Device {
    /// The processor's cores.
    #[default]
    Cpu,
    /// The first GPU; the CPU where there is none.
    Auto,
    /// A GPU by its number.
    Cuda(usize),
}

/// Reads `cpu`, `auto`, `cuda` or `cuda:N`.
pub(crate) fn parse(text: &str) -> Result<Device, String> {
    match text {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(Device::Auto),
        "cuda" => Ok(Device::Cuda(0)),
        _ => {
            let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let expected = || format!("expected auto, cpu, cuda or cuda:N, found {text:?}");
            ordinal.map(Device::Cuda).ok_or_else(expected)
        }
    }
}

impl Device {
    /// Opens the GPU that was asked for; `None` for the CPU.
    pub(crate) fn open(self) -> Result<Option<Gpu>> {
        let cache = kernel_cache();
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => {
                let gpu = Gpu::open(ordinal, cache.as_deref());
                gpu.map(Some).with_context(|| format!("--device cuda:{ordinal}"))
            }
            Self::Auto => match Gpu::open(0, cache.as_deref()) {
                Ok(gpu) => Ok(Some(gpu)),
                Err(error) => {
                    let why = match error {
                        CudaError::NoDevice { .. } => "no GPU".to_owned(),
                        error => error.to_string(),
                    };
                    eprintln!("device: cpu ({why})");
                    Ok(None)
                }
            },
        }
    }

    /// Refuses a GPU for what only the CPU does.
    pub(crate) fn must_be_cpu(self, what: &str) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Auto | Self::Cuda(_) => bail!("--device: {what} runs on the CPU only"),
        }
    }

    /// The device for a run whose options a GPU keeps, or why not: `auto` then takes the CPU.
    pub(crate) fn settled(self, kept: Result<()>) -> Result<Self> {
        match (self, kept) {
            (Self::Cuda(_), Err(error)) => Err(error),
            (Self::Auto, Err(error)) => {
                eprintln!("device: cpu ({error})");
                Ok(Self::Cpu)
            }
            _ => Ok(self),
        }
    }

    /// Moves a model whose weights are as stored to the device; false if it stays on the CPU.
    pub(crate) fn place(
        self,
        model: &mut NemotronH,
        arithmetic: Arithmetic,
        threads: usize,
    ) -> Result<bool> {
        let Some(gpu) = self.open()? else { return Ok(false) };
        let (compute, number) = match arithmetic {
            Arithmetic::Fast => (Compute::Bf16, "bf16"),
            Arithmetic::Exact => (Compute::F32, "f32"),
        };
        let mut bar = Progress::bytes("uploading weights", model.weights().bytes() as u64);
        let moved = model.move_to_device(&gpu, compute, threads, |done| bar.set(done));
        drop(bar);
        let info = gpu.info();
        match moved {
            Err(error @ CudaError::OutOfMemory { .. }) if self == Self::Auto => {
                eprintln!("device: cpu ({error})");
                return Ok(false);
            }
            moved => moved.with_context(|| format!("cuda:{}", info.ordinal))?,
        }
        let graphs = cuda_graphs()?;
        model.use_graphs(graphs);
        let ((major, minor), (bytes, _)) =
            (info.capability, model.device_weight_bytes().expect("it was moved there"));
        let bytes = size::bytes(bytes as u64);
        let DeviceInfo { ordinal, name, .. } = info;
        eprintln!(
            "device: cuda:{ordinal} {name} (sm_{major}{minor}), {number}, {bytes} of weights{}",
            if graphs { "" } else { ", no CUDA graphs" }
        );
        Ok(true)
    }
}

/// Whether decode steps are replayed as CUDA graphs; `HYBRA_CUDA_GRAPHS=off`: they are not.
fn cuda_graphs() -> Result<bool> {
    let Some(value) = std::env::var_os("HYBRA_CUDA_GRAPHS") else { return Ok(true) };
    match value.to_str() {
        Some("on") => Ok(true),
        Some("off") => Ok(false),
        _ => bail!("HYBRA_CUDA_GRAPHS: expected on or off, found {value:?}"),
    }
}

/// Whether a GPU can keep what was asked of states.
pub(crate) fn keeps_states(arithmetic: Arithmetic, asked: StateArgs) -> Result<()> {
    if StateDtypes::from(asked).ssm != SsmDtype::F32 {
        bail!("--state-dtype: a GPU keeps the recurrent state in f32");
    }
    keeps_kv(arithmetic, asked.kv_dtype)
}

/// Whether a GPU can keep keys and values in the type that was asked for.
pub(crate) fn keeps_kv(arithmetic: Arithmetic, asked: Option<KvDtypeArg>) -> Result<()> {
    let kv = kv_on_device(arithmetic);
    if asked.is_some_and(|asked| KvDtype::from(asked) != kv.into()) {
        let name = kv.to_possible_value().expect("none is skipped");
        let name = name.get_name();
        bail!("--kv-dtype: a GPU keeps keys and values in the type it computes in: {name}");
    }
    Ok(())
}

/// Whether a GPU can do what an engine is set to.
pub(crate) fn keeps_engine(config: &EngineConfig) -> Result<()> {
    if config.num_speculative_tokens > 0 {
        bail!("--speculate: drafts are read on the CPU only");
    }
    if config.cache_state_dtype.is_some_and(|dtype| dtype != SsmDtype::F32) {
        bail!("--cache-state-dtype: a GPU keeps the recurrent state in f32");
    }
    Ok(())
}

/// The type of keys and values on a GPU: the one it computes in.
fn kv_on_device(arithmetic: Arithmetic) -> KvDtypeArg {
    match arithmetic {
        Arithmetic::Fast => KvDtypeArg::Bf16,
        Arithmetic::Exact => KvDtypeArg::F32,
    }
}

/// The type of keys and values of a model on this GPU, where [`keeps_kv`]; `on_cpu` without one.
pub(crate) fn kv_dtype(
    gpu: Option<&Gpu>,
    arithmetic: Arithmetic,
    on_cpu: KvDtypeArg,
) -> KvDtypeArg {
    if gpu.is_some() { kv_on_device(arithmetic) } else { on_cpu }
}

/// The number types of a model's states on this GPU or on the CPU, where [`keeps_states`].
pub(crate) fn state_dtypes(
    gpu: Option<&Gpu>,
    arithmetic: Arithmetic,
    asked: StateArgs,
) -> StateDtypes {
    let kv = kv_dtype(gpu, arithmetic, asked.kv_dtype()).into();
    StateDtypes { kv, ..asked.into() }
}

/// What computes: a device's name, or the CPU's instruction set.
pub(crate) fn processor<'a>(gpu: Option<&'a Gpu>, cpu: &Cpu) -> &'a str {
    gpu.map_or(cpu.isa().name(), |gpu| &gpu.info().name)
}

/// An engine's settings with the memory that a GPU has for states: what weights and two passes at
/// once leave free, but for a twentieth.
pub(crate) fn with_state_memory(model: &NemotronH, config: EngineConfig) -> Result<EngineConfig> {
    let Some(gpu) = model.gpu() else { return Ok(config) };
    let (tokens, rows) = (config.max_num_batched_tokens, config.max_num_seqs);
    let scratch = model.device_scratch_bytes(tokens, rows).expect("it is on a device");
    let left = gpu.free_bytes()?.saturating_sub(2 * scratch as u64) / 20 * 19;
    let asked = config.state_memory.map_or(left, |bytes| bytes as u64);
    if asked > left {
        let (asked, left) = (size::bytes(asked), size::bytes(left));
        bail!("--state-memory: {asked} asked for, the GPU has {left} beside weights and passes");
    }
    Ok(EngineConfig { state_memory: Some(asked as usize), ..config })
}

/// Where compiled kernels are kept; `None` where there is no home.
fn kernel_cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
    base.map(|base| base.join("hybra/kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        let read = ["cpu", "auto", "cuda", "cuda:0", "cuda:12"].map(|text| parse(text).unwrap());
        let cuda = Device::Cuda;
        assert_eq!(read, [Device::Cpu, Device::Auto, cuda(0), cuda(0), cuda(12)]);
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"] {
            assert!(parse(text).unwrap_err().contains(&format!("{text:?}")));
        }
    }
}
