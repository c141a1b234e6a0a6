//! `hybra inspect`: what a model is and what memory it takes.
//!
//! Everything follows from the configuration; a checkpoint adds what its tensors really take.
//! Nothing is loaded, so the largest models are inspected at once; only `--activations` runs the
//! model.

mod activations;
mod print;

use crate::size::{parse_bytes, parse_tokens};
use crate::source::{self, Described, Source};
use anyhow::{Result, bail};
use clap::ValueEnum;
use hybra_kernels::DType;
use hybra_model::config::{Config, TorchDtype};
use hybra_model::load::find_tensors;
use hybra_model::memory::{KvFormat, MemoryModel, MemorySettings, ParameterCount, WeightFormat};
use hybra_model::presets::{preset, preset_names};
use hybra_model::report::{Fit, InspectReport, InspectRequest, inspect};
use serde::Serialize;
use serde_json::json;
use std::process::ExitCode;

/// Show what a model is, what memory it takes, and what fits
///
/// MODEL may also be a preset, a config.json or a directory with one. Memory is weights + KV
/// cache + recurrent state + workspace, the buffers of one forward call.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hybra inspect nano2-9b                                the published 9B, from its shape alone
  hybra inspect nano2-9b --memory-budget 19.66GiB       does it fit, and what is the most that does?
  hybra inspect nano2-9b --dtype q4_0 --context 32k --batch 8 --memory-budget 16G
  hybra inspect model.gguf --json
  hybra inspect model.gguf --activations                how many MLP units are nonzero?

Sizes: GiB, MiB or G, M are powers of 1024; GB, MB of 1000. Tokens: 128k is 131,072.")]
pub(crate) struct Args {
    /// Model, preset or config [default: the model in this binary]
    #[arg(value_name = "MODEL|PRESET|CONFIG")]
    model: Option<String>,
    /// Tokens per sequence [default: what the model was trained for]
    #[arg(long, value_name = "C", value_parser = parse_tokens)]
    context: Option<u64>,
    /// Sequences at the same time
    #[arg(long, value_name = "B", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch: u64,
    /// Memory to fit into, such as 22G or 19.66GiB
    #[arg(long, value_name = "X", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
    /// Count the weights in this type [default: as stored, or as the config says]
    #[arg(long, value_name = "TYPE", value_parser = weight_type)]
    dtype: Option<DType>,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    kv_dtype: KvType,
    /// Most tokens in one forward call; 0 leaves the workspace out
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    prefill_chunk: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    activations: activations::ActivationArgs,
    /// List the presets
    #[arg(long, exclusive = true)]
    presets: bool,
}

/// Types of the KV cache.
#[derive(Clone, Copy, ValueEnum)]
enum KvType {
    F32,
    Bf16,
    Q8,
}

fn weight_type(name: &str) -> Result<DType, String> {
    let found = DType::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name));
    let names = || DType::ALL.map(|dtype| dtype.name().to_lowercase()).join(", ");
    found.ok_or_else(|| format!("expected one of {}", names()))
}

/// What is in the files of a checkpoint.
#[derive(Debug, Serialize)]
struct Stored {
    path: String,
    format: &'static str,
    /// Types of the tensors, most bytes first.
    types: Vec<StoredType>,
    /// Bytes of all tensors.
    bytes: u64,
    /// Bytes once loaded: small tensors are F32 then.
    loaded_bytes: u64,
    /// What is in the checkpoint and not used.
    notes: Vec<String>,
}

/// The tensors of one type.
#[derive(Debug, Serialize)]
struct StoredType {
    dtype: &'static str,
    tensors: usize,
    bytes: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if args.presets {
        list_presets();
        return Ok(ExitCode::SUCCESS);
    }
    let Described { config, name, source } = source::describe(args.model.as_deref())?;
    if args.activations.asked() {
        let source = match (source, args.model.as_deref()) {
            (None, model @ Some(path)) if source::is_derived(path) => Some(source::resolve(model)?),
            (source, _) => source,
        };
        let Some(source) = source else {
            bail!("{name}: has no weights to run; `hybra init` writes a random checkpoint of it")
        };
        return activations::run(&args.activations, &source, args.json);
    }
    let stored = source.as_ref().map(|source| stored(source, &config)).transpose()?;
    let request = request(&args, &config);
    let mut report = inspect(&config, &name, &request);
    if let (Some(stored), None) = (&stored, args.dtype) {
        count_as_loaded(&mut report, &config, &request, stored);
    }
    if report.memory.total == u64::MAX {
        bail!("context × batch is out of range: its memory does not fit in 64 bits");
    }
    if args.json {
        let mut object = serde_json::to_value(&report)?;
        object["checkpoint"] = json!(stored);
        println!("{object:#}");
    } else {
        print::report(&report, stored.as_ref(), args.prefill_chunk);
    }
    Ok(ExitCode::SUCCESS)
}

fn request(args: &Args, config: &Config) -> InspectRequest {
    let configured = match config.dtype {
        TorchDtype::Float32 => DType::F32,
        TorchDtype::Float16 => DType::F16,
        TorchDtype::Bfloat16 => DType::Bf16,
    };
    InspectRequest {
        settings: MemorySettings {
            weights: WeightFormat::stored(args.dtype.unwrap_or(configured)),
            kv: match args.kv_dtype {
                KvType::F32 => KvFormat::Values(DType::F32),
                KvType::Bf16 => KvFormat::Values(DType::Bf16),
                KvType::Q8 => KvFormat::Q8,
            },
            prefill_chunk: args.prefill_chunk as usize,
        },
        context: args.context.unwrap_or(config.max_position_embeddings as u64),
        batch: args.batch,
        budget: args.memory_budget,
    }
}

/// Checks the tensors against the config and adds up their bytes.
fn stored(source: &Source, config: &Config) -> Result<Stored> {
    let found = find_tensors(&source.checkpoint, config)?;
    let mut types: Vec<StoredType> = Vec::new();
    let mut loaded_bytes = 0;
    for tensor in &found {
        let bytes = tensor.view.data.len() as u64;
        let small = 4 * tensor.spec.num_elements();
        loaded_bytes += if tensor.spec.is_matrix() { bytes } else { small };
        let dtype = tensor.dtype.name();
        match types.iter_mut().find(|known| known.dtype == dtype) {
            Some(known) => {
                known.tensors += 1;
                known.bytes += bytes;
            }
            None => types.push(StoredType { dtype, tensors: 1, bytes }),
        }
    }
    types.sort_by_key(|known| std::cmp::Reverse(known.bytes));
    Ok(Stored {
        path: source.checkpoint.path().display().to_string(),
        format: match source.checkpoint.format() {
            hybra_checkpoint::Format::Safetensors => "safetensors",
            hybra_checkpoint::Format::Gguf => "gguf",
        },
        bytes: types.iter().map(|known| known.bytes).sum(),
        types,
        loaded_bytes,
        notes: source::notes(source)?,
    })
}

/// Replaces the estimate by what the checkpoint's own tensors take.
fn count_as_loaded(
    report: &mut InspectReport,
    config: &Config,
    request: &InspectRequest,
    stored: &Stored,
) {
    let mut model = MemoryModel::new(config, &request.settings);
    model.weights = stored.loaded_bytes;
    report.memory = model.plan(request.context, request.batch);
    report.memory_format = stored.types.first().map_or("none", |most| most.dtype);
    report.fit = request.budget.map(|budget| Fit {
        budget,
        fits: report.memory.total <= budget,
        free: i128::from(budget) - i128::from(report.memory.total),
        largest_context: model.largest_context(request.batch, budget),
        largest_batch: model.largest_batch(request.context, budget),
    });
}

fn list_presets() {
    for (name, about) in preset_names() {
        let config = preset(name).expect("listed presets exist");
        let parameters = crate::size::short_count(ParameterCount::of(&config).total);
        println!("{name:<16}{parameters:>9}  {about}");
    }
}
