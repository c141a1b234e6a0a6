//! `[model]` of a run file: a checkpoint to go on from, or a shape with random weights.

use super::RunConfigError;
use hybra_model::config::{Config, TorchDtype};
use hybra_model::layer::{
    AttentionConfig, LayerConfig, LayerWidths, Mamba2Config, MlpConfig, layers_from_pattern,
};
use hybra_model::presets::preset;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is trained: `from`, or a shape and a tokenizer. A key of the shape that is left out is the
/// preset's. Keys are Hugging Face's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A checkpoint whose weights, shape and tokenizer are taken.
    pub from: Option<PathBuf>,
    /// A directory with `tokenizer.json` and what belongs to it.
    pub tokenizer: Option<PathBuf>,
    /// A built-in shape; `micro` where nothing is said.
    pub preset: Option<String>,
    /// One letter per layer: `M`, `*`, `-`.
    pub pattern: Option<String>,
    /// h.
    pub hidden_size: Option<usize>,
    /// f.
    pub intermediate_size: Option<usize>,
    /// q.
    pub num_attention_heads: Option<usize>,
    /// kv.
    pub num_key_value_heads: Option<usize>,
    /// hd.
    pub head_dim: Option<usize>,
    /// H.
    pub mamba_num_heads: Option<usize>,
    /// P.
    pub mamba_head_dim: Option<usize>,
    /// G.
    pub n_groups: Option<usize>,
    /// N.
    pub ssm_state_size: Option<usize>,
    /// k.
    pub conv_kernel: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: Option<bool>,
    /// Longest sequence, for `config.json`.
    pub max_position_embeddings: Option<usize>,
}

/// What a shape takes from the tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Begins a text.
    pub bos: Option<u32>,
    /// End a turn.
    pub eos: Vec<u32>,
    /// Fills.
    pub pad: Option<u32>,
}

impl ModelConfig {
    pub(super) fn check(&self, path: &Path) -> Result<(), RunConfigError> {
        let wrong = |key: &str, expected: &str, found: &str| {
            let (key, expected) = (format!("model.{key}"), expected.to_owned());
            RunConfigError::Value { path: path.to_owned(), key, expected, found: found.to_owned() }
        };
        if self.from.is_some() {
            let others = Self { from: None, ..self.clone() };
            let set = toml::Table::try_from(others).unwrap_or_default();
            return match set.keys().next() {
                Some(key) => Err(wrong(key, "nothing beside `from`", &set[key].to_string())),
                None => Ok(()),
            };
        }
        let name = self.preset.as_deref().unwrap_or("micro");
        let base =
            preset(name).map_err(|error| wrong("preset", "a preset's name", &error.to_string()))?;
        self.reshape(base, &TokenIds { vocab_size: 512, ..TokenIds::default() })
            .map(drop)
            .map_err(|error| wrong("pattern", "a shape that is valid", &error.to_string()))
    }

    /// The configuration of a model with random weights.
    ///
    /// # Errors
    /// A shape that is none.
    pub fn shape(&self, ids: &TokenIds) -> Result<Config, hybra_model::ConfigError> {
        self.reshape(preset(self.preset.as_deref().unwrap_or("micro"))?, ids)
    }

    fn reshape(&self, base: Config, ids: &TokenIds) -> Result<Config, hybra_model::ConfigError> {
        let widths = self.widths(&base);
        let pattern = self.pattern.clone().unwrap_or_else(|| base.pattern());
        let config = Config {
            vocab_size: ids.vocab_size,
            hidden_size: self.hidden_size.unwrap_or(base.hidden_size),
            layers: layers_from_pattern(&pattern, &widths)?,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(base.tie_word_embeddings),
            max_position_embeddings: self
                .max_position_embeddings
                .unwrap_or(base.max_position_embeddings),
            bos_token_id: ids.bos,
            eos_token_ids: ids.eos.clone(),
            pad_token_id: ids.pad,
            dtype: TorchDtype::Float32,
            ..base
        };
        config.validate("[model]")?;
        Ok(config)
    }

    /// The widths of each kind of layer: as set, else as the preset's first layer of that kind.
    fn widths(&self, base: &Config) -> LayerWidths {
        let first = |wanted: fn(&LayerConfig) -> bool| base.layers.iter().find(|l| wanted(l));
        let mut mamba = Mamba2Config {
            num_heads: 8,
            head_dim: 16,
            n_groups: 2,
            state_size: 16,
            conv_kernel: 4,
            use_conv_bias: true,
        };
        if let Some(LayerConfig::Mamba2(m)) = first(|l| matches!(l, LayerConfig::Mamba2(_))) {
            mamba = *m;
        }
        let mut attention = AttentionConfig { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
        if let Some(LayerConfig::Attention(a)) = first(|l| matches!(l, LayerConfig::Attention(_))) {
            attention = *a;
        }
        let mut mlp = MlpConfig { intermediate_size: 4 * base.hidden_size };
        if let Some(LayerConfig::Mlp(m)) = first(|l| matches!(l, LayerConfig::Mlp(_))) {
            mlp = *m;
        }
        let set = |to: &mut usize, value: Option<usize>| *to = value.unwrap_or(*to);
        set(&mut mamba.num_heads, self.mamba_num_heads);
        set(&mut mamba.head_dim, self.mamba_head_dim);
        set(&mut mamba.n_groups, self.n_groups);
        set(&mut mamba.state_size, self.ssm_state_size);
        set(&mut mamba.conv_kernel, self.conv_kernel);
        set(&mut attention.num_heads, self.num_attention_heads);
        set(&mut attention.num_kv_heads, self.num_key_value_heads);
        set(&mut attention.head_dim, self.head_dim);
        set(&mut mlp.intermediate_size, self.intermediate_size);
        LayerWidths { mamba, attention, mlp }
    }
}
