//! What goes beside the tensors of a checkpoint: files of a directory, or keys of a GGUF file.
//!
//! Both forms say the same: configuration, tokenizer with chat template, ids that end generation,
//! sampling defaults. GGUF files take llama.cpp's keys; what those cannot express goes into keys
//! that begin with `hybra.`, which llama.cpp ignores.

use crate::source::{HF_CONFIG_JSON, HF_JSON};
use hybra_chat::GenerationDefaults;
use hybra_checkpoint::GgufValue;
use hybra_kernels::DType;
use hybra_model::config::{Config, TorchDtype};
use hybra_tokenizer::GgufVocab;
use serde_json::{Map, Value, json};

/// A tokenizer on its way into a GGUF file.
pub(crate) enum Vocabulary {
    /// The model has none.
    Absent,
    /// In llama.cpp's keys.
    Gguf(GgufVocab),
    /// As `tokenizer.json`, `tokenizer_config.json` and chat template, for Hybra alone.
    Files { json: String, config: Option<String>, template: Option<String> },
}

/// `config.json` and `generation_config.json` of a directory whose matrices are `dtype`.
pub(crate) fn config_files(
    config: &Config,
    eos_token_ids: &[u32],
    defaults: &GenerationDefaults,
    dtype: DType,
) -> Vec<(&'static str, String)> {
    let dtype = torch_dtype(dtype);
    let config = Config { dtype, ..config.clone() };
    let mut generation = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        generation.extend(value.map(|value| (key.to_owned(), value)));
    };
    put("bos_token_id", config.bos_token_id.map(|id| json!(id)));
    put("eos_token_id", (!eos_token_ids.is_empty()).then(|| json!(eos_token_ids)));
    put("pad_token_id", config.pad_token_id.map(|id| json!(id)));
    put("do_sample", defaults.do_sample.map(|on| json!(on)));
    put("temperature", defaults.temperature.map(real));
    put("top_k", defaults.top_k.map(|k| json!(k)));
    put("top_p", defaults.top_p.map(real));
    let generation = format!("{:#}\n", Value::Object(generation));
    vec![("config.json", config.to_json()), ("generation_config.json", generation)]
}

/// The shortest decimal of an f32, as JSON.
fn real(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().expect("a number prints as a number"))
}

/// The type that `config.json` names for matrices of `dtype`.
fn torch_dtype(dtype: DType) -> TorchDtype {
    match dtype {
        DType::F32 => TorchDtype::Float32,
        DType::F16 => TorchDtype::Float16,
        _ => TorchDtype::Bfloat16,
    }
}

/// The keys of a GGUF file called `name` whose matrices are `dtype`.
pub(crate) fn gguf_metadata(
    name: &str,
    config: &Config,
    eos_token_ids: &[u32],
    defaults: &GenerationDefaults,
    dtype: DType,
    vocabulary: Vocabulary,
) -> Vec<(&'static str, GgufValue)> {
    let config = Config { eos_token_ids: eos_token_ids.to_vec(), ..config.clone() };
    let mut keys = config.to_gguf();
    keys.push(("general.name", GgufValue::Str(name.to_owned())));
    keys.push(("general.file_type", GgufValue::U32(file_type(dtype))));
    // The version of ggml's block formats.
    keys.push(("general.quantization_version", GgufValue::U32(2)));
    let top_k = defaults.top_k.and_then(|k| u32::try_from(k).ok());
    keys.extend(top_k.map(|k| ("general.sampling.top_k", GgufValue::U32(k))));
    keys.extend(defaults.top_p.map(|p| ("general.sampling.top_p", GgufValue::F32(p))));
    keys.extend(defaults.temperature.map(|t| ("general.sampling.temp", GgufValue::F32(t))));
    keys.extend(defaults.do_sample.map(|on| ("hybra.do_sample", GgufValue::Bool(on))));
    vocabulary_keys(&mut keys, vocabulary);
    keys
}

fn vocabulary_keys(keys: &mut Vec<(&'static str, GgufValue)>, vocabulary: Vocabulary) {
    use GgufValue::{Bool, I32s, Str, Strs};
    let template = match vocabulary {
        Vocabulary::Absent => {
            keys.push(("tokenizer.ggml.model", Str("none".into())));
            None
        }
        Vocabulary::Files { json, config, template } => {
            keys.push(("tokenizer.ggml.model", Str("none".into())));
            keys.push((HF_JSON, Str(json)));
            keys.extend(config.map(|text| (HF_CONFIG_JSON, Str(text))));
            template
        }
        Vocabulary::Gguf(vocab) => {
            keys.push(("tokenizer.ggml.model", Str(vocab.model)));
            keys.push(("tokenizer.ggml.pre", Str(vocab.pre)));
            keys.push(("tokenizer.ggml.tokens", Strs(vocab.tokens)));
            keys.push(("tokenizer.ggml.token_type", I32s(vocab.token_types)));
            keys.push(("tokenizer.ggml.merges", Strs(vocab.merges)));
            keys.extend(vocab.add_bos.map(|on| ("tokenizer.ggml.add_bos_token", Bool(on))));
            vocab.chat_template
        }
    };
    keys.extend(template.map(|text| ("tokenizer.chat_template", Str(text))));
}

/// llama.cpp's number for a file whose matrices are mostly of one type (`llama_ftype`).
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q4K => 14,
        DType::Q5K => 16,
        DType::Q6K => 18,
        DType::Iq4Nl => 25,
        DType::Bf16 => 32,
    }
}
