//! `config.json` → [`Config`].
//!
//! Reads the format of Hugging Face's `NemotronHConfig` and the copies in circulation: every
//! spelling of a key, Python's `Infinity`, eos as a number or a list, the text model nested in
//! vision and voice configs. Hybra's one extension: `intermediate_size`, `mamba_num_heads`,
//! `mamba_head_dim`, `num_attention_heads` and `num_key_value_heads` may be lists with one entry
//! per layer, 0 for layers of other kinds. Remote code (`auto_map`) is never looked at.

use hybra_checkpoint::relax_json;
use serde_json::{Map, Value};

use super::keys::{self, Keys, Spellings, Width};
use super::{Config, InitConfig, TorchDtype, layer_count};
use crate::error::ConfigError;
use crate::layer::{
    AttentionConfig, LayerConfig, LayerKind, Mamba2Config, MlpConfig, parse_pattern,
};

type Result<T> = std::result::Result<T, ConfigError>;

impl Config {
    /// Reads the text of a `config.json`. `origin` (the file) names the source in messages.
    ///
    /// # Errors
    /// Every defect of the file has its own variant of [`ConfigError`].
    pub fn from_json(text: &str, origin: &str) -> Result<Self> {
        let map = parse(text, origin)?;
        let keys = Keys { origin, map: &map };
        check_family(&keys)?;
        check_supported(&keys)?;
        let config = read(&keys)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// The keys of a `config.json` that Hybra neither reads nor knows to be without effect, in
    /// file order: worth a line to the user, never an error.
    ///
    /// # Errors
    /// The text is not a JSON object, or holds two nested text models.
    pub fn unknown_keys(text: &str, origin: &str) -> Result<Vec<String>> {
        Ok(parse(text, origin)?.keys().filter(|key| !keys::is_known(key)).cloned().collect())
    }
}

/// The JSON object of the text model, top-level or nested.
fn parse(text: &str, origin: &str) -> Result<Map<String, Value>> {
    let strict = relax_json(text);
    let value: Value = serde_json::from_str(&strict)
        .map_err(|e| ConfigError::Json { origin: origin.into(), message: e.to_string() })?;
    let Value::Object(mut map) = value else {
        return Err(ConfigError::WrongType {
            origin: origin.into(),
            key: "config".into(),
            expected: "a JSON object",
            found: keys::shorten(&value),
        });
    };
    let keys = Keys { origin, map: &map };
    let nested = keys.find(keys::NESTED, |key, value| match value {
        Value::Object(inner) => Ok(inner.clone()),
        _ => Err(keys.wrong_type(key, "an object", value)),
    })?;
    let Some((nested_key, inner)) = nested else { return Ok(map) };
    // A pattern on both levels would describe two models.
    if let Some((key, outer)) = keys::PATTERN.iter().find_map(|&k| Some((k, keys.value(k)?))) {
        return Err(ConfigError::Conflict {
            origin: origin.into(),
            first: nested_key.into(),
            first_value: "a nested text model".into(),
            second: key.into(),
            second_value: keys::shorten(outer),
        });
    }
    map = inner;
    Ok(map)
}

/// Refuses other families. A file that names none is judged by its keys alone.
fn check_family(keys: &Keys) -> Result<()> {
    match keys.text(keys::MODEL_TYPE)? {
        Some((key, family)) if family != "nemotron_h" => {
            Err(ConfigError::model_type(keys.origin, key, &family))
        }
        _ => Ok(()),
    }
}

/// Refuses what changes results and is not built.
fn check_supported(keys: &Keys) -> Result<()> {
    let origin = || keys.origin.to_owned();
    for &key in keys::BIASES {
        match keys.value(key) {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                return Err(ConfigError::Bias { origin: origin(), key: key.into() });
            }
            Some(other) => return Err(keys.wrong_type(key, "true or false", other)),
        }
    }
    for &key in keys::MUST_BE_NULL {
        if let Some(value) = keys.value(key) {
            let (key, found) = (key.into(), keys::shorten(value));
            return Err(ConfigError::NotNull { origin: origin(), key, found });
        }
    }
    for (spellings, expected) in [(keys::MLP_ACTIVATION, "relu2"), (keys::MAMBA_ACTIVATION, "silu")]
    {
        match keys.text(spellings)? {
            Some((key, found)) if found != expected => {
                let (origin, key) = (origin(), key.into());
                return Err(ConfigError::Activation { origin, key, expected, found });
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(keys: &Keys) -> Result<Config> {
    let required = |spellings: Spellings| {
        keys.size(spellings)?.ok_or_else(|| keys.missing(spellings, "every model has one"))
    };
    Ok(Config {
        vocab_size: required(keys::VOCAB_SIZE)?,
        hidden_size: required(keys::HIDDEN_SIZE)?,
        layers: read_layers(keys)?,
        norm_eps: keys.real(keys::NORM_EPS)?.unwrap_or(1e-5),
        time_step_limit: read_limit(keys)?,
        tie_word_embeddings: keys.boolean(keys::TIE_EMBEDDINGS)?.unwrap_or(false),
        max_position_embeddings: keys.size(keys::MAX_POSITIONS)?.unwrap_or(4096),
        bos_token_id: read_ids(keys, keys::BOS, 1)?.first().copied(),
        eos_token_ids: read_ids(keys, keys::EOS, 2)?,
        pad_token_id: read_ids(keys, keys::PAD, 0)?.first().copied(),
        chunk_size: keys.size(keys::CHUNK_SIZE)?.unwrap_or(128),
        dtype: read_dtype(keys)?,
        init: read_init(keys)?,
    })
}

fn read_init(keys: &Keys) -> Result<InitConfig> {
    let default = InitConfig::default();
    Ok(InitConfig {
        time_step_min: keys.real(keys::TIME_STEP_MIN)?.unwrap_or(default.time_step_min),
        time_step_max: keys.real(keys::TIME_STEP_MAX)?.unwrap_or(default.time_step_max),
        time_step_floor: keys.real(keys::TIME_STEP_FLOOR)?.unwrap_or(default.time_step_floor),
        initializer_range: keys.real(keys::INITIALIZER_RANGE)?.unwrap_or(default.initializer_range),
        rescale_prenorm_residual: keys
            .boolean(keys::RESCALE_PRENORM)?
            .unwrap_or(default.rescale_prenorm_residual),
    })
}

fn read_dtype(keys: &Keys) -> Result<TorchDtype> {
    let read = |key: &str, value: &Value| {
        let name = value.as_str().ok_or_else(|| keys.wrong_type(key, "a string", value))?;
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Ok(TorchDtype::Float32),
            "float16" => Ok(TorchDtype::Float16),
            "bfloat16" => Ok(TorchDtype::Bfloat16),
            _ => Err(ConfigError::UnknownDtype {
                origin: keys.origin.into(),
                key: key.into(),
                found: name.into(),
            }),
        }
    };
    Ok(keys.find(keys::DTYPE, read)?.map_or(TorchDtype::Bfloat16, |(_, dtype)| dtype))
}

/// `[lo, hi]`; a `null` upper limit is ∞.
fn read_limit(keys: &Keys) -> Result<(f32, f32)> {
    let read = |key: &str, value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([lo, Value::Null]) => Ok((keys.as_real(key, lo)?, f32::INFINITY)),
        Some([lo, hi]) => Ok((keys.as_real(key, lo)?, keys.as_real(key, hi)?)),
        _ => Err(keys.wrong_type(key, "a list of two numbers", value)),
    };
    Ok(keys.find(keys::TIME_STEP_LIMIT, read)?.map_or((0.0, f32::INFINITY), |(_, limit)| limit))
}

/// A token id or a list of them. An absent key takes the default of `NemotronHConfig`; an
/// explicit `null` means that there is none.
fn read_ids(keys: &Keys, spellings: Spellings, default: u32) -> Result<Vec<u32>> {
    let [key] = spellings else { unreachable!("token ids have one spelling") };
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| keys.wrong_type(key, "a token id or a list of them", value))
    };
    match keys.map.get(*key) {
        None => Ok(vec![default]),
        Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// The kinds of all layers from the pattern, then the widths that these kinds need.
fn read_layers(keys: &Keys) -> Result<Vec<LayerConfig>> {
    let found = keys.find(keys::PATTERN, |key, value| read_kinds(keys, key, value))?;
    let (key, kinds) =
        found.ok_or_else(|| keys.missing(keys::PATTERN, "it gives the kind of every layer"))?;
    layer_count(keys.origin, kinds.len())?;
    if let Some(expected) = keys.size(keys::NUM_LAYERS)?
        && expected != kinds.len()
    {
        let (origin, key) = (keys.origin.into(), key.into());
        return Err(ConfigError::LayerCount { origin, key, expected, found: kinds.len() });
    }
    let widths = Widths { keys, kinds: &kinds };
    let mamba = widths.mamba()?;
    let attention = widths.attention()?;
    let mlp = widths.read(keys::INTERMEDIATE_SIZE, LayerKind::Mlp)?;
    let layer = |(index, kind): (usize, &LayerKind)| match kind {
        LayerKind::Mamba2 => LayerConfig::Mamba2(mamba(index)),
        LayerKind::Attention => LayerConfig::Attention(attention(index)),
        LayerKind::Mlp => LayerConfig::Mlp(MlpConfig { intermediate_size: mlp.at(index) }),
    };
    Ok(kinds.iter().enumerate().map(layer).collect())
}

fn read_kinds(keys: &Keys, key: &str, value: &Value) -> Result<Vec<LayerKind>> {
    match value {
        Value::String(pattern) => parse_pattern(pattern, keys.origin, key),
        Value::Array(words) => {
            let kind = |(index, word): (usize, &Value)| match word.as_str() {
                Some(word) => LayerKind::parse(word, keys.origin, key, index),
                None => Err(keys.wrong_type(key, "a list of strings", value)),
            };
            words.iter().enumerate().map(kind).collect()
        }
        _ => Err(keys.wrong_type(key, "a string of letters or a list of words", value)),
    }
}

/// Reads the keys of one kind where the pattern has that kind.
struct Widths<'a> {
    keys: &'a Keys<'a>,
    kinds: &'a [LayerKind],
}

impl Widths<'_> {
    /// A width of the layers of `kind`; 0 for all where the pattern has none of them.
    fn read(&self, spellings: Spellings, kind: LayerKind) -> Result<Width> {
        if !self.kinds.contains(&kind) {
            return Ok(Width::All(0));
        }
        let width = self.keys.width(spellings, self.kinds.len())?;
        let width = width.ok_or_else(|| self.keys.missing(spellings, needed_by(kind)))?;
        if let Width::PerLayer(entries) = &width {
            let foreign = |index: &usize| self.kinds[*index] != kind && entries[*index] != 0;
            if let Some(index) = (0..entries.len()).find(foreign) {
                return Err(ConfigError::ForeignEntry {
                    origin: self.keys.origin.into(),
                    key: spellings[0].into(),
                    index,
                    kind: self.kinds[index].word(),
                    found: entries[index],
                });
            }
        }
        Ok(width)
    }

    /// A size that all layers of `kind` share.
    fn shared(&self, spellings: Spellings, kind: LayerKind) -> Result<usize> {
        if !self.kinds.contains(&kind) {
            return Ok(0);
        }
        let size = self.keys.size(spellings)?;
        size.ok_or_else(|| self.keys.missing(spellings, needed_by(kind)))
    }

    fn mamba(&self) -> Result<impl Fn(usize) -> Mamba2Config> {
        let kind = LayerKind::Mamba2;
        let num_heads = self.read(keys::MAMBA_HEADS, kind)?;
        let head_dim = self.read(keys::MAMBA_HEAD_DIM, kind)?;
        let n_groups = self.shared(keys::GROUPS, kind)?;
        let state_size = self.shared(keys::STATE_SIZE, kind)?;
        let conv_kernel = self.keys.size(keys::CONV_KERNEL)?.unwrap_or(4);
        let use_conv_bias = self.keys.boolean(keys::CONV_BIAS)?.unwrap_or(true);
        Ok(move |index| Mamba2Config {
            num_heads: num_heads.at(index),
            head_dim: head_dim.at(index),
            n_groups,
            state_size,
            conv_kernel,
            use_conv_bias,
        })
    }

    fn attention(&self) -> Result<impl Fn(usize) -> AttentionConfig> {
        let kind = LayerKind::Attention;
        let num_heads = self.read(keys::ATTENTION_HEADS, kind)?;
        let num_kv_heads = self.read(keys::KV_HEADS, kind)?;
        let head_dim = self.shared(keys::HEAD_DIM, kind)?;
        Ok(move |index| AttentionConfig {
            num_heads: num_heads.at(index),
            num_kv_heads: num_kv_heads.at(index),
            head_dim,
        })
    }
}

fn needed_by(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Mamba2 => "the pattern has mamba layers",
        LayerKind::Attention => "the pattern has attention layers",
        LayerKind::Mlp => "the pattern has mlp layers",
    }
}
