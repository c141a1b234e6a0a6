//! GGUF metadata of architecture `nemotron_h` ↔ [`Config`].
//!
//! The kind of a layer follows from two per-layer arrays: Mamba-2 where it has neither KV heads
//! nor an FFN length, else attention where it has no FFN length, else MLP. What the metadata do
//! not say follows from the tensors: no head means tied embeddings, no convolution bias means
//! none. Rotary keys that a file may carry are without effect. Hybra's own additions, written only
//! where needed and ignored by others: arrays for `ssm.inner_size`, `ssm.time_step_rank` and
//! `attention.head_count` where layers differ, `ssm.time_step_limit` where dt is clamped, and
//! `hybra.eos_token_ids` where several tokens end generation.
//!
//! Not stored in GGUF, so read back as defaults: chunk size and initialization. The number type
//! is read from `general.file_type`, which belongs to whoever writes the tensors.

use hybra_checkpoint::{Gguf, GgufValue, OneOrMany};

use super::write::{self, uniform, widths};
use super::{Config, InitConfig, TorchDtype, layer_count};
use crate::error::ConfigError;
use crate::layer::{AttentionConfig, LayerConfig, Mamba2Config, MlpConfig};
use crate::tensors::{Role, tensor_specs};

type Result<T> = std::result::Result<T, ConfigError>;

/// `general.architecture` of the family.
pub const GGUF_ARCHITECTURE: &str = "nemotron_h";

const ARCHITECTURE: &str = "general.architecture";
const FILE_TYPE: &str = "general.file_type";
const BLOCK_COUNT: &str = "nemotron_h.block_count";
const CONTEXT_LENGTH: &str = "nemotron_h.context_length";
const EMBEDDING_LENGTH: &str = "nemotron_h.embedding_length";
const VOCAB_SIZE: &str = "nemotron_h.vocab_size";
const FEED_FORWARD_LENGTH: &str = "nemotron_h.feed_forward_length";
const HEAD_COUNT: &str = "nemotron_h.attention.head_count";
const HEAD_COUNT_KV: &str = "nemotron_h.attention.head_count_kv";
const KEY_LENGTH: &str = "nemotron_h.attention.key_length";
const VALUE_LENGTH: &str = "nemotron_h.attention.value_length";
const RMS_EPSILON: &str = "nemotron_h.attention.layer_norm_rms_epsilon";
/// Written beside [`RMS_EPSILON`] as other converters do.
const NORM_EPSILON: &str = "nemotron_h.attention.layer_norm_epsilon";
const CONV_KERNEL: &str = "nemotron_h.ssm.conv_kernel";
const INNER_SIZE: &str = "nemotron_h.ssm.inner_size";
const STATE_SIZE: &str = "nemotron_h.ssm.state_size";
const GROUP_COUNT: &str = "nemotron_h.ssm.group_count";
/// The number of Mamba heads, whatever its name says.
const TIME_STEP_RANK: &str = "nemotron_h.ssm.time_step_rank";
const TIME_STEP_LIMIT: &str = "nemotron_h.ssm.time_step_limit";
const TOKENS: &str = "tokenizer.ggml.tokens";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const PAD: &str = "tokenizer.ggml.padding_token_id";
/// End of text, of turn, of message: each ends generation.
const EOS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const EOS_IDS: &str = "hybra.eos_token_ids";

impl Config {
    /// Reads the metadata of a GGUF file; `has_tensor` tells whether the file holds a tensor of
    /// that GGUF name. `origin` (the file) names the source in messages.
    ///
    /// # Errors
    /// Another architecture, a missing key, a value of the wrong type, or sizes that do not fit
    /// each other.
    pub fn from_gguf(gguf: &Gguf, has_tensor: impl Fn(&str) -> bool, origin: &str) -> Result<Self> {
        let mut config = Reader { gguf, origin }.read()?;
        config.validate(origin)?;
        let specs = tensor_specs(&config);
        let absent = |role| {
            specs.iter().find(|spec| spec.role == role).is_some_and(|s| !has_tensor(&s.gguf_name))
        };
        config.tie_word_embeddings = absent(Role::LmHead);
        if absent(Role::ConvBias) {
            for layer in &mut config.layers {
                if let LayerConfig::Mamba2(mamba) = layer {
                    mamba.use_conv_bias = false;
                }
            }
        }
        Ok(config)
    }

    /// The metadata that [`Config::from_gguf`] reads, architecture and special tokens included,
    /// tokenizer and `general.file_type` not.
    #[must_use]
    pub fn to_gguf(&self) -> Vec<(&'static str, GgufValue)> {
        let layers = &self.layers;
        let mut metadata = vec![
            (ARCHITECTURE, GgufValue::Str(GGUF_ARCHITECTURE.into())),
            (BLOCK_COUNT, number(layers.len())),
            (CONTEXT_LENGTH, number(self.max_position_embeddings)),
            (EMBEDDING_LENGTH, number(self.hidden_size)),
            (VOCAB_SIZE, number(self.vocab_size)),
            (FEED_FORWARD_LENGTH, array(&widths(layers, write::INTERMEDIATE_SIZE))),
            (HEAD_COUNT_KV, array(&widths(layers, write::KV_HEADS))),
            (RMS_EPSILON, GgufValue::F32(self.norm_eps)),
            (NORM_EPSILON, GgufValue::F32(self.norm_eps)),
        ];
        if let Some(attention) = self.attention_layers().next() {
            metadata.extend([
                (HEAD_COUNT, per_layer(&widths(layers, write::ATTENTION_HEADS))),
                (KEY_LENGTH, number(attention.head_dim)),
                (VALUE_LENGTH, number(attention.head_dim)),
            ]);
        }
        if let Some(mamba) = self.mamba_layers().next() {
            metadata.extend([
                (CONV_KERNEL, number(mamba.conv_kernel)),
                (STATE_SIZE, number(mamba.state_size)),
                (GROUP_COUNT, number(mamba.n_groups)),
                (INNER_SIZE, per_layer(&widths(layers, write::D_INNER))),
                (TIME_STEP_RANK, per_layer(&widths(layers, write::MAMBA_HEADS))),
            ]);
        }
        if self.time_step_limit != (0.0, f32::INFINITY) {
            let (lo, hi) = self.time_step_limit;
            metadata.push((TIME_STEP_LIMIT, GgufValue::F32s(vec![lo, hi])));
        }
        self.put_tokens(&mut metadata);
        metadata
    }

    fn put_tokens(&self, metadata: &mut Vec<(&'static str, GgufValue)>) {
        metadata.extend(self.bos_token_id.map(|id| (BOS, GgufValue::U32(id))));
        metadata.extend(self.pad_token_id.map(|id| (PAD, GgufValue::U32(id))));
        let eos = &self.eos_token_ids;
        metadata.extend(EOS.into_iter().zip(eos.iter().map(|&id| GgufValue::U32(id))));
        if eos.len() > 1 {
            metadata.push((EOS_IDS, GgufValue::U32s(eos.clone())));
        }
    }
}

/// Sizes of a valid config are below 2²⁴.
fn number(size: usize) -> GgufValue {
    GgufValue::U32(u32::try_from(size).expect("validated sizes fit"))
}

fn array(sizes: &[usize]) -> GgufValue {
    let size = |&size: &usize| i32::try_from(size).expect("validated sizes fit");
    GgufValue::I32s(sizes.iter().map(size).collect())
}

/// One number where all layers of the kind agree.
fn per_layer(sizes: &[usize]) -> GgufValue {
    uniform(sizes).map_or_else(|| array(sizes), number)
}

/// Look-ups in the metadata of one file.
struct Reader<'a> {
    gguf: &'a Gguf,
    origin: &'a str,
}

impl Reader<'_> {
    fn read(&self) -> Result<Config> {
        self.check_architecture()?;
        let layers = self.layers()?;
        Ok(Config {
            vocab_size: self.vocab_size()?,
            hidden_size: self.required(EMBEDDING_LENGTH)?,
            layers,
            norm_eps: self.gguf.get_f32(RMS_EPSILON)?.ok_or_else(|| self.missing(RMS_EPSILON))?,
            time_step_limit: self.time_step_limit()?,
            tie_word_embeddings: false,
            max_position_embeddings: self.required(CONTEXT_LENGTH)?,
            bos_token_id: self.gguf.get_u32(BOS)?,
            eos_token_ids: self.eos_token_ids()?,
            pad_token_id: self.gguf.get_u32(PAD)?,
            chunk_size: 128,
            dtype: match self.gguf.get_u32(FILE_TYPE)? {
                Some(0) => TorchDtype::Float32,
                Some(1) => TorchDtype::Float16,
                _ => TorchDtype::Bfloat16,
            },
            init: InitConfig::default(),
        })
    }

    fn check_architecture(&self) -> Result<()> {
        let found = self.gguf.get_str(ARCHITECTURE)?.ok_or_else(|| self.missing(ARCHITECTURE))?;
        if found == GGUF_ARCHITECTURE {
            return Ok(());
        }
        Err(ConfigError::model_type(self.origin, ARCHITECTURE, found))
    }

    fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Checkpoint(self.gguf.missing(key))
    }

    fn required(&self, key: &str) -> Result<usize> {
        Ok(self.gguf.get_u32(key)?.ok_or_else(|| self.missing(key))? as usize)
    }

    /// A value for each of `layers` layers, from a number or an array.
    fn per_layer(&self, key: &str, layers: usize) -> Result<Vec<usize>> {
        match self.gguf.get_u32s(key)?.ok_or_else(|| self.missing(key))? {
            OneOrMany::One(size) => Ok(vec![size as usize; layers]),
            OneOrMany::Many(sizes) if sizes.len() == layers => {
                Ok(sizes.into_iter().map(|size| size as usize).collect())
            }
            OneOrMany::Many(sizes) => Err(ConfigError::ListLength {
                origin: self.origin.into(),
                key: key.into(),
                expected: layers,
                found: sizes.len(),
            }),
        }
    }

    fn layers(&self) -> Result<Vec<LayerConfig>> {
        let count = self.required(BLOCK_COUNT)?;
        layer_count(self.origin, count)?;
        let kv_heads = self.per_layer(HEAD_COUNT_KV, count)?;
        let ffn = self.per_layer(FEED_FORWARD_LENGTH, count)?;
        let is_mamba = |i: usize| kv_heads[i] == 0 && ffn[i] == 0;
        let is_attention = |i: usize| kv_heads[i] != 0 && ffn[i] == 0;
        // Keys of a kind are read only where the model has it.
        let mamba = (0..count).any(is_mamba).then(|| self.mamba(count, &is_mamba)).transpose()?;
        let attention =
            (0..count).any(is_attention).then(|| self.attention(count, &kv_heads)).transpose()?;
        let layer = |i: usize| match (&mamba, &attention) {
            (Some(mamba), _) if is_mamba(i) => LayerConfig::Mamba2(mamba[i]),
            (_, Some(attention)) if is_attention(i) => LayerConfig::Attention(attention[i]),
            _ => LayerConfig::Mlp(MlpConfig { intermediate_size: ffn[i] }),
        };
        Ok((0..count).map(layer).collect())
    }

    /// The widths at every layer; meaningful where `is_mamba`.
    fn mamba(&self, count: usize, is_mamba: &dyn Fn(usize) -> bool) -> Result<Vec<Mamba2Config>> {
        let inner = self.per_layer(INNER_SIZE, count)?;
        let heads = self.per_layer(TIME_STEP_RANK, count)?;
        for layer in (0..count).filter(|&layer| is_mamba(layer)) {
            let (whole, part) = (inner[layer], heads[layer]);
            // No heads at all is found by validation.
            if part != 0 && !whole.is_multiple_of(part) {
                return Err(ConfigError::NotDivisible {
                    origin: self.origin.into(),
                    layer,
                    whole_key: INNER_SIZE,
                    whole,
                    part_key: TIME_STEP_RANK,
                    part,
                });
            }
        }
        let n_groups = self.required(GROUP_COUNT)?;
        let state_size = self.required(STATE_SIZE)?;
        let conv_kernel = self.required(CONV_KERNEL)?;
        let at = |layer: usize| Mamba2Config {
            num_heads: heads[layer],
            head_dim: inner[layer].checked_div(heads[layer]).unwrap_or(0),
            n_groups,
            state_size,
            conv_kernel,
            use_conv_bias: true,
        };
        Ok((0..count).map(at).collect())
    }

    /// The widths at every layer; meaningful where it is attention.
    fn attention(&self, count: usize, kv_heads: &[usize]) -> Result<Vec<AttentionConfig>> {
        let heads = self.per_layer(HEAD_COUNT, count)?;
        let head_dim = self.required(KEY_LENGTH)?;
        let value_length = self.gguf.get_u32(VALUE_LENGTH)?.map_or(head_dim, |len| len as usize);
        if value_length != head_dim {
            return Err(ConfigError::Conflict {
                origin: self.origin.into(),
                first: KEY_LENGTH.into(),
                first_value: head_dim.to_string(),
                second: VALUE_LENGTH.into(),
                second_value: value_length.to_string(),
            });
        }
        let at = |layer: usize| AttentionConfig {
            num_heads: heads[layer],
            num_kv_heads: kv_heads[layer],
            head_dim,
        };
        Ok((0..count).map(at).collect())
    }

    /// The key, or the length of the vocabulary in files that lack it.
    fn vocab_size(&self) -> Result<usize> {
        if let Some(size) = self.gguf.get_u32(VOCAB_SIZE)? {
            return Ok(size as usize);
        }
        let tokens = self.gguf.get_strs(TOKENS)?;
        tokens.map(|tokens| tokens.len()).ok_or_else(|| self.missing(VOCAB_SIZE))
    }

    fn time_step_limit(&self) -> Result<(f32, f32)> {
        match self.gguf.get_f32s(TIME_STEP_LIMIT)?.as_deref() {
            None => Ok((0.0, f32::INFINITY)),
            Some(&[lo, hi]) => Ok((lo, hi)),
            Some(other) => Err(ConfigError::WrongType {
                origin: self.origin.into(),
                key: TIME_STEP_LIMIT.into(),
                expected: "an array of two numbers",
                found: format!("{} numbers", other.len()),
            }),
        }
    }

    /// Every token that ends generation, without repetition.
    fn eos_token_ids(&self) -> Result<Vec<u32>> {
        if let Some(OneOrMany::Many(ids)) = self.gguf.get_u32s(EOS_IDS)? {
            return Ok(ids);
        }
        let mut ids = Vec::new();
        for key in EOS {
            match self.gguf.get_u32(key)? {
                Some(id) if !ids.contains(&id) => ids.push(id),
                _ => {}
            }
        }
        Ok(ids)
    }
}
