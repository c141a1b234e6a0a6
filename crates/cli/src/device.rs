//! `--device`: which processor runs the model, and what a GPU asks of the other options.
//!
//! Invariants: without the option everything runs on the CPU; a device that was asked for by name
//! and cannot be used is an error, never a silent CPU; which one was taken is said on stderr.

use crate::cpu::Arithmetic;
use crate::options::{KvDtypeArg, StateArgs};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use hybra_cuda::{Compute, CudaError, Gpu};
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
    fn open(self) -> Result<Option<Gpu>> {
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

    /// Moves a model whose weights are as stored to the device, if it is one.
    pub(crate) fn place(self, model: NemotronH, arithmetic: Arithmetic) -> Result<Placed> {
        let Some(gpu) = self.open()? else { return Ok(Placed::Cpu(model)) };
        let compute = compute(arithmetic);
        let mut bar = Progress::bytes("uploading weights", model.weights().bytes() as u64);
        let model = model.to_device(&gpu, compute, |done| bar.set(done));
        drop(bar);
        let model = model.with_context(|| format!("cuda:{}", gpu.info().ordinal))?;
        let (info, bytes) = model.device().expect("it was moved there");
        let (major, minor) = info.capability;
        let number = match compute {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        };
        eprintln!(
            "device: cuda:{} {} (sm_{major}{minor}), {number}, {:.2} GiB of weights",
            info.ordinal,
            info.name,
            bytes as f64 / f64::from(1 << 30),
        );
        Ok(Placed::Gpu(model))
    }
}

/// A model, and where it is.
pub(crate) enum Placed {
    /// As it came.
    Cpu(NemotronH),
    /// On a device.
    Gpu(NemotronH),
}

/// The number type that a device computes in.
pub(crate) fn compute(arithmetic: Arithmetic) -> Compute {
    match arithmetic {
        Arithmetic::Fast => Compute::Bf16,
        Arithmetic::Exact => Compute::F32,
    }
}

/// The number types of states: on a GPU those of the model, and others are refused.
pub(crate) fn state_dtypes(
    model: &NemotronH,
    arithmetic: Arithmetic,
    asked: StateArgs,
) -> Result<StateDtypes> {
    if model.device().is_none() {
        return Ok(asked.into());
    }
    if StateDtypes::from(asked).ssm != SsmDtype::F32 {
        bail!("--state-dtype: a GPU keeps the recurrent state in f32");
    }
    Ok(StateDtypes { kv: kv_dtype(arithmetic, asked.kv_dtype)?.into(), ssm: SsmDtype::F32 })
}

/// The number type of keys and values on a GPU; another that was asked for is refused.
pub(crate) fn kv_dtype(arithmetic: Arithmetic, asked: Option<KvDtypeArg>) -> Result<KvDtypeArg> {
    let (kv, name) = match compute(arithmetic) {
        Compute::F32 => (KvDtypeArg::F32, "f32"),
        Compute::Bf16 => (KvDtypeArg::Bf16, "bf16"),
    };
    if asked.is_some_and(|asked| KvDtype::from(asked) != KvDtype::from(kv)) {
        bail!("--kv-dtype: a GPU keeps keys and values in the type it computes in: {name}");
    }
    Ok(kv)
}

/// What computes: a device's name, or the CPU's instruction set.
pub(crate) fn processor<'a>(model: &'a NemotronH, cpu: &Cpu) -> &'a str {
    model.device().map_or(cpu.isa().name(), |(info, _)| &info.name)
}

/// An engine's settings, as a model on a GPU can keep them: what it cannot is refused, and states
/// have the memory that weights leave free, but for a tenth, where no limit was set.
pub(crate) fn engine_config(model: &NemotronH, config: EngineConfig) -> Result<EngineConfig> {
    let Some(free) = model.free_device_bytes()? else { return Ok(config) };
    if config.num_speculative_tokens > 0 {
        bail!("--speculate: drafts are read on the CPU only");
    }
    if config.cache_state_dtype.is_some_and(|dtype| dtype != config.state_dtype) {
        bail!("--cache-state-dtype: a GPU keeps the recurrent state in f32");
    }
    let left = (free / 10 * 9) as usize;
    Ok(EngineConfig { state_memory: config.state_memory.or(Some(left)), ..config })
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
