//! Everything of a model that turns messages into requests: tokenizer, tags, defaults.
//!
//! Here the tokenizer's tables become the engine's.

use crate::error::ChatError;
use crate::grammar::Grammars;
use crate::prompt::Prompt;
use crate::sampling::GenerationDefaults;
use hybra_engine::{
    GenerationRequest, Insertion, SamplingParams, Start, TagTexts, ThinkingParams, ThinkingVocab,
    TokenTable,
};
use hybra_tokenizer::{ForcedClose, PromptThinking, Rendered, ThinkTags, Tokenizer};
use std::sync::Arc;

/// What opens a tool call in the family's format.
const TOOL_OPEN: &str = "<TOOLCALL>[";

/// Bytes that the reader sees: none for control tokens, except think and tool tags.
pub struct Table(Arc<Tokenizer>);

impl TokenTable for Table {
    fn bytes(&self, id: u32) -> &[u8] {
        let bytes = self.0.token_bytes(id);
        let tag = matches!(bytes, b"<think>" | b"</think>" | b"<TOOLCALL>" | b"</TOOLCALL>");
        if self.0.is_special(id) && !tag { &[] } else { bytes }
    }
}

/// The text side of one model. Cheap to clone.
#[derive(Clone)]
pub struct ChatModel {
    /// For people and for the wire.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The bytes behind ids, as the engine sees them.
    pub table: Arc<Table>,
    /// Sampling settings that the checkpoint recommends.
    pub defaults: GenerationDefaults,
    /// Ids that end generation.
    pub eos_token_ids: Vec<u32>,
    /// `None` for a model without think tags.
    pub tags: Option<ThinkTags>,
    /// The engine's tables for the tags.
    pub vocab: Arc<ThinkingVocab>,
    /// Compiles what answers must look like.
    pub grammars: Arc<Grammars>,
    no_message: Arc<Insertion>,
}

impl ChatModel {
    /// Joins a tokenizer with what its checkpoint says about generating.
    ///
    /// # Errors
    /// The vocabulary cannot express the closing think tag.
    pub fn new(
        name: String,
        tokenizer: Tokenizer,
        eos_token_ids: Vec<u32>,
        defaults: GenerationDefaults,
    ) -> Result<Self, ChatError> {
        let tokenizer = Arc::new(tokenizer);
        let table = Arc::new(Table(Arc::clone(&tokenizer)));
        let tags = ThinkTags::detect(&tokenizer);
        let (vocab, no_message) = thinking_tables(&tokenizer, &table, tags.as_ref())?;
        let grammars = Arc::new(Grammars::new(Arc::clone(&tokenizer), eos_token_ids.clone()));
        Ok(Self {
            name,
            tokenizer,
            table,
            defaults,
            eos_token_ids,
            tags,
            vocab,
            grammars,
            no_message,
        })
    }

    /// Where a prompt leaves off.
    pub(crate) fn start(&self, rendered: &Rendered) -> Start {
        let state = self.tags.as_ref().map(|tags| tags.prompt_state(&self.tokenizer, rendered));
        match state {
            None | Some(PromptThinking::None) => Start::Absent,
            Some(_) => self.vocab.start_of(rendered.text().as_bytes()),
        }
    }

    /// The engine's request. `message` is inserted at the cut.
    ///
    /// # Errors
    /// A budget on a model that cannot think, or a message that holds a tag.
    pub fn request(
        &self,
        prompt: Prompt,
        sampling: SamplingParams,
        thinking: ThinkingParams,
        message: Option<&str>,
    ) -> Result<GenerationRequest, ChatError> {
        let asked = thinking.budget.is_some() || thinking.effort.is_some();
        if asked && self.tags.is_none() {
            return Err(ChatError::NoThinkTags { field: "thinking_budget" });
        }
        let special = |(i, &id): (usize, &u32)| self.tokenizer.is_special(id).then_some(i);
        let cache_points = prompt.ids.iter().enumerate().filter_map(special).collect();
        Ok(GenerationRequest {
            insertion: self.insertion(message)?,
            prompt: prompt.ids,
            sampling,
            thinking,
            start: prompt.start,
            reserve_answer: prompt.chat || asked,
            tools: prompt.tools,
            eos_token_ids: self.eos_token_ids.clone(),
            constraint: None,
            priority: 0,
            cache_salt: 0,
            cache_points,
            prompt_logprobs: None,
        })
    }

    fn insertion(&self, message: Option<&str>) -> Result<Arc<Insertion>, ChatError> {
        let (Some(message), Some(tags)) = (message.filter(|m| !m.is_empty()), &self.tags) else {
            return Ok(Arc::clone(&self.no_message));
        };
        let forced = ForcedClose::new(&self.tokenizer, tags, Some(message))?;
        let (after_newline, mid_line) = (forced.after_newline, forced.mid_line);
        let bytes = |id| self.table.bytes(id);
        let text = message.as_bytes();
        Ok(Arc::new(Insertion::new(&self.vocab, text, after_newline, mid_line, bytes)?))
    }
}

/// The engine's tables for the model's tags, or for the family's where it has none.
fn thinking_tables(
    tokenizer: &Tokenizer,
    table: &Table,
    tags: Option<&ThinkTags>,
) -> Result<(Arc<ThinkingVocab>, Arc<Insertion>), ChatError> {
    let family =
        ThinkTags { open: "<think>".into(), close: "</think>".into(), after_close: "\n\n".into() };
    let tags = tags.unwrap_or(&family);
    let forced = ForcedClose::new(tokenizer, tags, None)?;
    let texts = TagTexts {
        open: tags.open.as_bytes(),
        close: tags.close.as_bytes(),
        separator: tags.after_close.as_bytes(),
        tool_open: TOOL_OPEN.as_bytes(),
    };
    let vocab_size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let vocab = ThinkingVocab::new(texts, forced.partial, vocab_size, |id| table.bytes(id))?;
    let insertion =
        Insertion::new(&vocab, b"", forced.after_newline, forced.mid_line, |id| table.bytes(id))?;
    Ok((Arc::new(vocab), Arc::new(insertion)))
}
