//! [`Tokenizer`]: text ⇄ token ids for one model, with its special ids and its chat template.
//!
//! Encoding is the reference library's; decoding goes through [`TokenBytes`]: the bytes of all ids
//! are joined and invalid UTF-8 becomes U+FFFD. BOS rule: rendered chat prompts are encoded without
//! special tokens (a template prints what it wants); plain text gets BOS when the tokenizer asks
//! for it, and never a second one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::control::{ControlStrings, Rendered};
use crate::hf::{self, TokenForm};
use crate::token_bytes::char_to_byte_map;
use crate::{ChatRequest, ChatTemplate, Error, Message, TemplateError, TokenBytes};

/// Ids that live outside the tokenizer's own files (`generation_config.json`, `config.json`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// All ids that end a generation.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

/// What `tokenizer_config.json` (or GGUF metadata) says beside the vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `bos_token`, `eos_token`, … with their texts.
    pub(crate) token_names: BTreeMap<&'static str, String>,
    pub(crate) add_bos: Option<bool>,
    pub(crate) chat_template: Option<String>,
}

/// A model's tokenizer. Immutable; share it by `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bytes: Arc<TokenBytes>,
    special: Arc<[bool]>,
    controls: Arc<ControlStrings>,
    template: Result<ChatTemplate, TemplateError>,
    ids: SpecialIds,
    /// Ids before and after plain text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    pub(crate) form: TokenForm,
}

impl Tokenizer {
    /// Builds a tokenizer from the texts of a model directory's files.
    ///
    /// `chat_template_jinja` goes before the template inside `tokenizer_config_json`. End ids are
    /// those of `ids`, then `eos_token` of the configuration, then the special token that the
    /// template prints after an assistant turn.
    ///
    /// # Errors
    /// Every defect of `tokenizer.json` and `tokenizer_config.json` (see [`Error`]). A broken chat
    /// template is not one: plain text still works, and [`Self::chat_template`] tells.
    pub fn from_files(
        tokenizer_json: &str,
        tokenizer_config_json: Option<&str>,
        chat_template_jinja: Option<&str>,
        ids: &SpecialIds,
    ) -> Result<Self, Error> {
        let file = "tokenizer.json";
        let json =
            serde_json::from_str(tokenizer_json).map_err(|source| Error::Json { file, source })?;
        let mut settings = tokenizer_config_json.map(parse_settings).transpose()?;
        let settings = settings.get_or_insert_default();
        if let Some(source) = chat_template_jinja {
            settings.chat_template = Some(source.to_owned());
        }
        Self::build(json, std::mem::take(settings), ids)
    }

    pub(crate) fn build(
        mut json: Json,
        settings: Settings,
        ids: &SpecialIds,
    ) -> Result<Self, Error> {
        let form = hf::check(&json)?;
        hf::prepare(&mut json);
        let inner: tokenizers::Tokenizer = json
            .to_string()
            .parse()
            .map_err(|e: tokenizers::Error| Error::Tokenizer(e.to_string()))?;
        drop(json);
        let (bytes, special) = token_tables(&inner, form)?;
        let added = inner.get_added_tokens_decoder();
        let controls = ControlStrings::new(added.values().map(|t| (t.content.as_str(), t.special)));
        let controls = Arc::new(controls);
        let template = match &settings.chat_template {
            None => Err(TemplateError::Missing),
            Some(source) => {
                ChatTemplate::new(source, controls.clone(), settings.token_names.clone())
            }
        };
        let mut tokenizer = Self {
            inner,
            bytes: Arc::new(bytes),
            special: special.into(),
            controls,
            template,
            ids: ids.clone(),
            prefix: Vec::new(),
            suffix: Vec::new(),
            form,
        };
        tokenizer.resolve_ids(&settings)?;
        tokenizer.resolve_affixes(settings.add_bos)?;
        Ok(tokenizer)
    }

    /// Token ids of `text`. Control strings in it become control tokens; use
    /// [`Self::encode_rendered`] for prompts that hold foreign text.
    ///
    /// `add_special` adds what the tokenizer puts around plain text (BOS), unless it is there.
    ///
    /// # Errors
    /// [`Error::Encode`] when the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|e| Error::Encode(e.to_string()))?;
        let ids = encoding.get_ids();
        if !add_special {
            return Ok(ids.to_vec());
        }
        let prefix = if ids.starts_with(&self.prefix) { &[][..] } else { &self.prefix[..] };
        Ok([prefix, ids, &self.suffix].concat())
    }

    /// Token ids of `segments`, encoded one by one without special tokens: no token spans two.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_segments<'a>(
        &self,
        segments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        for segment in segments {
            ids.extend(self.encode(segment, false)?);
        }
        Ok(ids)
    }

    /// Token ids of a prompt: control strings of the template become control tokens, those in
    /// foreign text stay text. Equals `encode(text, false)` when foreign text holds none.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, Error> {
        self.encode_segments(rendered.segments())
    }

    /// Text of `ids`; invalid UTF-8 becomes U+FFFD. `skip_special` leaves special tokens out.
    /// Ids without a token give nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = kept.flat_map(|&id| self.token_bytes(id)).copied().collect();
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// Bytes that `id` decodes to; part of a character is possible, none for padding ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Bytes of all ids, shared.
    pub fn all_token_bytes(&self) -> Arc<TokenBytes> {
        self.bytes.clone()
    }

    /// Number of ids: the highest one plus one. A model may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Id of a token as the vocabulary spells it, added tokens included.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Begin-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// Ids that end a generation, without repetition.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ids.eos
    }

    /// Padding id.
    pub fn pad(&self) -> Option<u32> {
        self.ids.pad
    }

    /// Does plain text get a BOS?
    pub fn adds_bos(&self) -> bool {
        self.ids.bos.is_some_and(|bos| self.prefix.contains(&bos))
    }

    /// Ids of all special tokens, ascending.
    pub fn special_ids(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(self.special.iter()).filter(|(_, special)| **special).map(|(id, _)| id)
    }

    /// Is `id` a special token (control, not text)?
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize) == Some(&true)
    }

    /// Is `text` one added token, matched before any splitting?
    pub(crate) fn added_token_id(&self, text: &str) -> Option<u32> {
        self.inner.get_added_vocabulary().get_vocab().get(text).copied()
    }

    /// Control strings of this model.
    pub fn controls(&self) -> &Arc<ControlStrings> {
        &self.controls
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// [`TemplateError::Missing`], or why it does not load.
    pub fn chat_template(&self) -> Result<&ChatTemplate, TemplateError> {
        self.template.as_ref().map_err(Clone::clone)
    }

    /// `tokenizer.json` of this tokenizer.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.inner).expect("a tokenizer of supported parts is JSON")
    }

    /// `tokenizer_config.json` of this tokenizer, chat template included.
    pub fn to_config_json(&self) -> String {
        let text = |id: Option<u32>| id.map(|id| self.decode(&[id], false));
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": text(self.bos()),
            "eos_token": text(self.eos_ids().first().copied()),
            "pad_token": text(self.pad()),
            "add_bos_token": self.adds_bos(),
            "chat_template": self.template.as_ref().ok().map(ChatTemplate::source),
        });
        format!("{config:#}\n")
    }

    pub(crate) fn to_value(&self) -> Json {
        serde_json::to_value(&self.inner).expect("a tokenizer of supported parts is JSON")
    }

    pub(crate) fn tables(&self) -> (Arc<TokenBytes>, Arc<[bool]>) {
        (self.bytes.clone(), self.special.clone())
    }

    fn resolve_ids(&mut self, settings: &Settings) -> Result<(), Error> {
        let named = |field: &'static str| match settings.token_names.get(field) {
            None => Ok(None),
            Some(token) => match self.inner.token_to_id(token) {
                None => Err(Error::UnknownSpecial { field, token: token.clone() }),
                id => Ok(id),
            },
        };
        let mut ids = self.ids.clone();
        ids.bos = ids.bos.or(named("bos_token")?);
        ids.pad = ids.pad.or(named("pad_token")?);
        ids.eos.extend(named("eos_token")?);
        ids.eos.extend(self.turn_end());
        let mut seen = HashSet::new();
        ids.eos.retain(|&id| seen.insert(id));
        let all = ids.eos.iter().map(|&id| ("eos_token_id", id));
        let all = all.chain(ids.bos.map(|id| ("bos_token_id", id)));
        for (field, id) in all.chain(ids.pad.map(|id| ("pad_token_id", id))) {
            let vocab_size = self.vocab_size();
            if id as usize >= vocab_size {
                return Err(Error::IdOutOfRange { field, id, vocab_size });
            }
        }
        self.ids = ids;
        Ok(())
    }

    /// The special token that the template prints right after an assistant turn.
    fn turn_end(&self) -> Option<u32> {
        let answer = "the answer of a probe";
        let request = ChatRequest {
            messages: vec![Message::new("user", "a probe"), Message::new("assistant", answer)],
            ..ChatRequest::default()
        };
        let rendered = self.template.as_ref().ok()?.render(&request).ok()?;
        let (_, tail) = rendered.text().rsplit_once(answer)?;
        let tail = tail.trim_start();
        match self.controls.match_at(tail, 0)? {
            (len, true) => self.added_token_id(&tail[..len]),
            (_, false) => None,
        }
    }

    /// Reads what the post-processor adds from a probe; `add_bos` of the configuration rules over
    /// it, since several tokenizer classes build their post-processor from that field.
    fn resolve_affixes(&mut self, add_bos: Option<bool>) -> Result<(), Error> {
        let encode = |special| {
            let encoding = self.inner.encode_fast("a", special);
            encoding.map(|e| e.get_ids().to_vec()).map_err(|e| Error::Encode(e.to_string()))
        };
        let (plain, framed) = (encode(false)?, encode(true)?);
        let at = framed.windows(plain.len().max(1)).position(|w| w == plain);
        let (prefix, suffix) = match at {
            Some(at) => (framed[..at].to_vec(), framed[at + plain.len()..].to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        (self.prefix, self.suffix) = (prefix, suffix);
        match (add_bos, self.ids.bos) {
            (Some(true), Some(bos)) if !self.prefix.contains(&bos) => self.prefix.insert(0, bos),
            (Some(false), Some(bos)) => self.prefix.retain(|&id| id != bos),
            _ => {}
        }
        Ok(())
    }
}

/// Bytes and special flag of every id.
fn token_tables(
    inner: &tokenizers::Tokenizer,
    form: TokenForm,
) -> Result<(TokenBytes, Vec<bool>), Error> {
    let vocab = inner.get_vocab(true);
    let added = inner.get_added_tokens_decoder();
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); size];
    let mut special = vec![false; size];
    let mut names: Vec<Option<&str>> = vec![None; size];
    let from_char = char_to_byte_map();
    for (token, &id) in &vocab {
        if let Some(first) = names[id as usize].replace(token) {
            let (first, second) = (first.to_owned(), token.clone());
            return Err(Error::DuplicateId { id, first, second });
        }
        let added = added.get(&id).filter(|added| added.content == *token);
        special[id as usize] = added.is_some_and(|added| added.special);
        let byte_level = (form == TokenForm::ByteLevel && added.is_none())
            .then(|| token.chars().map(|c| from_char.get(&c).copied()).collect())
            .flatten();
        pieces[id as usize] = byte_level.unwrap_or_else(|| token.as_bytes().to_vec());
    }
    Ok((TokenBytes::new(&pieces), special))
}

fn parse_settings(text: &str) -> Result<Settings, Error> {
    let file = "tokenizer_config.json";
    let json: Json = serde_json::from_str(text).map_err(|source| Error::Json { file, source })?;
    let mut settings = Settings { add_bos: json["add_bos_token"].as_bool(), ..Settings::default() };
    for field in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        let token = json[field].as_str().or_else(|| json[field]["content"].as_str());
        if let Some(token) = token {
            settings.token_names.insert(field, token.to_owned());
        }
    }
    let template = &json["chat_template"];
    let listed = || {
        let named = template.as_array()?.iter().find(|entry| entry["name"] == "default")?;
        named["template"].as_str()
    };
    settings.chat_template = template.as_str().or_else(listed).map(str::to_owned);
    Ok(settings)
}
