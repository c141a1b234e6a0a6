//! Thinking tags: their texts, the ids that force a close, and the state of a prompt.
//!
//! Everything the engine needs to know about thinking, in terms of ids and bytes
//! ([`ThinkingVocab`]). Detection is on bytes, because a tag may have many tokenisations.
//!
//! **Separator after the tag.** A forced close should look like a natural one. What follows a
//! natural `</think>` is found in this order: what the template prints between the tag and the
//! answer of an earlier turn, when it prints earlier reasoning at all; otherwise one newline when
//! the tag is a single added token (models whose tag is a token are trained on `…\n</think>\n`);
//! otherwise a blank line (Nemotron Nano 2, whose tag is ordinary text and whose last piece merges
//! with the newlines). A caller that knows better sets [`ThinkTags::after_close`].

use std::collections::HashSet;
use std::sync::Arc;

use crate::control::{Author, Marker, THINK_CLOSE, THINK_OPEN};
use crate::{ChatRequest, Error, Message, Rendered, TokenBytes, Tokenizer};

/// The think tags of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinkTags {
    /// Opening tag.
    pub open: String,
    /// Closing tag.
    pub close: String,
    /// Whitespace between the closing tag and the answer.
    pub after_close: String,
}

/// Where a prompt leaves the thinking section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptThinking {
    /// `<think>` is open: generated text is thinking.
    Open,
    /// An opened section is closed: generated text is answer.
    Closed,
    /// No tag since the last role marker.
    None,
}

impl ThinkTags {
    /// The tags of a model, or `None` for a model that knows none: both tags must be added tokens,
    /// or occur in the chat template.
    pub fn detect(tokenizer: &Tokenizer) -> Option<Self> {
        let tokens = [THINK_OPEN, THINK_CLOSE].map(|tag| tokenizer.added_token_id(tag));
        let source = tokenizer.chat_template().map(|t| t.source().to_owned()).unwrap_or_default();
        let in_template = source.contains(THINK_OPEN) && source.contains(THINK_CLOSE);
        if !in_template && tokens.contains(&None) {
            return None;
        }
        let default = if tokens[1].is_some() { "\n" } else { "\n\n" };
        let after_close = printed_after_close(tokenizer).unwrap_or_else(|| default.to_owned());
        Some(Self { open: THINK_OPEN.to_owned(), close: THINK_CLOSE.to_owned(), after_close })
    }

    /// State of a prompt: the last opening tag after the last special token (role marker) decides.
    /// Tags in foreign text do not count. A raw prompt is `&Rendered::from(text)`.
    pub fn prompt_state(&self, tokenizer: &Tokenizer, prompt: &Rendered) -> PromptThinking {
        let text = prompt.text();
        let turn = (0..text.len()).rev().find_map(|at| {
            let (len, special) = tokenizer.controls().match_at(text, at)?;
            let tag = text[at..].starts_with(&self.open) || text[at..].starts_with(&self.close);
            (special && !tag && prompt.is_genuine(at, len)).then_some(at + len)
        });
        let turn = turn.unwrap_or(0);
        let last = |tag: &str| {
            let found = text[turn..].rmatch_indices(tag).map(|(at, _)| turn + at);
            found.into_iter().find(|&at| prompt.is_genuine(at, tag.len()))
        };
        match (last(&self.open), last(&self.close)) {
            (None, _) => PromptThinking::None,
            (Some(open), Some(close)) if close > open => PromptThinking::Closed,
            (Some(_), _) => PromptThinking::Open,
        }
    }

    /// Makes a chat prompt end in the open tag (`on`) or in an empty closed pair. Returns whether
    /// it does now; false means that the template printed neither form.
    pub fn set_prompt(&self, prompt: &mut Rendered, on: bool) -> bool {
        let open = format!("{}\n", self.open);
        let closed = format!("{}{}", self.open, self.close);
        let (want, other) = if on { (&open, &closed) } else { (&closed, &open) };
        // Replacing a form by itself tells whether it is there.
        prompt.replace_suffix(want, want) || prompt.replace_suffix(other, want)
    }
}

/// Whitespace that the template prints between the close tag and an answer, when it prints the
/// reasoning of an earlier turn.
fn printed_after_close(tokenizer: &Tokenizer) -> Option<String> {
    let answer = "the answer of a probe";
    let assistant = Message {
        reasoning_content: Some("the reasoning of a probe".to_owned()),
        ..Message::new("assistant", answer)
    };
    let messages = vec![Message::new("user", "a probe"), assistant];
    let request = ChatRequest { messages, ..ChatRequest::default() };
    let rendered = tokenizer.chat_template().ok()?.render(&request).ok()?;
    let (before, _) = rendered.text().rsplit_once(answer)?;
    let (reasoning, between) = before.rsplit_once(THINK_CLOSE)?;
    let whole = reasoning.contains("the reasoning of a probe") && between.trim().is_empty();
    whole.then(|| between.to_owned())
}

/// The token ids that force the end of thinking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedClose {
    /// When the text ends in a newline: message, tag, separator.
    pub after_newline: Vec<u32>,
    /// When it does not: message, newline, tag, separator. Equal to `after_newline` when there is
    /// a message, whose own end decides about the newline.
    pub mid_line: Vec<u32>,
    /// `partial[j - 1]`: when the text ends in the first `j` bytes of the tag, the rest of the tag
    /// and the separator. Empty when the tag is a single token: its first characters as text are
    /// not a half-emitted tag then, and the whole tag is inserted.
    pub partial: Vec<Vec<u32>>,
}

impl ForcedClose {
    /// Encodes the insertions, each as one string, with an optional message before the tag.
    ///
    /// Control strings inside the message stay text.
    ///
    /// # Errors
    /// [`Error::TagInMessage`] when the message holds the closing tag; [`Error::Encode`].
    pub fn new(
        tokenizer: &Tokenizer,
        tags: &ThinkTags,
        message: Option<&str>,
    ) -> Result<Self, Error> {
        let message = message.unwrap_or("");
        if message.contains(&tags.close) {
            return Err(Error::TagInMessage { tag: tags.close.clone() });
        }
        let end = format!("{}{}", tags.close, tags.after_close);
        let after_newline = match message {
            "" => tokenizer.encode(&end, false)?,
            text if text.ends_with('\n') => encode_after(tokenizer, text, &end)?,
            text => encode_after(tokenizer, text, &format!("\n{end}"))?,
        };
        let mid_line = match message {
            "" => tokenizer.encode(&format!("\n{end}"), false)?,
            _ => after_newline.clone(),
        };
        let lengths = match tokenizer.added_token_id(&tags.close) {
            Some(_) => 0..0,
            None => 1..tags.close.len(),
        };
        let rests = lengths.filter_map(|j| end.get(j..));
        let partial = rests.map(|rest| tokenizer.encode(rest, false)).collect::<Result<_, _>>()?;
        Ok(Self { after_newline, mid_line, partial })
    }
}

/// Ids of foreign `message` followed by `end`.
fn encode_after(tokenizer: &Tokenizer, message: &str, end: &str) -> Result<Vec<u32>, Error> {
    let mut used = HashSet::new();
    Marker::collect_private(message, &mut used);
    let marker = Marker::new(tokenizer.controls(), &used)
        .map_err(|error| Error::Encode(error.to_string()))?;
    let marked = marker.mark(message, Author::Foreign) + end;
    tokenizer.encode_rendered(&marker.rendered(&marked))
}

/// Thinking in terms of ids and bytes, for an engine that knows no text.
#[derive(Debug, Clone)]
pub struct ThinkingVocab {
    /// Bytes of every id.
    pub token_bytes: Arc<TokenBytes>,
    /// Bytes of the opening tag.
    pub open: Vec<u8>,
    /// Bytes of the closing tag.
    pub close: Vec<u8>,
    /// The closing tag's id, when it is a single token.
    pub close_id: Option<u32>,
    /// Insertions without a message.
    pub forced: ForcedClose,
}

impl ThinkingVocab {
    /// Builds the tables of a model.
    ///
    /// # Errors
    /// [`Error::Encode`] when the vocabulary cannot express the closing tag.
    pub fn new(tokenizer: &Tokenizer, tags: &ThinkTags) -> Result<Self, Error> {
        Ok(Self {
            token_bytes: tokenizer.all_token_bytes(),
            open: tags.open.clone().into_bytes(),
            close: tags.close.clone().into_bytes(),
            close_id: tokenizer.added_token_id(&tags.close),
            forced: ForcedClose::new(tokenizer, tags, None)?,
        })
    }
}
