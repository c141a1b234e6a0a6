//! Checks of `tokenizer.json` before the tokenizer library sees it.
//!
//! The file is untrusted. Only parts whose behaviour is needed and was read for panics are let
//! through; everything else is an error that names the part. After [`check`] every id is below
//! the number of tokens plus [`MAX_ID_GAP`], so tables by id cost what the file costs.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Error;
use crate::token_bytes::byte_to_char;

/// Ids may exceed the number of tokens by this much (vocabularies are padded for the hardware).
const MAX_ID_GAP: u64 = 65_536;

/// How token strings of the vocabulary become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenForm {
    /// GPT-2's byte alphabet.
    ByteLevel,
    /// The token string itself.
    Plain,
}

/// Checks a parsed `tokenizer.json` and tells how its tokens become bytes.
pub(crate) fn check(json: &Value) -> Result<TokenForm, Error> {
    check_kinds(&json["normalizer"], "normalizer", NORMALIZERS)?;
    check_kinds(&json["pre_tokenizer"], "pre_tokenizer", PRE_TOKENIZERS)?;
    check_kinds(&json["post_processor"], "post_processor", POST_PROCESSORS)?;
    check_model(&json["model"])?;
    check_ids(json)?;
    let form = match json["decoder"]["type"].as_str() {
        Some("ByteLevel") => TokenForm::ByteLevel,
        Some("Fuse") => TokenForm::Plain,
        other => {
            return Err(Error::Unsupported {
                part: "decoder",
                found: other.unwrap_or("absent").to_owned(),
                supported: "ByteLevel, Fuse",
            });
        }
    };
    if form == TokenForm::ByteLevel {
        check_byte_alphabet(&json["model"])?;
    }
    Ok(form)
}

/// Sets what must not depend on the file. Truncation and padding would change prompts (and a
/// fixed padding length is an allocation). Added tokens are matched on the text as written, never
/// on normalised text: the guarantee about control strings is about the text.
pub(crate) fn prepare(json: &mut Value) {
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    if json["normalizer"].is_null() {
        return;
    }
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        token["normalized"] = Value::Bool(false);
    }
}

struct Kinds {
    names: &'static [&'static str],
    /// Field of a `Sequence` that holds its members.
    members: &'static str,
    supported: &'static str,
}

const NORMALIZERS: Kinds = Kinds {
    names: &["NFC", "NFD", "NFKC", "NFKD"],
    members: "normalizers",
    supported: "null, NFC, NFD, NFKC, NFKD, Sequence",
};
const PRE_TOKENIZERS: Kinds = Kinds {
    names: &["Split", "ByteLevel", "Digits"],
    members: "pretokenizers",
    supported: "null, Split, ByteLevel (without add_prefix_space), Digits, Sequence",
};
const POST_PROCESSORS: Kinds = Kinds {
    names: &["ByteLevel", "TemplateProcessing"],
    members: "processors",
    supported: "null, ByteLevel, TemplateProcessing, Sequence",
};

fn check_kinds(part: &Value, name: &'static str, kinds: Kinds) -> Result<(), Error> {
    let mut open = vec![part];
    while let Some(part) = open.pop() {
        let kind = part["type"].as_str().unwrap_or_default();
        if kind == "Sequence" {
            open.extend(part[kinds.members].as_array().into_iter().flatten());
            continue;
        }
        // A prefix space would be added to every separately encoded segment of a prompt.
        let prefix_space = name == "pre_tokenizer" && part["add_prefix_space"] == Value::Bool(true);
        if !part.is_null() && (!kinds.names.contains(&kind) || prefix_space) {
            let found =
                if prefix_space { format!("{kind} with add_prefix_space") } else { describe(part) };
            return Err(Error::Unsupported { part: name, found, supported: kinds.supported });
        }
    }
    Ok(())
}

fn describe(part: &Value) -> String {
    match part["type"].as_str() {
        Some(kind) => kind.to_owned(),
        None => part.to_string().chars().take(60).collect(),
    }
}

fn check_model(model: &Value) -> Result<(), Error> {
    if !matches!(model["type"].as_str(), Some("BPE" | "WordLevel")) {
        let supported = "BPE, WordLevel";
        return Err(Error::Unsupported { part: "model", found: describe(model), supported });
    }
    // Dropout makes encoding random; the affixes and byte fallback belong to other families.
    for part in ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"] {
        let off = match &model[part] {
            Value::Null | Value::Bool(false) => true,
            Value::String(s) => s.is_empty(),
            Value::Number(n) => n.as_f64() == Some(0.0),
            _ => false,
        };
        if !off {
            let found = format!("{} (in model.{part})", model[part]);
            return Err(Error::Unsupported { part: "model", found, supported: "off" });
        }
    }
    Ok(())
}

fn check_ids(json: &Value) -> Result<(), Error> {
    let vocab = json["model"]["vocab"].as_object().ok_or_else(|| Error::Unsupported {
        part: "model.vocab",
        found: describe(&json["model"]["vocab"]),
        supported: "an object from token to id",
    })?;
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let names: BTreeSet<&str> = added.iter().filter_map(|t| t["content"].as_str()).collect();
    let count = vocab.len() + names.len();
    let added = added.iter().filter_map(|t| Some((t["content"].as_str()?, t["id"].as_u64()?)));
    let known = vocab.iter().map(|(token, id)| (token.as_str(), id.as_u64().unwrap_or(u64::MAX)));
    for (token, id) in known.chain(added) {
        if id >= count as u64 + MAX_ID_GAP {
            return Err(Error::SparseIds { token: token.to_owned(), id, count });
        }
    }
    Ok(())
}

/// The library drops a byte that has no token; text would be lost without a word.
fn check_byte_alphabet(model: &Value) -> Result<(), Error> {
    for byte in 0..=255u8 {
        let token = byte_to_char(byte);
        if model["vocab"].get(token.to_string()).is_none() {
            return Err(Error::MissingByte { byte, token });
        }
    }
    Ok(())
}
