//! A byte-level BPE tokenizer of the family, trained on the text of a data set.
//!
//! Ids: `<unk>`, `<s>`, `</s>`, `<SPECIAL_3>` … `<SPECIAL_12>`, the tool tags, the 256 bytes, then
//! merges in the order in which they were found. Digits, punctuation and operators are always one
//! token each, so `d=c*9` is five; letters merge, with a space in front. Think tags are ordinary
//! text, as in the family. The same text gives the same files, whatever its order and the threads.

use super::error::{DataError, Place};
use super::record::Record;
use hybra_tokenizer::{ChatRequest, ChatTemplate, ControlStrings, SpecialIds, Tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer,
};

const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");
/// Special tokens, from id 0.
const NUM_SPECIAL: usize = 13;
/// Added tokens that are text all the same, after the special ones.
const TOOL_TAGS: [&str; 6] = [
    "<AVAILABLE_TOOLS>",
    "</AVAILABLE_TOOLS>",
    "<TOOLCALL>",
    "</TOOLCALL>",
    "<TOOL_RESPONSE>",
    "</TOOL_RESPONSE>",
];
/// What merges may not cross: words with their space, single digits, single symbols, newlines,
/// spaces.
const PATTERN: &str = r" ?\p{L}[\p{L}\p{M}]*|\p{N}|[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Id of `</s>` and of `<SPECIAL_12>`, which end a generation.
const EOS: [u32; 2] = [2, 12];

/// The files of a trained tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpeFiles {
    /// Names and contents.
    pub files: [(&'static str, String); 4],
    /// Ids, at most as many as were asked for: text may hold fewer merges.
    pub num_tokens: usize,
}

impl BpeFiles {
    /// Writes the files into `directory`, which is made if it is not there. Each file appears
    /// whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> Result<(), DataError> {
        std::fs::create_dir_all(directory).map_err(DataError::io(directory))?;
        for (name, text) in &self.files {
            let path = directory.join(name);
            crate::atomic::write(&path, text.as_bytes()).map_err(DataError::io(&path))?;
        }
        Ok(())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Never for files of [`train_bpe`].
    pub fn tokenizer(&self) -> Result<Tokenizer, DataError> {
        let [(_, json), (_, config), (_, template), _] = &self.files;
        Tokenizer::from_files(json, Some(config), Some(template), &SpecialIds::default())
            .map_err(|error| DataError::Tokenizer(error.to_string()))
    }
}

/// Trains a tokenizer of `vocab_size` ids, with a chat template and defaults for generating.
///
/// # Errors
/// Faults of the records, and a vocabulary that does not hold control tokens and bytes.
pub fn train_bpe(
    records: impl Iterator<Item = Result<(Place, Record), DataError>> + Send,
    vocab_size: usize,
) -> Result<BpeFiles, DataError> {
    let smallest = NUM_SPECIAL + TOOL_TAGS.len() + 256;
    if vocab_size < smallest {
        return Err(DataError::Config {
            field: "vocab_size".to_owned(),
            expected: "at least 275: control tokens, tool tags and bytes",
            found: vocab_size.to_string(),
        });
    }
    let internal = |error: tokenizers::Error| DataError::Tokenizer(error.to_string());
    let (split, added) = (pre_tokenizer().map_err(internal)?, added_tokens());
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(added.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let texts = Texts::new(records)?;
    let mut failure = None;
    let texts = Until { texts, failure: &mut failure };
    trainer.feed(texts, |text| words(&split, text)).map_err(internal)?;
    if let Some(error) = failure {
        return Err(error);
    }
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(internal)?;
    files(&model, &split, &added)
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper, tokenizers::Error> {
    let json = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": PATTERN }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
    ]});
    Ok(serde_json::from_value(json)?)
}

fn added_tokens() -> Vec<AddedToken> {
    let special = |id: usize| match id {
        0 => "<unk>".to_owned(),
        1 => "<s>".to_owned(),
        2 => "</s>".to_owned(),
        _ => format!("<SPECIAL_{id}>"),
    };
    let special = (0..NUM_SPECIAL).map(|id| AddedToken::from(special(id), true));
    let tags = TOOL_TAGS.iter().map(|&tag| AddedToken::from(tag, false).normalized(false));
    special.chain(tags).collect()
}

/// The pieces that merges stay inside, in the byte alphabet.
fn words(split: &PreTokenizerWrapper, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut text = PreTokenizedString::from(text);
    split.pre_tokenize(&mut text)?;
    let pieces = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect())
}

/// The texts that a model reads and writes, without control tokens.
struct Texts<I> {
    records: I,
    template: ChatTemplate,
    added: Vec<String>,
}

impl<I: Iterator<Item = Result<(Place, Record), DataError>>> Texts<I> {
    fn new(records: I) -> Result<Self, DataError> {
        let added = added_tokens();
        let controls = ControlStrings::new(added.iter().map(|t| (t.content.as_str(), t.special)));
        let template = ChatTemplate::new(CHAT_TEMPLATE, Arc::new(controls), BTreeMap::new())
            .map_err(|error| DataError::Tokenizer(error.to_string()))?;
        Ok(Self { records, template, added: added.into_iter().map(|t| t.content).collect() })
    }

    fn next(&mut self) -> Option<Result<String, DataError>> {
        Some(self.records.next()?.and_then(|(place, record)| self.text(&place, record)))
    }

    /// One string; a newline stands where a control token was.
    fn text(&self, place: &Place, record: Record) -> Result<String, DataError> {
        let conversation = match record {
            Record::Text(text) => return Ok(text),
            Record::Chat(conversation) => conversation,
        };
        let traces = conversation.messages.iter().filter_map(|m| m.reasoning_content.as_deref());
        let mut text: String =
            traces.map(|trace| format!("<think>\n{trace}\n</think>\n\n")).collect();
        let request = ChatRequest {
            messages: conversation.messages,
            tools: conversation.tools,
            ..ChatRequest::default()
        };
        let message = request.messages.len() - 1;
        let rendered = self.template.render(&request).map_err(|error| DataError::Chat {
            place: place.clone(),
            message,
            cause: error.into(),
        })?;
        text.push_str(rendered.text());
        Ok(self.added.iter().fold(text, |text, token| text.replace(token, "\n")))
    }
}

/// Texts until the first error, which is kept.
struct Until<'a, I> {
    texts: Texts<I>,
    failure: &'a mut Option<DataError>,
}

impl<I: Iterator<Item = Result<(Place, Record), DataError>>> Iterator for Until<'_, I> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        match self.texts.next()? {
            Ok(text) => Some(text),
            Err(error) => {
                *self.failure = Some(error);
                None
            }
        }
    }
}

fn files(
    model: &BPE,
    split: &PreTokenizerWrapper,
    added: &[AddedToken],
) -> Result<BpeFiles, DataError> {
    let internal = |error: serde_json::Error| DataError::Tokenizer(error.to_string());
    let added: Vec<Value> = (0..).zip(added).map(|(id, token)| added_token(id, token)).collect();
    let model = serde_json::to_value(model).map_err(internal)?;
    let num_tokens = model["vocab"].as_object().map_or(0, serde_json::Map::len);
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": serde_json::to_value(split).map_err(internal)?,
        "post_processor": null,
        "decoder": byte_level,
        "model": model,
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": true,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    let generation = json!({
        "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": false
    });
    Ok(BpeFiles {
        files: [
            ("tokenizer.json", format!("{tokenizer:#}\n")),
            ("tokenizer_config.json", format!("{config:#}\n")),
            ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
            ("generation_config.json", format!("{generation:#}\n")),
        ],
        num_tokens,
    })
}

fn added_token(id: u32, token: &AddedToken) -> Value {
    json!({
        "id": id,
        "content": token.content,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": token.special,
    })
}
