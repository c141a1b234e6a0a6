//! The keys of `config.json`: every spelling, and typed look-ups that know all of them.
//!
//! A look-up reads every spelling that is present; two that differ are an error. `null` counts
//! as absent. Nothing here knows what a key is for.

use serde_json::{Map, Value};

use crate::error::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// All spellings of one key, the one that Hybra writes first.
pub(super) type Spellings = &'static [&'static str];

pub(super) const MODEL_TYPE: Spellings = &["model_type"];
pub(super) const PATTERN: Spellings =
    &["hybrid_override_pattern", "layers_block_type", "layer_types"];
pub(super) const NUM_LAYERS: Spellings = &["num_hidden_layers"];
pub(super) const VOCAB_SIZE: Spellings = &["vocab_size"];
pub(super) const HIDDEN_SIZE: Spellings = &["hidden_size"];
pub(super) const INTERMEDIATE_SIZE: Spellings = &["intermediate_size"];
pub(super) const ATTENTION_HEADS: Spellings = &["num_attention_heads"];
pub(super) const KV_HEADS: Spellings = &["num_key_value_heads"];
pub(super) const HEAD_DIM: Spellings = &["head_dim", "attention_head_dim"];
pub(super) const MAMBA_HEADS: Spellings = &["mamba_num_heads"];
pub(super) const MAMBA_HEAD_DIM: Spellings = &["mamba_head_dim"];
pub(super) const GROUPS: Spellings = &["n_groups", "mamba_num_groups", "mamba_n_groups"];
pub(super) const STATE_SIZE: Spellings = &["ssm_state_size", "mamba_state_dim"];
pub(super) const CONV_KERNEL: Spellings = &["conv_kernel", "mamba_d_conv"];
pub(super) const CONV_BIAS: Spellings = &["use_conv_bias", "mamba_conv_bias"];
pub(super) const CHUNK_SIZE: Spellings = &["chunk_size", "mamba_chunk_size"];
pub(super) const NORM_EPS: Spellings = &["layer_norm_epsilon", "rms_norm_eps"];
pub(super) const TIME_STEP_LIMIT: Spellings = &["time_step_limit", "mamba_dt_limit"];
pub(super) const TIME_STEP_MIN: Spellings = &["time_step_min", "mamba_dt_min"];
pub(super) const TIME_STEP_MAX: Spellings = &["time_step_max", "mamba_dt_max"];
pub(super) const TIME_STEP_FLOOR: Spellings =
    &["time_step_floor", "mamba_dt_init_floor", "mamba_dt_floor"];
pub(super) const INITIALIZER_RANGE: Spellings = &["initializer_range"];
pub(super) const RESCALE_PRENORM: Spellings = &["rescale_prenorm_residual"];
pub(super) const TIE_EMBEDDINGS: Spellings = &["tie_word_embeddings"];
pub(super) const MAX_POSITIONS: Spellings = &["max_position_embeddings"];
pub(super) const BOS: Spellings = &["bos_token_id"];
pub(super) const EOS: Spellings = &["eos_token_id"];
pub(super) const PAD: Spellings = &["pad_token_id"];
pub(super) const DTYPE: Spellings = &["torch_dtype", "dtype"];
pub(super) const MLP_ACTIVATION: Spellings = &["mlp_hidden_act"];
pub(super) const MAMBA_ACTIVATION: Spellings = &["mamba_hidden_act"];
/// Each must be false: no linear layer of the family has a bias.
pub(super) const BIASES: Spellings = &["use_bias", "mamba_proj_bias", "attention_bias", "mlp_bias"];
/// Each must be null: they change results, and Hybra does not do what they ask for.
pub(super) const MUST_BE_NULL: Spellings = &["sliding_window", "quantization_config"];
/// Where vision and voice variants keep the text model.
pub(super) const NESTED: Spellings = &["text_config", "llm_config"];

/// Keys that are read.
const READ: &[Spellings] = &[
    MODEL_TYPE,
    PATTERN,
    NUM_LAYERS,
    VOCAB_SIZE,
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    ATTENTION_HEADS,
    KV_HEADS,
    HEAD_DIM,
    MAMBA_HEADS,
    MAMBA_HEAD_DIM,
    GROUPS,
    STATE_SIZE,
    CONV_KERNEL,
    CONV_BIAS,
    CHUNK_SIZE,
    NORM_EPS,
    TIME_STEP_LIMIT,
    TIME_STEP_MIN,
    TIME_STEP_MAX,
    TIME_STEP_FLOOR,
    INITIALIZER_RANGE,
    RESCALE_PRENORM,
    TIE_EMBEDDINGS,
    MAX_POSITIONS,
    BOS,
    EOS,
    PAD,
    DTYPE,
    MLP_ACTIVATION,
    MAMBA_ACTIVATION,
    BIASES,
    MUST_BE_NULL,
    NESTED,
];

/// Keys that are understood and rightly without effect: nominal values (`expand`), choices of
/// other programs, dropout, remote code (never fetched, never run), and the expert fields that
/// dense members of the family carry as leftovers.
const WITHOUT_EFFECT: Spellings = &[
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "expand",
    "hidden_dropout",
    "mamba_expand",
    "mamba_ssm_cache_dtype",
    "moe_intermediate_size",
    "moe_latent_size",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_overlap",
    "mtp_hybrid_override_pattern",
    "mtp_layers_block_type",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_experts_per_tok",
    "num_logits_to_keep",
    "num_nextn_predict_layers",
    "output_router_logits",
    "residual_in_fp32",
    "routed_scaling_factor",
    "time_step_rank",
    "topk_group",
    "transformers_version",
    "use_cache",
    "use_mamba_kernels",
];

/// Whether `key` is read, or known to have no effect.
pub(super) fn is_known(key: &str) -> bool {
    READ.iter().any(|spellings| spellings.contains(&key)) || WITHOUT_EFFECT.contains(&key)
}

/// A JSON object with its origin for messages.
pub(super) struct Keys<'a> {
    pub(super) origin: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

/// A width that is one number for all layers, or a list with one entry per layer.
#[derive(PartialEq)]
pub(super) enum Width {
    All(usize),
    PerLayer(Vec<usize>),
}

impl Width {
    pub(super) fn at(&self, layer: usize) -> usize {
        match self {
            Self::All(width) => *width,
            Self::PerLayer(widths) => widths[layer],
        }
    }
}

impl Keys<'_> {
    /// The value of one spelling; `null` is absent.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Reads every spelling that is present with `read` and demands that they agree.
    /// Returns the first spelling found and its value.
    pub(super) fn find<T: PartialEq>(
        &self,
        spellings: Spellings,
        read: impl Fn(&str, &Value) -> Result<T>,
    ) -> Result<Option<(&'static str, T)>> {
        let mut found: Option<(&'static str, T)> = None;
        for &key in spellings {
            let Some(value) = self.value(key) else { continue };
            let parsed = read(key, value)?;
            match &found {
                None => found = Some((key, parsed)),
                Some((_, earlier)) if *earlier == parsed => {}
                Some((first, _)) => {
                    return Err(ConfigError::Conflict {
                        origin: self.origin.into(),
                        first: (*first).into(),
                        first_value: shorten(&self.map[*first]),
                        second: key.into(),
                        second_value: shorten(value),
                    });
                }
            }
        }
        Ok(found)
    }

    pub(super) fn missing(&self, spellings: Spellings, needed_by: &'static str) -> ConfigError {
        ConfigError::Missing {
            origin: self.origin.into(),
            key: spellings.join("` or `"),
            needed_by,
        }
    }

    pub(super) fn wrong_type(
        &self,
        key: &str,
        expected: &'static str,
        value: &Value,
    ) -> ConfigError {
        let (origin, key) = (self.origin.into(), key.into());
        ConfigError::WrongType { origin, key, expected, found: shorten(value) }
    }

    pub(super) fn size(&self, spellings: Spellings) -> Result<Option<usize>> {
        Ok(self.find(spellings, |key, value| self.as_size(key, value))?.map(|(_, size)| size))
    }

    pub(super) fn boolean(&self, spellings: Spellings) -> Result<Option<bool>> {
        let read = |key: &str, value: &Value| {
            value.as_bool().ok_or_else(|| self.wrong_type(key, "true or false", value))
        };
        Ok(self.find(spellings, read)?.map(|(_, flag)| flag))
    }

    /// A real number; a value beyond f32 becomes infinite and is judged by validation.
    pub(super) fn real(&self, spellings: Spellings) -> Result<Option<f32>> {
        Ok(self.find(spellings, |key, value| self.as_real(key, value))?.map(|(_, x)| x))
    }

    pub(super) fn text(&self, spellings: Spellings) -> Result<Option<(&'static str, String)>> {
        self.find(spellings, |key, value| {
            let text = value.as_str().ok_or_else(|| self.wrong_type(key, "a string", value))?;
            Ok(text.to_owned())
        })
    }

    /// A width, or a list of `layers` widths.
    pub(super) fn width(&self, spellings: Spellings, layers: usize) -> Result<Option<Width>> {
        let read = |key: &str, value: &Value| {
            let Value::Array(entries) = value else {
                return self.as_size(key, value).map(Width::All);
            };
            if entries.len() != layers {
                let (origin, key) = (self.origin.into(), key.into());
                let found = entries.len();
                return Err(ConfigError::ListLength { origin, key, expected: layers, found });
            }
            let entry = |value| self.as_size(key, value);
            entries.iter().map(entry).collect::<Result<Vec<_>>>().map(Width::PerLayer)
        };
        Ok(self.find(spellings, read)?.map(|(_, width)| width))
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize> {
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong_type(key, "a non-negative integer", value))
    }

    /// A number; recent Python writers put infinities as `{"__float__": "Infinity"}`.
    #[expect(clippy::cast_possible_truncation, reason = "model constants are held in f32")]
    pub(super) fn as_real(&self, key: &str, value: &Value) -> Result<f32> {
        let word = value.get("__float__").and_then(Value::as_str);
        match (value.as_f64(), word) {
            (Some(x), _) => Ok(x as f32),
            (_, Some("Infinity")) => Ok(f32::INFINITY),
            (_, Some("-Infinity")) => Ok(f32::NEG_INFINITY),
            _ => Err(self.wrong_type(key, "a number", value)),
        }
    }
}

/// A value as written, cut to a length that fits a message.
pub(super) fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
