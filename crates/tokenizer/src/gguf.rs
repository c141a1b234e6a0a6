//! Tokenizers as GGUF metadata, read and written: byte-level BPE (`tokenizer.ggml.model` "gpt2").
//!
//! GGUF stores no regular expressions; `tokenizer.ggml.pre` names one of llama.cpp's
//! pre-tokenizers ([`PRE_TOKENIZERS`] has those of this family and their relatives, with the
//! expressions of llama.cpp's `llama-vocab.cpp`). A tokenizer is only written when the one read
//! back encodes every vocabulary entry as the original does; otherwise it is an error.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::hf::TokenForm;
use crate::tokenizer::Settings;
use crate::{Error, SpecialIds, Tokenizer};

/// `tokenizer.ggml.token_type` of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Part of the BPE vocabulary.
    Normal = 1,
    /// The unknown token.
    Unknown = 2,
    /// A special token.
    Control = 3,
    /// An added token that is text.
    UserDefined = 4,
    /// Padding of the vocabulary.
    Unused = 5,
    /// A byte token of other tokenizer models.
    Byte = 6,
}

impl TokenType {
    fn from_raw(raw: i32) -> Option<Self> {
        use TokenType::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        [Normal, Unknown, Control, UserDefined, Unused, Byte]
            .into_iter()
            .find(|kind| *kind as i32 == raw)
    }
}

/// The `tokenizer.*` metadata of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`.
    pub model: String,
    /// `tokenizer.ggml.pre`.
    pub pre: String,
    /// `tokenizer.ggml.tokens`: byte-level spelling, added tokens as text.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, as many as tokens ([`TokenType`] as `i32`).
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two tokens with a space between.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`, `eot_token_id`, `eom_token_id` of `tokenizer.ggml`, those that are there.
    pub eos_ids: Vec<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; absent means the pre-tokenizer's default.
    pub add_bos: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

struct PreTokenizer {
    names: &'static [&'static str],
    /// Applied one after the other; each splits the pieces of the one before.
    patterns: &'static [&'static str],
    /// Whole pre-tokens that are vocabulary entries are taken without merging.
    ignore_merges: bool,
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer {
        names: &["tekken"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer { names: &["gpt-2"], patterns: &[GPT2], ignore_merges: false, add_bos: false },
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
];

/// Control tokens that end a generation whatever the metadata names (llama.cpp does the same).
const END_TOKENS: [&str; 4] = ["</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>"];

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// [`Error::GgufModel`], [`Error::GgufPre`], [`Error::GgufField`], and those of
    /// [`Tokenizer::from_files`].
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, Error> {
        if vocab.model != "gpt2" {
            return Err(Error::GgufModel(vocab.model.clone()));
        }
        let find = |p: &&PreTokenizer| p.names.contains(&vocab.pre.as_str());
        let pre = PRE_TOKENIZERS.iter().find(find).ok_or_else(|| Error::GgufPre {
            found: vocab.pre.clone(),
            known: PRE_TOKENIZERS
                .iter()
                .flat_map(|p| p.names)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        let added = added_tokens(vocab)?;
        let ids = special_ids(vocab, &added);
        let settings = settings(vocab, pre);
        let json = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer_json(pre),
            "post_processor": null,
            "decoder": byte_level_json(true),
            "model": {
                "type": "BPE",
                "ignore_merges": pre.ignore_merges,
                "vocab": vocab_json(vocab)?,
                "merges": merges_json(vocab)?,
            },
        });
        Self::build(json, settings, &ids)
    }

    /// GGUF metadata of this tokenizer, for a model with `vocab_size` rows; ids without a token
    /// become `[PAD<id>]` entries.
    ///
    /// # Errors
    /// [`Error::NotGguf`] when llama.cpp has no equal tokenizer: not byte-level BPE, a
    /// pre-tokenizer without a name, a normaliser, or a different result for some entry.
    /// [`Error::GgufField`] when `vocab_size` is below the number of ids.
    pub fn to_gguf_vocab(&self, vocab_size: usize) -> Result<GgufVocab, Error> {
        let json = self.to_value();
        let pre = named_pre_tokenizer(self.form, &json)?;
        if vocab_size < self.vocab_size() {
            let found = self.vocab_size();
            let detail = format!("the model has {vocab_size} rows, the tokenizer {found} ids");
            return Err(Error::GgufField { field: "tokenizer.ggml.tokens", detail });
        }
        let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut token_types = vec![TokenType::Unused as i32; vocab_size];
        let mut set = |id: &Json, token: &str, kind: TokenType| {
            let id = id.as_u64().expect("ids are integers") as usize;
            tokens[id] = token.to_owned();
            token_types[id] = kind as i32;
        };
        for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            set(id, token, TokenType::Normal);
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let special = token["special"] == true;
            let kind = if special { TokenType::Control } else { TokenType::UserDefined };
            set(&token["id"], token["content"].as_str().unwrap_or_default(), kind);
        }
        let merges = json["model"]["merges"].as_array().into_iter().flatten();
        let vocab = GgufVocab {
            model: "gpt2".to_owned(),
            pre: pre.names[0].to_owned(),
            tokens,
            token_types,
            merges: merges.map(merge_text).collect(),
            bos_id: self.bos(),
            eos_ids: self.eos_ids().to_vec(),
            pad_id: self.pad(),
            add_bos: Some(self.adds_bos()),
            chat_template: self.chat_template().ok().map(|t| t.source().to_owned()),
        };
        self.check_equal(&Self::from_gguf(&vocab)?)?;
        Ok(vocab)
    }

    /// Every vocabulary entry must encode alike in `other`.
    fn check_equal(&self, other: &Self) -> Result<(), Error> {
        for bytes in self.all_token_bytes().iter() {
            let Ok(text) = std::str::from_utf8(bytes) else { continue };
            let (here, there) = (self.encode(text, true)?, other.encode(text, true)?);
            if here != there {
                let detail = format!("{text:?} is {here:?} here, but would be {there:?} there");
                return Err(Error::NotGguf(detail));
            }
        }
        Ok(())
    }
}

fn special_ids(vocab: &GgufVocab, added: &[Json]) -> SpecialIds {
    let is_end =
        |t: &&Json| t["special"] == true && END_TOKENS.iter().any(|end| t["content"] == *end);
    let ends = added.iter().filter(is_end);
    let ends = ends.filter_map(|t| u32::try_from(t["id"].as_u64()?).ok());
    let eos = vocab.eos_ids.iter().copied().chain(ends).collect();
    SpecialIds { bos: vocab.bos_id, eos, pad: vocab.pad_id }
}

fn settings(vocab: &GgufVocab, pre: &PreTokenizer) -> Settings {
    let eos = vocab.eos_ids.first().copied();
    let named = [("bos_token", vocab.bos_id), ("eos_token", eos), ("pad_token", vocab.pad_id)];
    let text = |id: u32| vocab.tokens.get(id as usize).cloned();
    Settings {
        token_names: named.into_iter().filter_map(|(name, id)| Some((name, text(id?)?))).collect(),
        add_bos: Some(vocab.add_bos.unwrap_or(pre.add_bos)),
        chat_template: vocab.chat_template.clone(),
    }
}

fn added_tokens(vocab: &GgufVocab) -> Result<Vec<Json>, Error> {
    let field = "tokenizer.ggml.token_type";
    if vocab.token_types.len() != vocab.tokens.len() {
        let (expected, found) = (vocab.tokens.len(), vocab.token_types.len());
        let detail = format!("expected {expected} entries (one per token), found {found}");
        return Err(Error::GgufField { field, detail });
    }
    let mut added = Vec::new();
    for (id, (token, &raw)) in vocab.tokens.iter().zip(&vocab.token_types).enumerate() {
        let special = match TokenType::from_raw(raw) {
            Some(TokenType::Normal | TokenType::Unused) => continue,
            Some(TokenType::Control | TokenType::Unknown) => true,
            Some(TokenType::UserDefined) => false,
            Some(TokenType::Byte) | None => {
                let detail = format!("token {id} has type {raw}, expected 1 to 5");
                return Err(Error::GgufField { field, detail });
            }
        };
        added.push(json!({
            "id": id, "content": token, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    Ok(added)
}

fn vocab_json(vocab: &GgufVocab) -> Result<Json, Error> {
    let mut map = Map::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if let Some(first) = map.insert(token.clone(), Json::from(id)) {
            let detail = format!("token {token:?} occurs twice, as {first} and as {id}");
            return Err(Error::GgufField { field: "tokenizer.ggml.tokens", detail });
        }
    }
    Ok(Json::Object(map))
}

fn merges_json(vocab: &GgufVocab) -> Result<Json, Error> {
    let known: HashSet<&str> = vocab.tokens.iter().map(String::as_str).collect();
    let merges = vocab.merges.iter().enumerate().map(|(rank, merge)| {
        let pair = merge.split_once(' ').filter(|(a, b)| known.contains(a) && known.contains(b));
        let (a, b) = pair.ok_or_else(|| Error::GgufField {
            field: "tokenizer.ggml.merges",
            detail: format!("entry {rank} is {merge:?}, expected two tokens and a space between"),
        })?;
        Ok(json!([a, b]))
    });
    Ok(Json::Array(merges.collect::<Result<_, Error>>()?))
}

fn merge_text(merge: &Json) -> String {
    match (merge[0].as_str(), merge[1].as_str()) {
        (Some(a), Some(b)) => format!("{a} {b}"),
        _ => merge.as_str().unwrap_or_default().to_owned(),
    }
}

fn byte_level_json(use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer_json(pre: &PreTokenizer) -> Json {
    let split = |pattern: &&str| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false,
        })
    };
    let parts = pre.patterns.iter().map(split).chain([byte_level_json(false)]);
    json!({"type": "Sequence", "pretokenizers": parts.collect::<Vec<_>>()})
}

/// The llama.cpp pre-tokenizer that splits as `json["pre_tokenizer"]` does.
fn named_pre_tokenizer(form: TokenForm, json: &Json) -> Result<&'static PreTokenizer, Error> {
    let refuse = |detail: String| Err(Error::NotGguf(detail));
    let model = json["model"]["type"].as_str().unwrap_or_default();
    if form != TokenForm::ByteLevel || model != "BPE" {
        return refuse(format!("it is {model}, and GGUF knows only byte-level BPE here"));
    }
    if !json["normalizer"].is_null() {
        return refuse("it normalises text, and GGUF has no field for that".to_owned());
    }
    let part = &json["pre_tokenizer"];
    let parts = match part["pretokenizers"].as_array() {
        Some(parts) => parts.clone(),
        None => vec![part.clone()],
    };
    let mut patterns = Vec::new();
    for part in &parts {
        let isolated = part["behavior"] == "Isolated" && part["invert"] == false;
        match (part["type"].as_str(), part["pattern"]["Regex"].as_str()) {
            (Some("Split"), Some(pattern)) if isolated => patterns.push(pattern.to_owned()),
            (Some("ByteLevel"), _) if part["use_regex"] == false => {}
            (Some("ByteLevel"), _) => patterns.push(GPT2.to_owned()),
            _ => return refuse(format!("llama.cpp has no pre-tokenizer like {part}")),
        }
    }
    let found = PRE_TOKENIZERS.iter().find(|p| p.patterns.iter().eq(patterns.iter()));
    match found {
        Some(pre) => Ok(pre),
        None => refuse(format!("llama.cpp has no pre-tokenizer with the patterns {patterns:?}")),
    }
}
