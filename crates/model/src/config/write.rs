//! [`Config`] → `config.json`, as `transformers` reads it.
//!
//! The short class spellings and `hybrid_override_pattern` are written. A width that is the same
//! in all layers of its kind is a number; otherwise it is Hybra's per-layer list (see `hf.rs`),
//! which other readers refuse. Reading the text back gives the same [`Config`].

use serde_json::{Map, Value, json};

use super::Config;
use crate::layer::{LayerConfig, Mamba2Config};

impl Config {
    /// The text of a `config.json`, with Python's `Infinity` where there is no limit.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("architectures", json!(["NemotronHForCausalLM"]));
        put("model_type", json!("nemotron_h"));
        put("torch_dtype", json!(self.dtype.name()));
        put("hybrid_override_pattern", json!(self.pattern()));
        put("num_hidden_layers", json!(self.layers.len()));
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put_widths(&mut map, self);
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("chunk_size", json!(self.chunk_size));
        put("layer_norm_epsilon", real(self.norm_eps));
        put("mlp_hidden_act", json!("relu2"));
        put("mamba_hidden_act", json!("silu"));
        for key in super::keys::BIASES {
            put(key, json!(false));
        }
        put("residual_in_fp32", json!(false));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("time_step_limit", json!([real(self.time_step_limit.0), real(self.time_step_limit.1)]));
        put("time_step_min", real(self.init.time_step_min));
        put("time_step_max", real(self.init.time_step_max));
        put("time_step_floor", real(self.init.time_step_floor));
        put("initializer_range", real(self.init.initializer_range));
        put("rescale_prenorm_residual", json!(self.init.rescale_prenorm_residual));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("bos_token_id", json!(self.bos_token_id));
        put("eos_token_id", eos(&self.eos_token_ids));
        put("pad_token_id", json!(self.pad_token_id));
        let text = serde_json::to_string_pretty(&map).expect("a JSON map of plain values");
        // Quoted by `real`; no other value of the map spells these words.
        text.replace("\"Infinity\"", "Infinity").replace("\"-Infinity\"", "-Infinity") + "\n"
    }
}

/// Writes the widths of the kinds that the model has.
fn put_widths(map: &mut Map<String, Value>, config: &Config) {
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let layers = &config.layers;
    if config.mlp_layers().next().is_some() {
        put("intermediate_size", per_layer(&widths(layers, INTERMEDIATE_SIZE)));
    }
    if let Some(a) = config.attention_layers().next() {
        put("num_attention_heads", per_layer(&widths(layers, ATTENTION_HEADS)));
        put("num_key_value_heads", per_layer(&widths(layers, KV_HEADS)));
        put("head_dim", json!(a.head_dim));
    }
    if let Some(m) = config.mamba_layers().next() {
        put("mamba_num_heads", per_layer(&widths(layers, MAMBA_HEADS)));
        put("mamba_head_dim", per_layer(&widths(layers, MAMBA_HEAD_DIM)));
        put("n_groups", json!(m.n_groups));
        put("ssm_state_size", json!(m.state_size));
        put("conv_kernel", json!(m.conv_kernel));
        put("use_conv_bias", json!(m.use_conv_bias));
    }
}

/// A width of a layer, if it is of the kind that has it.
pub(super) type PickWidth = fn(&LayerConfig) -> Option<usize>;
pub(super) const INTERMEDIATE_SIZE: PickWidth = |l| l.as_mlp().map(|m| m.intermediate_size);
pub(super) const ATTENTION_HEADS: PickWidth = |l| l.as_attention().map(|a| a.num_heads);
pub(super) const KV_HEADS: PickWidth = |l| l.as_attention().map(|a| a.num_kv_heads);
pub(super) const MAMBA_HEADS: PickWidth = |l| l.as_mamba2().map(|m| m.num_heads);
pub(super) const MAMBA_HEAD_DIM: PickWidth = |l| l.as_mamba2().map(|m| m.head_dim);
pub(super) const D_INNER: PickWidth = |l| l.as_mamba2().map(Mamba2Config::d_inner);

/// One entry per layer, 0 where the layer is of another kind.
pub(super) fn widths(layers: &[LayerConfig], pick: PickWidth) -> Vec<usize> {
    layers.iter().map(|layer| pick(layer).unwrap_or(0)).collect()
}

/// The one value of all non-zero entries, if there is one.
pub(super) fn uniform(widths: &[usize]) -> Option<usize> {
    let mut used = widths.iter().copied().filter(|&width| width != 0);
    let first = used.next()?;
    used.all(|width| width == first).then_some(first)
}

fn per_layer(widths: &[usize]) -> Value {
    uniform(widths).map_or_else(|| json!(widths), |width| json!(width))
}

/// One id is a number, several are a list, none is `null`.
fn eos(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// The shortest decimal that reads back as the same f32; infinities as quoted words.
fn real(x: f32) -> Value {
    if x.is_infinite() {
        return json!(if x > 0.0 { "Infinity" } else { "-Infinity" });
    }
    json!(x.to_string().parse::<f64>().expect("a number prints as a number"))
}
