//! What the model writes in an assistant turn after its thinking: text, tool calls, end of turn.
//!
//! These ids are read off the template's own rendering of the turn as history, from where the
//! prompt's role header ends to the token that ends the turn, so tool calls and spaces have the
//! form in which inference shows them later.

use super::error::{DataError, Place};
use super::sample::{SampleEncoder, chat_error};
use hybra_chat::{ChatError, ChatInput, Prompt};
use hybra_tokenizer::Message;

/// Why an answer has no ids.
pub(super) enum AnswerError {
    Chat(ChatError),
    Template(&'static str),
}

impl AnswerError {
    pub(super) fn at(self, place: &Place, message: usize) -> DataError {
        match self {
            Self::Chat(source) => chat_error(place, message)(source),
            Self::Template(detail) => DataError::Template { place: place.clone(), message, detail },
        }
    }
}

impl From<ChatError> for AnswerError {
    fn from(error: ChatError) -> Self {
        Self::Chat(error)
    }
}

impl SampleEncoder {
    /// Ids of `message` without its trace, after `prompt` (rendered from `input`).
    pub(super) fn answer(
        &self,
        mut input: ChatInput,
        message: &Message,
        prompt: &Prompt,
        enabled: Option<bool>,
    ) -> Result<Vec<u32>, AnswerError> {
        let header = self.header(&prompt.text, enabled)?;
        input.messages.push(Message { reasoning_content: None, ..message.clone() });
        // A user turn behind it makes the turn history; some templates take a last assistant turn
        // for one to be continued. Others show earlier reasoning until the next user turn.
        input.messages.push(Message::new("user", "a probe"));
        let mut history = self.chat.render(&input, enabled, false)?;
        if !history.text().starts_with(header) {
            input.messages.pop();
            history = self.chat.render(&input, enabled, false)?;
        }
        let Some(turn) = history.text().strip_prefix(header) else {
            return Err(AnswerError::Template("prints the turns before differently in a prompt"));
        };
        let start = header.len() + self.empty_section(turn);
        let ids = self.tokenizer().encode_rendered(&history).map_err(ChatError::from)?;
        let first = self.token_at(&ids, start, history.text().len())?;
        let ends = self.tokenizer().eos_ids();
        match ids[first..].iter().position(|id| ends.contains(id)) {
            Some(len) => Ok(ids[first..=first + len].to_vec()),
            None => Err(AnswerError::Template("prints no token that ends the turn")),
        }
    }

    /// Index of the token that begins at byte `start` of the text of `ids`, which has `text_len`.
    fn token_at(&self, ids: &[u32], start: usize, text_len: usize) -> Result<usize, AnswerError> {
        let mut end = 0;
        let mut starts = Vec::with_capacity(ids.len());
        for &id in ids {
            starts.push(end);
            end += self.tokenizer().token_bytes(id).len();
        }
        if end != text_len {
            let detail = "prints text that the tokenizer does not keep as it is";
            return Err(AnswerError::Template(detail));
        }
        let joined = "joins header and answer in one token";
        starts.binary_search(&start).map_err(|_| AnswerError::Template(joined))
    }

    /// The prompt without its think tags: up to the end of the role header.
    fn header<'a>(&self, prompt: &'a str, enabled: Option<bool>) -> Result<&'a str, AnswerError> {
        let (Some(tags), Some(on)) = (&self.chat.tags, enabled) else { return Ok(prompt) };
        let close = if on { "\n" } else { tags.close.as_str() };
        let header = prompt.strip_suffix(close).and_then(|rest| rest.strip_suffix(&*tags.open));
        header.ok_or(AnswerError::Chat(ChatError::NoThinkForm))
    }

    /// Bytes of an empty thinking section that the template prints before the answer.
    fn empty_section(&self, turn: &str) -> usize {
        let Some(tags) = &self.chat.tags else { return 0 };
        let Some(section) = turn.strip_prefix(&*tags.open) else { return 0 };
        match section.split_once(&*tags.close) {
            Some((inside, answer)) if inside.trim().is_empty() => {
                turn.len() - answer.trim_start().len()
            }
            _ => 0,
        }
    }
}
