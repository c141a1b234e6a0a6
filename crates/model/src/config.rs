//! The configuration of a model, read from `config.json` or GGUF metadata and written to both.
//!
//! A [`Config`] that a reader or a preset returned has passed [`Config::validate`]: every size is
//! positive and bounded so that byte counts fit in `u64`, groups divide heads, real numbers are
//! in range and special tokens lie in the vocabulary. The kind of a layer comes from the pattern
//! alone; leftover fields of other variants of the family decide nothing.

mod gguf;
mod hf;
mod keys;
mod write;

pub use gguf::GGUF_ARCHITECTURE;

use hybra_checkpoint::Checkpoint;

use crate::error::ConfigError;
use crate::layer::{AttentionConfig, LayerConfig, LayerKind, Mamba2Config, MlpConfig};

/// Largest width, head product or vocabulary accepted from a file.
pub const MAX_SIZE: usize = 1 << 24;
/// Largest number of layers accepted from a file.
pub const MAX_LAYERS: usize = 1024;

/// Everything about a model but its weights. Names follow Hugging Face.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// V, rows of the embedding and of the head.
    pub vocab_size: usize,
    /// h.
    pub hidden_size: usize,
    /// The blocks, first to last.
    pub layers: Vec<LayerConfig>,
    /// Epsilon of every RMSNorm (`layer_norm_epsilon`).
    pub norm_eps: f32,
    /// Clamp of dt after softplus, `(lo, hi)`; `(0, ∞)` does nothing. Used in every path.
    pub time_step_limit: (f32, f32),
    /// Whether the head is the embedding; then no `lm_head.weight` exists.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was trained for; no table depends on it.
    pub max_position_embeddings: usize,
    /// First token of plain text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end generation, in the order of the file; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Chunk length of the state space scan: a hint for kernels, not part of the mathematics.
    pub chunk_size: usize,
    /// Number type that the checkpoint is meant to be stored in (`torch_dtype`).
    pub dtype: TorchDtype,
    /// Used only to draw random weights.
    pub init: InitConfig,
}

/// Number type of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TorchDtype {
    /// `float32`
    Float32,
    /// `float16`
    Float16,
    /// `bfloat16`
    Bfloat16,
}

impl TorchDtype {
    /// The name that PyTorch uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// How random weights are drawn: dt log-uniform in `[time_step_min, time_step_max]` and at least
/// `time_step_floor`, linears normal with standard deviation `initializer_range`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InitConfig {
    /// Smallest dt.
    pub time_step_min: f32,
    /// Largest dt.
    pub time_step_max: f32,
    /// Floor of dt.
    pub time_step_floor: f32,
    /// Standard deviation of linear weights.
    pub initializer_range: f32,
    /// Whether output projections are divided by √(number of layers).
    pub rescale_prenorm_residual: bool,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self {
            time_step_min: 0.001,
            time_step_max: 0.1,
            time_step_floor: 1e-4,
            initializer_range: 0.02,
            rescale_prenorm_residual: true,
        }
    }
}

impl Config {
    /// The configuration of an open checkpoint: GGUF metadata, or the `config.json` beside the
    /// weights.
    ///
    /// # Errors
    /// [`ConfigError::NoConfig`], or what [`Config::from_gguf`] and [`Config::from_json`] refuse.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let origin = checkpoint.path().display().to_string();
        if let Some(gguf) = checkpoint.gguf() {
            let has_tensor = |name: &str| checkpoint.get(name).is_some();
            return Self::from_gguf(gguf, has_tensor, &origin);
        }
        match checkpoint.config_json()? {
            Some(text) => Self::from_json(&text, &format!("config.json of {origin}")),
            None => Err(ConfigError::NoConfig { origin }),
        }
    }

    /// The pattern string, one letter per layer.
    #[must_use]
    pub fn pattern(&self) -> String {
        self.layers.iter().map(|layer| layer.kind().letter()).collect()
    }

    /// Number of layers of one kind.
    #[must_use]
    pub fn count(&self, kind: LayerKind) -> usize {
        self.layers.iter().filter(|layer| layer.kind() == kind).count()
    }

    /// The Mamba-2 layers, first to last.
    pub fn mamba_layers(&self) -> impl Iterator<Item = &Mamba2Config> {
        self.layers.iter().filter_map(LayerConfig::as_mamba2)
    }

    /// The attention layers, first to last.
    pub fn attention_layers(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(LayerConfig::as_attention)
    }

    /// The MLP layers, first to last.
    pub fn mlp_layers(&self) -> impl Iterator<Item = &MlpConfig> {
        self.layers.iter().filter_map(LayerConfig::as_mlp)
    }

    /// Checks sizes, divisibility, ranges and token ids. `origin` names the source in messages.
    ///
    /// # Errors
    /// The first defect found.
    pub fn validate(&self, origin: &str) -> Result<(), ConfigError> {
        size(origin, || "vocab_size".into(), self.vocab_size)?;
        size(origin, || "hidden_size".into(), self.hidden_size)?;
        size(origin, || "chunk_size".into(), self.chunk_size)?;
        size(origin, || "max_position_embeddings".into(), self.max_position_embeddings)?;
        layer_count(origin, self.layers.len())?;
        for (index, layer) in self.layers.iter().enumerate() {
            check_layer(origin, index, layer)?;
        }
        check_uniform(origin, &self.layers)?;
        self.check_numbers(origin)?;
        self.check_tokens(origin)
    }

    fn check_numbers(&self, origin: &str) -> Result<(), ConfigError> {
        let out = |key: &str, expected, found: String| {
            Err(ConfigError::OutOfRange { origin: origin.into(), key: key.into(), expected, found })
        };
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return out("layer_norm_epsilon", "between 0 and 1", self.norm_eps.to_string());
        }
        let (lo, hi) = self.time_step_limit;
        // A NaN on either side fails the comparison.
        if !(lo <= hi && hi > 0.0 && lo < f32::INFINITY) {
            let found = format!("[{lo}, {hi}]");
            return out("time_step_limit", "[lo, hi] with lo ≤ hi, lo finite, hi > 0", found);
        }
        let init = &self.init;
        let positive = [
            ("time_step_min", init.time_step_min),
            ("time_step_max", init.time_step_max),
            ("time_step_floor", init.time_step_floor),
            ("initializer_range", init.initializer_range),
        ];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return out(key, "positive and finite", value.to_string());
            }
        }
        if init.time_step_min > init.time_step_max {
            let expected = "at most `time_step_max`";
            return out("time_step_min", expected, init.time_step_min.to_string());
        }
        Ok(())
    }

    fn check_tokens(&self, origin: &str) -> Result<(), ConfigError> {
        let bos = self.bos_token_id.map(|id| ("bos_token_id", id));
        let pad = self.pad_token_id.map(|id| ("pad_token_id", id));
        let eos = self.eos_token_ids.iter().map(|&id| ("eos_token_id", id));
        for (key, found) in bos.into_iter().chain(pad).chain(eos) {
            if found as usize >= self.vocab_size {
                let vocab_size = self.vocab_size;
                return Err(ConfigError::TokenId { origin: origin.into(), key, found, vocab_size });
            }
        }
        Ok(())
    }
}

/// Refuses no layers and too many, before anything is allocated for them.
fn layer_count(origin: &str, layers: usize) -> Result<(), ConfigError> {
    if layers > MAX_LAYERS {
        return Err(ConfigError::TooLarge {
            origin: origin.into(),
            key: "num_hidden_layers".into(),
            limit: MAX_LAYERS,
            found: layers.to_string(),
        });
    }
    size(origin, || "num_hidden_layers".into(), layers)
}

/// Refuses 0 and more than [`MAX_SIZE`].
fn size(origin: &str, key: impl Fn() -> String, value: usize) -> Result<(), ConfigError> {
    let (origin, found) = (origin.to_owned(), value.to_string());
    match value {
        0 => Err(ConfigError::NotPositive { origin, key: key(), found }),
        1..=MAX_SIZE => Ok(()),
        _ => Err(ConfigError::TooLarge { origin, key: key(), limit: MAX_SIZE, found }),
    }
}

/// Checks both factors, then their product.
fn product(
    origin: &str,
    layer: usize,
    (a_key, a): (&str, usize),
    (b_key, b): (&str, usize),
) -> Result<(), ConfigError> {
    size(origin, || format!("{a_key} of layer {layer}"), a)?;
    size(origin, || format!("{b_key} of layer {layer}"), b)?;
    size(origin, || format!("{a_key} · {b_key} of layer {layer}"), a * b)
}

fn check_layer(origin: &str, index: usize, layer: &LayerConfig) -> Result<(), ConfigError> {
    match layer {
        LayerConfig::Mamba2(m) => {
            let heads = ("mamba_num_heads", m.num_heads);
            let groups = ("n_groups", m.n_groups);
            product(origin, index, heads, ("mamba_head_dim", m.head_dim))?;
            product(origin, index, groups, ("ssm_state_size", m.state_size))?;
            size(origin, || format!("conv_kernel of layer {index}"), m.conv_kernel)?;
            divides(origin, index, heads, groups)
        }
        LayerConfig::Attention(a) => {
            let heads = ("num_attention_heads", a.num_heads);
            let kv = ("num_key_value_heads", a.num_kv_heads);
            product(origin, index, heads, ("head_dim", a.head_dim))?;
            size(origin, || format!("num_key_value_heads of layer {index}"), a.num_kv_heads)?;
            divides(origin, index, heads, kv)
        }
        LayerConfig::Mlp(m) => {
            size(origin, || format!("intermediate_size of layer {index}"), m.intermediate_size)
        }
    }
}

fn divides(
    origin: &str,
    layer: usize,
    (whole_key, whole): (&'static str, usize),
    (part_key, part): (&'static str, usize),
) -> Result<(), ConfigError> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    let origin = origin.into();
    Err(ConfigError::NotDivisible { origin, layer, whole_key, whole, part_key, part })
}

/// Refuses layers that differ in a size that no file format stores per layer.
fn check_uniform(origin: &str, layers: &[LayerConfig]) -> Result<(), ConfigError> {
    let shared = |layer: &LayerConfig| -> Vec<(&'static str, String)> {
        match layer {
            LayerConfig::Mamba2(m) => vec![
                ("n_groups", m.n_groups.to_string()),
                ("ssm_state_size", m.state_size.to_string()),
                ("conv_kernel", m.conv_kernel.to_string()),
                ("use_conv_bias", m.use_conv_bias.to_string()),
            ],
            LayerConfig::Attention(a) => vec![("head_dim", a.head_dim.to_string())],
            LayerConfig::Mlp(_) => vec![],
        }
    };
    for kind in [LayerKind::Mamba2, LayerKind::Attention] {
        let mut of_kind = layers.iter().enumerate().filter(|(_, layer)| layer.kind() == kind);
        let Some((_, head)) = of_kind.next() else { continue };
        for (layer, other) in of_kind {
            for ((key, first), (_, found)) in shared(head).into_iter().zip(shared(other)) {
                if first != found {
                    let origin = origin.into();
                    return Err(ConfigError::NotUniform { origin, key, first, layer, found });
                }
            }
        }
    }
    Ok(())
}
