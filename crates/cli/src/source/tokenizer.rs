//! The tokenizer of a checkpoint, with the ids that end generation and the sampling defaults.
//!
//! Generation ends at the union of all ids that the checkpoint names: those of
//! `generation_config.json`, of the config, and of the tokenizer with its chat template. Copies of
//! one model disagree about them, and stopping on each is what its authors do.

use super::Source;
use anyhow::{Context, Result, bail};
use hybra_chat::GenerationDefaults;
use hybra_checkpoint::{Gguf, OneOrMany};
use hybra_model::config::Config;
use hybra_tokenizer::{GgufVocab, SpecialIds, Tokenizer};
use serde_json::Value;

/// GGUF's key for a whole `tokenizer.json`, for vocabularies that its own keys cannot express.
pub(crate) const HF_JSON: &str = "tokenizer.huggingface.json";
/// Hybra's key beside [`HF_JSON`]: the whole `tokenizer_config.json`.
pub(crate) const HF_CONFIG_JSON: &str = "hybra.tokenizer_config.json";

/// A tokenizer and what the checkpoint says about generating.
pub(crate) struct LoadedTokenizer {
    pub(crate) tokenizer: Tokenizer,
    /// Without repetition; may be empty.
    pub(crate) eos_token_ids: Vec<u32>,
    pub(crate) defaults: GenerationDefaults,
}

/// Whether the checkpoint carries a tokenizer at all.
pub(crate) fn has_tokenizer(source: &Source) -> Result<bool> {
    Ok(match source.checkpoint.gguf() {
        None => source.checkpoint.read_text("tokenizer.json")?.is_some(),
        Some(gguf) => gguf.keys().any(|key| key == "tokenizer.ggml.tokens" || key == HF_JSON),
    })
}

/// Builds the tokenizer of a checkpoint whose configuration is `config`.
pub(crate) fn load_tokenizer(source: &Source, config: &Config) -> Result<LoadedTokenizer> {
    let path = source.checkpoint.path().display().to_string();
    if !has_tokenizer(source)? {
        bail!("{path}: no tokenizer; text needs one (tokenizer.json, or the keys of a GGUF file)");
    }
    let (own_eos, defaults) = generation(source)?;
    let mut eos = own_eos;
    eos.extend(&config.eos_token_ids);
    let ids = SpecialIds { bos: config.bos_token_id, eos, pad: config.pad_token_id };
    let tokenizer = match source.checkpoint.gguf() {
        Some(gguf) => from_gguf(gguf, &ids),
        None => from_files(source, &ids),
    };
    let tokenizer = tokenizer.with_context(|| path.clone())?;
    if tokenizer.vocab_size() > config.vocab_size {
        bail!(
            "{path}: the tokenizer has {} ids, the model only {} rows",
            tokenizer.vocab_size(),
            config.vocab_size
        );
    }
    let eos_token_ids = tokenizer.eos_ids().to_vec();
    Ok(LoadedTokenizer { tokenizer, eos_token_ids, defaults })
}

fn from_files(source: &Source, ids: &SpecialIds) -> Result<Tokenizer> {
    let text = |name| source.checkpoint.read_text(name);
    let json = text("tokenizer.json")?.unwrap_or_default();
    let (config, template) = (text("tokenizer_config.json")?, text("chat_template.jinja")?);
    Ok(Tokenizer::from_files(&json, config.as_deref(), template.as_deref(), ids)?)
}

fn from_gguf(gguf: &Gguf, ids: &SpecialIds) -> Result<Tokenizer> {
    if let Some(json) = gguf.get_str(HF_JSON)? {
        let config = gguf.get_str(HF_CONFIG_JSON)?;
        let template = gguf.get_str("tokenizer.chat_template")?;
        return Ok(Tokenizer::from_files(json, config, template, ids)?);
    }
    let mut vocab = gguf_vocab(gguf)?;
    vocab.eos_ids.clone_from(&ids.eos);
    Ok(Tokenizer::from_gguf(&vocab)?)
}

/// The vocabulary that a GGUF file's own keys describe.
fn gguf_vocab(gguf: &Gguf) -> Result<GgufVocab> {
    let strings = |key| -> Result<Vec<String>> {
        let found = gguf.get_strs(key)?.unwrap_or_default();
        Ok(found.into_iter().map(str::to_owned).collect())
    };
    let text = |key| -> Result<Option<String>> { Ok(gguf.get_str(key)?.map(str::to_owned)) };
    let id = |name: &str| gguf.get_u32(&format!("tokenizer.ggml.{name}_token_id"));
    let eos = [id("eos")?, id("eot")?, id("eom")?];
    let types = match gguf.get_u32s("tokenizer.ggml.token_type")? {
        Some(OneOrMany::Many(types)) => types,
        _ => Vec::new(),
    };
    Ok(GgufVocab {
        model: text("tokenizer.ggml.model")?.unwrap_or_default(),
        pre: text("tokenizer.ggml.pre")?.unwrap_or_else(|| "default".to_owned()),
        tokens: strings("tokenizer.ggml.tokens")?,
        token_types: types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(-1)).collect(),
        merges: strings("tokenizer.ggml.merges")?,
        bos_id: id("bos")?,
        eos_ids: eos.into_iter().flatten().collect(),
        pad_id: id("padding")?,
        add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}

/// End ids and sampling defaults of `generation_config.json`, or of GGUF metadata.
fn generation(source: &Source) -> Result<(Vec<u32>, GenerationDefaults)> {
    if let Some(gguf) = source.checkpoint.gguf() {
        let defaults = GenerationDefaults {
            do_sample: gguf.get_bool("hybra.do_sample")?,
            temperature: gguf.get_f32("general.sampling.temp")?,
            top_k: gguf.get_u32("general.sampling.top_k")?.map(i64::from),
            top_p: gguf.get_f32("general.sampling.top_p")?,
        };
        return Ok((Vec::new(), defaults));
    }
    let Some(text) = source.checkpoint.read_text("generation_config.json")? else {
        return Ok((Vec::new(), GenerationDefaults::default()));
    };
    let path = source.checkpoint.path().join("generation_config.json");
    parse_generation_config(&text).with_context(|| path.display().to_string())
}

fn parse_generation_config(text: &str) -> Result<(Vec<u32>, GenerationDefaults)> {
    let json: Value = serde_json::from_str(text)?;
    let wrong = |key: &str, expected: &str| {
        anyhow::anyhow!("`{key}`: expected {expected}, found {}", json[key])
    };
    let float = |key: &str| match &json[key] {
        Value::Null => Ok(None),
        value => value.as_f64().map(|v| Some(v as f32)).ok_or_else(|| wrong(key, "a number")),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let eos = match &json["eos_token_id"] {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    let defaults = GenerationDefaults {
        do_sample: match &json["do_sample"] {
            Value::Null => None,
            value => Some(value.as_bool().ok_or_else(|| wrong("do_sample", "true or false"))?),
        },
        temperature: float("temperature")?,
        top_k: match &json["top_k"] {
            Value::Null => None,
            value => Some(value.as_i64().ok_or_else(|| wrong("top_k", "an integer"))?),
        },
        top_p: float("top_p")?,
    };
    Ok((eos.ok_or_else(|| wrong("eos_token_id", "an id or a list of ids"))?, defaults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_ids_may_be_a_number_or_a_list() {
        let eos = |text: &str| parse_generation_config(text).map(|(eos, _)| eos);
        assert!(eos("{}").unwrap().is_empty());
        assert_eq!(eos(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
        assert_eq!(eos(r#"{"eos_token_id": [2, 12]}"#).unwrap(), [2, 12]);
        assert!(eos(r#"{"eos_token_id": [2, -1]}"#).is_err());
        let text = r#"{"do_sample": true, "temperature": 0.6, "top_p": 1, "top_k": 40}"#;
        let (_, defaults) = parse_generation_config(text).unwrap();
        let want = GenerationDefaults {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_k: Some(40),
            top_p: Some(1.0),
        };
        assert_eq!(defaults, want);
        let error = parse_generation_config(r#"{"top_p": "x"}"#).unwrap_err();
        assert_eq!(error.to_string(), r#"`top_p`: expected a number, found "x""#);
    }
}
