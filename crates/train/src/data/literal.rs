//! Ids of text that others wrote: control strings in it stay text.

use hybra_chat::ChatError;
use hybra_tokenizer::{ChatRequest, ChatTemplate, Message, Tokenizer};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Encodes text of others, followed by text of our own.
#[derive(Clone)]
pub(super) struct Literal {
    /// Prints the text of a message, then ours.
    template: ChatTemplate,
    own: String,
    /// A text without these holds no control string, and needs no template.
    first: HashSet<char>,
}

impl Literal {
    /// `own` follows every text.
    pub(super) fn new(tokenizer: &Tokenizer, own: &str) -> Result<Self, ChatError> {
        let source = format!("{{{{- messages[0].content + {} -}}}}", Value::from(own));
        let template = ChatTemplate::new(&source, tokenizer.controls().clone(), BTreeMap::new())?;
        let json: Value = serde_json::from_str(&tokenizer.to_json()).unwrap_or_default();
        let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let names = added.iter().filter_map(|token| token["content"].as_str());
        let first = names.chain(["<"]).filter_map(|name| name.chars().next()).collect();
        Ok(Self { template, own: own.to_owned(), first })
    }

    /// Ids of `text` and the own text, encoded as one string.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, ChatError> {
        if !text.contains(|c| self.first.contains(&c)) {
            return Ok(tokenizer.encode(&format!("{text}{}", self.own), false)?);
        }
        let messages = vec![Message::new("user", text)];
        let rendered = self.template.render(&ChatRequest { messages, ..ChatRequest::default() })?;
        Ok(tokenizer.encode_rendered(&rendered)?)
    }
}
