//! How much memory a model takes: weights, KV cache, recurrent state, workspace.
//!
//! Bytes(context, batch) = weights + batch · context · KV per token + batch · state + workspace.
//! Everything follows from the config; [`workspace`] is the one statement of the activation
//! buffers, used here to count and by whoever runs the model to allocate. Not counted: the
//! program itself, memory-mapped pages beside repacked weights, and the small per-thread scratch
//! of single ops.

use hybra_kernels::DType;
use hybra_kernels::ops::attention::KvDtype;
use serde::Serialize;

use crate::config::Config;
use crate::layer::{AttentionConfig, LayerConfig, LayerKind};
use crate::tensors::{Role, TensorSpec, tensor_specs};

/// Number of parameters by what they belong to. The kinds count mixers without block norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ParameterCount {
    /// All Mamba-2 mixers.
    pub mamba: u64,
    /// All attention mixers.
    pub attention: u64,
    /// All MLP mixers.
    pub mlp: u64,
    /// The token embedding.
    pub embedding: u64,
    /// The head; 0 where it is the embedding.
    pub lm_head: u64,
    /// Block norms and the final norm.
    pub norms: u64,
    /// All of them.
    pub total: u64,
}

impl ParameterCount {
    /// Counts the tensors of the registry.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut count = Self::default();
        for spec in tensor_specs(config) {
            let kind = spec.layer.map(|layer| config.layers[layer].kind());
            let part = match (spec.role, kind) {
                (Role::Embedding, _) => &mut count.embedding,
                (Role::LmHead, _) => &mut count.lm_head,
                (Role::BlockNorm | Role::FinalNorm, _) => &mut count.norms,
                (_, Some(LayerKind::Mamba2)) => &mut count.mamba,
                (_, Some(LayerKind::Attention)) => &mut count.attention,
                (_, Some(LayerKind::Mlp)) => &mut count.mlp,
                (role, None) => unreachable!("{role:?} outside a block"),
            };
            *part += spec.num_elements();
            count.total += spec.num_elements();
        }
        count
    }
}

/// The element types of all tensors of a model: one for the large matrices, one for the small
/// tensors (see [`Role::keep_f32`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightFormat {
    /// Type of the matrices, where their rows allow it (see [`storable_dtype`]).
    pub matrices: DType,
    /// Type of norms, biases, convolution weights, A, D and dt biases.
    pub small: DType,
}

impl WeightFormat {
    /// As a checkpoint stores it: every tensor in `dtype` where that is F32, F16 or BF16 (what
    /// papers count as 2 bytes per parameter); small tensors in F32 beside block formats.
    #[must_use]
    pub fn stored(dtype: DType) -> Self {
        let small = if dtype.block_len() == 1 { dtype } else { DType::F32 };
        Self { matrices: dtype, small }
    }

    /// As the loader holds it: small tensors always in F32.
    #[must_use]
    pub fn loaded(dtype: DType) -> Self {
        Self { matrices: dtype, small: DType::F32 }
    }

    /// The type of one tensor.
    #[must_use]
    pub fn dtype_of(&self, spec: &TensorSpec) -> DType {
        if spec.is_matrix() { storable_dtype(self.matrices, spec.row_len()) } else { self.small }
    }

    /// Bytes of one tensor.
    #[must_use]
    pub fn tensor_bytes(&self, spec: &TensorSpec) -> u64 {
        let dtype = self.dtype_of(spec);
        spec.num_elements() / dtype.block_len() as u64 * dtype.block_bytes() as u64
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self, config: &Config) -> u64 {
        tensor_specs(config).iter().map(|spec| self.tensor_bytes(spec)).sum()
    }
}

/// The type that rows of `row_len` values get when `dtype` is asked for: itself where whole
/// blocks fit, else as in llama.cpp Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K, and F16 where
/// blocks of 32 do not fit either.
#[must_use]
pub fn storable_dtype(dtype: DType, row_len: usize) -> DType {
    let fits = |dtype: DType| row_len.is_multiple_of(dtype.block_len());
    let fallback = match dtype {
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        _ => DType::F16,
    };
    [dtype, fallback].into_iter().find(|&dtype| fits(dtype)).unwrap_or(DType::F16)
}

/// How keys and values are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// Plain values of a type.
    Values(DType),
    /// As [`KvDtype::Q8`]: bytes and the scales of each head.
    Q8,
}

impl KvFormat {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Values(dtype) => dtype.name(),
            Self::Q8 => "Q8",
        }
    }
}

impl From<KvDtype> for KvFormat {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::F32 => Self::Values(DType::F32),
            KvDtype::Bf16 => Self::Values(DType::Bf16),
            KvDtype::Q8 => Self::Q8,
        }
    }
}

/// Bytes of keys and values that one token adds, over all attention layers.
///
/// # Panics
/// If the type is a block format that does not divide the KV width of a layer.
#[must_use]
pub fn kv_bytes_per_token(config: &Config, kv: KvFormat) -> u64 {
    let layer = |a: &AttentionConfig| match kv {
        KvFormat::Values(dtype) => {
            2 * dtype.row_bytes(a.kv_width()).expect("whole blocks of keys") as u64
        }
        KvFormat::Q8 => KvDtype::Q8.position_bytes(a.num_kv_heads, a.head_dim) as u64,
    };
    config.attention_layers().map(layer).sum()
}

/// Values of the recurrent state of one sequence: Σ H·P·N.
#[must_use]
pub fn ssm_state_values(config: &Config) -> u64 {
    config.mamba_layers().map(|m| (m.d_inner() * m.state_size) as u64).sum()
}

/// Values of the convolution state of one sequence: Σ (HP + 2GN)·(k − 1).
#[must_use]
pub fn conv_state_values(config: &Config) -> u64 {
    config.mamba_layers().map(|m| (m.conv_dim() * (m.conv_kernel - 1)) as u64).sum()
}

/// Bytes of the state of one sequence, recurrent and convolution, both f32.
#[must_use]
pub fn state_bytes(config: &Config) -> u64 {
    4 * (ssm_state_values(config) + conv_state_values(config))
}

/// The activation buffers of one forward call, as numbers of f32 values: what
/// `Activations` holds after a call of that size, under the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workspace {
    /// tokens · h: the residual stream.
    pub hidden: usize,
    /// tokens · h: the normalized input of a mixer.
    pub normed: usize,
    /// tokens · widest of (2HP + 2GN + H, q·hd + 2·kv·hd, f): what a mixer projects to.
    pub wide: usize,
    /// tokens · widest of (HP, q·hd): the gated norm of y, or the attention output.
    pub mix: usize,
    /// tokens · h: the output of a mixer.
    pub out: usize,
    /// logit rows · V.
    pub logits: usize,
}

impl Workspace {
    /// All buffers, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let parts = [self.hidden, self.normed, self.wide, self.mix, self.out, self.logits];
        let bytes = parts.map(|values| 4u64.saturating_mul(values as u64));
        bytes.into_iter().fold(0, u64::saturating_add)
    }
}

/// The buffers of a forward call over at most `tokens` tokens (of all sequences together) that
/// returns at most `logit_rows` rows of logits. Sizes stop at `usize::MAX`.
#[must_use]
pub fn workspace(config: &Config, tokens: usize, logit_rows: usize) -> Workspace {
    // Widest first projection and input of an output projection.
    let widths = |layer: &LayerConfig| match layer {
        LayerConfig::Mamba2(m) => [m.in_proj_rows(), m.d_inner()],
        LayerConfig::Attention(a) => [a.q_width() + 2 * a.kv_width(), a.q_width()],
        LayerConfig::Mlp(m) => [m.intermediate_size, 0],
    };
    let widest = config
        .layers
        .iter()
        .map(widths)
        .fold([0; 2], |widest, widths| std::array::from_fn(|i| widths[i].max(widest[i])));
    let [wide, mix] = widest.map(|width: usize| tokens.saturating_mul(width));
    let hidden = tokens.saturating_mul(config.hidden_size);
    let logits = logit_rows.saturating_mul(config.vocab_size);
    Workspace { hidden, normed: hidden, wide, mix, out: hidden, logits }
}

/// How a model is to be run, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    /// Types of the weights.
    pub weights: WeightFormat,
    /// Type of the KV cache.
    pub kv: KvFormat,
    /// Most tokens in one forward call; 0 leaves the workspace out, as published tables do.
    pub prefill_chunk: usize,
}

/// Memory at one context length and batch, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Tokens per sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// Weights.
    pub weights: u64,
    /// Keys and values of all sequences.
    pub kv: u64,
    /// Recurrent and convolution state of all sequences.
    pub state: u64,
    /// Activation buffers.
    pub workspace: u64,
    /// The sum.
    pub total: u64,
}

/// How far a budget reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capacity {
    /// Not even 1 fits.
    Nothing,
    /// The largest number that fits.
    UpTo(u64),
    /// No number is too large: nothing grows with it.
    Unlimited,
}

/// The memory of one model under one setting.
#[derive(Debug, Clone)]
pub struct MemoryModel<'a> {
    config: &'a Config,
    prefill_chunk: usize,
    /// Bytes of all weights.
    pub weights: u64,
    /// Bytes of keys and values per token and sequence.
    pub kv_per_token: u64,
    /// Bytes of state per sequence.
    pub state: u64,
}

impl<'a> MemoryModel<'a> {
    /// # Panics
    /// As [`kv_bytes_per_token`].
    #[must_use]
    pub fn new(config: &'a Config, settings: &MemorySettings) -> Self {
        Self {
            config,
            prefill_chunk: settings.prefill_chunk,
            weights: settings.weights.weight_bytes(config),
            kv_per_token: kv_bytes_per_token(config, settings.kv),
            state: state_bytes(config),
        }
    }

    /// Memory at `context` tokens in each of `batch` sequences. Sums stop at `u64::MAX`.
    /// The workspace is that of a chunk, or of a decode step where the batch is larger.
    #[must_use]
    pub fn plan(&self, context: u64, batch: u64) -> MemoryPlan {
        let kv = self.kv_per_token.saturating_mul(context).saturating_mul(batch);
        let state = self.state.saturating_mul(batch);
        let rows = usize::try_from(batch).unwrap_or(usize::MAX);
        let workspace = match self.prefill_chunk {
            0 => 0,
            chunk => workspace(self.config, chunk.max(rows), rows).total_bytes(),
        };
        let parts = [self.weights, kv, state, workspace];
        let total = parts.iter().fold(0, |sum: u64, &part| sum.saturating_add(part));
        MemoryPlan { context, batch, weights: self.weights, kv, state, workspace, total }
    }

    /// The longest context at which `batch` sequences fit into `budget` bytes.
    #[must_use]
    pub fn largest_context(&self, batch: u64, budget: u64) -> Capacity {
        largest(|context| self.plan(context, batch).total <= budget)
    }

    /// The largest batch that fits into `budget` bytes at `context` tokens each.
    #[must_use]
    pub fn largest_batch(&self, context: u64, budget: u64) -> Capacity {
        largest(|batch| self.plan(context, batch).total <= budget)
    }
}

/// Beyond this nothing grows any more, for no real model is that small.
const SEARCH_END: u64 = 1 << 48;

/// The largest number ≥ 1 that fits, given that a number fits if any larger one does.
fn largest(fits: impl Fn(u64) -> bool) -> Capacity {
    if !fits(1) {
        return Capacity::Nothing;
    }
    if fits(SEARCH_END) {
        return Capacity::Unlimited;
    }
    let (mut good, mut bad) = (1, SEARCH_END);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Capacity::UpTo(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    #[test]
    fn rows_fall_back_as_in_llama_cpp() {
        let cases = [
            (DType::Q4K, 5120, DType::Q4K),
            (DType::Q4K, 4480, DType::Q5_0),
            (DType::Q5K, 15680, DType::Q5_1),
            (DType::Q6K, 3136, DType::Q8_0),
            (DType::Q4_0, 4480, DType::Q4_0),
            (DType::Q4_0, 72, DType::F16),
            (DType::Q6K, 72, DType::F16),
            (DType::F32, 7, DType::F32),
        ];
        for (asked, row_len, got) in cases {
            assert_eq!(storable_dtype(asked, row_len), got, "{asked} {row_len}");
        }
    }

    #[test]
    fn small_tensors_stay_f32_beside_block_formats() {
        let config = preset("micro").unwrap();
        let small: u64 = tensor_specs(&config)
            .iter()
            .filter(|spec| spec.keep_f32())
            .map(TensorSpec::num_elements)
            .sum();
        let matrices = ParameterCount::of(&config).total - small;
        let bytes = |format: WeightFormat| format.weight_bytes(&config);
        assert_eq!(bytes(WeightFormat::stored(DType::Q4_0)), matrices / 32 * 18 + 4 * small);
        assert_eq!(bytes(WeightFormat::loaded(DType::Bf16)), 2 * matrices + 4 * small);
        assert_eq!(bytes(WeightFormat::stored(DType::Bf16)), 2 * (matrices + small));
    }

    #[test]
    fn the_largest_fits_and_the_next_does_not() {
        let config = preset("nano2-9b").unwrap();
        let weights = WeightFormat::loaded(DType::Q4_0);
        let settings =
            MemorySettings { weights, kv: KvFormat::Values(DType::F16), prefill_chunk: 512 };
        let model = MemoryModel::new(&config, &settings);
        let budget = 8 << 30;
        let Capacity::UpTo(context) = model.largest_context(4, budget) else { panic!() };
        assert!(model.plan(context, 4).total <= budget);
        assert!(model.plan(context + 1, 4).total > budget);
        let Capacity::UpTo(batch) = model.largest_batch(4096, budget) else { panic!() };
        assert!(model.plan(4096, batch).total <= budget);
        assert!(model.plan(4096, batch + 1).total > budget);
        assert_eq!(model.largest_context(1, 1 << 30), Capacity::Nothing);
        assert_eq!(model.plan(u64::MAX, u64::MAX).total, u64::MAX);
    }

    #[test]
    fn a_model_without_attention_has_no_context_limit() {
        let mut config = preset("micro").unwrap();
        config.layers.retain(|layer| layer.kind() != LayerKind::Attention);
        let weights = WeightFormat::loaded(DType::Bf16);
        let settings =
            MemorySettings { weights, kv: KvFormat::Values(DType::F16), prefill_chunk: 16 };
        let model = MemoryModel::new(&config, &settings);
        assert_eq!(model.largest_context(1, 1 << 30), Capacity::Unlimited);
    }

    #[test]
    fn workspace_follows_the_widest_layer() {
        let config = preset("nano2-9b").unwrap();
        let w = workspace(&config, 512, 3);
        assert_eq!([w.hidden, w.normed, w.out], [512 * 4480; 3]);
        assert_eq!([w.wide, w.mix], [512 * 22656, 512 * 10240]);
        assert_eq!(w.logits, 3 * 131_072);
        let floats = 512 * (3 * 4480 + 22656 + 10240) + 3 * 131_072;
        assert_eq!(w.total_bytes(), 4 * floats);
    }
}
