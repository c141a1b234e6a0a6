//! What a model is and what it needs, as plain data: parameters, bytes, state, and what fits.
//!
//! Everything here is derived from the config; printing belongs to the caller. Bytes are exact,
//! shares are fractions of 1.

use std::fmt;

use hybra_kernels::DType;
use serde::Serialize;

use crate::config::Config;
use crate::layer::LayerKind;
use crate::memory::{
    Capacity, MemoryModel, MemoryPlan, MemorySettings, ParameterCount, WeightFormat, Workspace,
    conv_state_values, ssm_state_values, workspace,
};
use crate::tensors::tensor_specs;

/// Everything that `inspect` tells about a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectReport {
    /// Preset or file.
    pub name: String,
    /// Shape of the model.
    pub architecture: Architecture,
    /// Number of tensors in a safetensors checkpoint.
    pub num_tensors: usize,
    /// Parameters in all.
    pub parameters: u64,
    /// Parameters by kind; the shares sum to 1.
    pub parameters_by_kind: Vec<KindShare>,
    /// Bytes of the weights in each format.
    pub formats: Vec<FormatBytes>,
    /// Bytes that every sequence needs.
    pub sequence: SequenceBytes,
    /// Activation buffers behind `memory.workspace`, in f32 values; `None` if left out.
    pub workspace: Option<Workspace>,
    /// Memory at the context and batch asked for.
    pub memory: MemoryPlan,
    /// Weight format that `memory` counts.
    pub memory_format: &'static str,
    /// Whether it fits, if a budget was given.
    pub fit: Option<Fit>,
}

/// Shape of a model. Widths of absent kinds are `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// Always `nemotron_h`.
    pub model_type: &'static str,
    /// One letter per layer: M Mamba-2, * attention, - MLP.
    pub pattern: String,
    /// Length of the pattern.
    pub num_layers: usize,
    /// Number of `M`.
    pub num_mamba_layers: usize,
    /// Number of `*`.
    pub num_attention_layers: usize,
    /// Number of `-`.
    pub num_mlp_layers: usize,
    /// h.
    pub hidden_size: usize,
    /// V.
    pub vocab_size: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence trained for.
    pub max_position_embeddings: usize,
    /// `torch_dtype` of the config.
    pub dtype: &'static str,
    /// f.
    pub intermediate_size: Option<Width>,
    /// q.
    pub num_attention_heads: Option<Width>,
    /// kv.
    pub num_key_value_heads: Option<Width>,
    /// hd.
    pub head_dim: Option<Width>,
    /// H.
    pub mamba_num_heads: Option<Width>,
    /// P.
    pub mamba_head_dim: Option<Width>,
    /// G.
    pub n_groups: Option<Width>,
    /// N.
    pub ssm_state_size: Option<Width>,
    /// k.
    pub conv_kernel: Option<Width>,
}

/// A width that may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Width {
    /// The same in all layers of the kind.
    All(usize),
    /// It differs.
    Range {
        /// Narrowest layer.
        min: usize,
        /// Widest layer.
        max: usize,
    },
}

impl Width {
    /// The width of some layers; `None` of none.
    fn of(mut widths: impl Iterator<Item = usize>) -> Option<Self> {
        let first = widths.next()?;
        let (min, max) = widths.fold((first, first), |(lo, hi), w| (lo.min(w), hi.max(w)));
        Some(if min == max { Self::All(min) } else { Self::Range { min, max } })
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(width) => write!(f, "{width}"),
            Self::Range { min, max } => write!(f, "{min}–{max}"),
        }
    }
}

/// Parameters of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindShare {
    /// `mamba`, `attention`, `mlp`, `embedding`, `lm_head` or `norms`.
    pub kind: &'static str,
    /// Layers of that kind; `None` for what is no layer.
    pub layers: Option<usize>,
    /// Their parameters.
    pub parameters: u64,
    /// Of all parameters.
    pub share: f64,
}

/// Bytes of the weights in one format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FormatBytes {
    /// Name as GGUF tools write it.
    pub format: &'static str,
    /// In a checkpoint (see [`WeightFormat::stored`]).
    pub stored_bytes: u64,
    /// In memory, small tensors in F32 (see [`WeightFormat::loaded`]).
    pub loaded_bytes: u64,
}

/// Bytes that one sequence needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SequenceBytes {
    /// Type of the KV cache.
    pub kv_dtype: &'static str,
    /// Keys and values of one token.
    pub kv_bytes_per_token: u64,
    /// Recurrent state, f32; it does not grow with the context.
    pub ssm_state_bytes: u64,
    /// Convolution state, f32.
    pub conv_state_bytes: u64,
    /// Both states.
    pub state_bytes: u64,
}

/// Whether a memory plan fits a budget, and what would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The budget in bytes.
    pub budget: u64,
    /// Whether `memory.total` is within it.
    pub fits: bool,
    /// Budget minus total; negative is what is missing.
    pub free: i128,
    /// Longest context at the batch asked for. Memory alone is the limit: compare with
    /// `max_position_embeddings`.
    pub largest_context: Capacity,
    /// Largest batch at the context asked for.
    pub largest_batch: Capacity,
}

/// What to compute a report for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectRequest {
    /// Weight format, KV type and chunk.
    pub settings: MemorySettings,
    /// Tokens per sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// Memory to fit into, in bytes.
    pub budget: Option<u64>,
}

/// Computes the report of a model called `name`.
///
/// # Panics
/// If the KV type is a block format that does not divide the KV width of a layer.
#[must_use]
pub fn inspect(config: &Config, name: &str, request: &InspectRequest) -> InspectReport {
    let settings = &request.settings;
    let model = MemoryModel::new(config, settings);
    let memory = model.plan(request.context, request.batch);
    let count = ParameterCount::of(config);
    let rows = usize::try_from(request.batch).unwrap_or(usize::MAX);
    let tokens = settings.prefill_chunk.max(rows);
    InspectReport {
        name: name.to_owned(),
        architecture: architecture(config),
        num_tensors: tensor_specs(config).len(),
        parameters: count.total,
        parameters_by_kind: shares(config, &count),
        formats: DType::ALL.iter().map(|&dtype| format_bytes(config, dtype)).collect(),
        sequence: SequenceBytes {
            kv_dtype: settings.kv.name(),
            kv_bytes_per_token: model.kv_per_token,
            ssm_state_bytes: 4 * ssm_state_values(config),
            conv_state_bytes: 4 * conv_state_values(config),
            state_bytes: model.state,
        },
        workspace: (settings.prefill_chunk > 0).then(|| workspace(config, tokens, rows)),
        memory,
        memory_format: settings.weights.matrices.name(),
        fit: request.budget.map(|budget| Fit {
            budget,
            fits: memory.total <= budget,
            free: i128::from(budget) - i128::from(memory.total),
            largest_context: model.largest_context(request.batch, budget),
            largest_batch: model.largest_batch(request.context, budget),
        }),
    }
}

fn architecture(config: &Config) -> Architecture {
    let (mamba, attention) = (|| config.mamba_layers(), || config.attention_layers());
    Architecture {
        model_type: "nemotron_h",
        pattern: config.pattern(),
        num_layers: config.layers.len(),
        num_mamba_layers: config.count(LayerKind::Mamba2),
        num_attention_layers: config.count(LayerKind::Attention),
        num_mlp_layers: config.count(LayerKind::Mlp),
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        tie_word_embeddings: config.tie_word_embeddings,
        max_position_embeddings: config.max_position_embeddings,
        dtype: config.dtype.name(),
        intermediate_size: Width::of(config.mlp_layers().map(|m| m.intermediate_size)),
        num_attention_heads: Width::of(attention().map(|a| a.num_heads)),
        num_key_value_heads: Width::of(attention().map(|a| a.num_kv_heads)),
        head_dim: Width::of(attention().map(|a| a.head_dim)),
        mamba_num_heads: Width::of(mamba().map(|m| m.num_heads)),
        mamba_head_dim: Width::of(mamba().map(|m| m.head_dim)),
        n_groups: Width::of(mamba().map(|m| m.n_groups)),
        ssm_state_size: Width::of(mamba().map(|m| m.state_size)),
        conv_kernel: Width::of(mamba().map(|m| m.conv_kernel)),
    }
}

fn shares(config: &Config, count: &ParameterCount) -> Vec<KindShare> {
    let layers = |kind| Some(config.count(kind));
    let parts = [
        ("mamba", layers(LayerKind::Mamba2), count.mamba),
        ("mlp", layers(LayerKind::Mlp), count.mlp),
        ("attention", layers(LayerKind::Attention), count.attention),
        ("embedding", None, count.embedding),
        ("lm_head", None, count.lm_head),
        ("norms", None, count.norms),
    ];
    let share = |parameters: u64| parameters as f64 / count.total as f64;
    parts
        .into_iter()
        .map(|(kind, layers, parameters)| KindShare {
            kind,
            layers,
            parameters,
            share: share(parameters),
        })
        .collect()
}

fn format_bytes(config: &Config, dtype: DType) -> FormatBytes {
    FormatBytes {
        format: dtype.name(),
        stored_bytes: WeightFormat::stored(dtype).weight_bytes(config),
        loaded_bytes: WeightFormat::loaded(dtype).weight_bytes(config),
    }
}
