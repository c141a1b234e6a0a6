//! `/v1/completions`: request and reply.

use crate::choice::num_chars;
use crate::validate::EchoedPrompt;
use crate::wire::chat::{StreamOptions, TokenLogprobs};
use crate::wire::usage::Usage;
use hybra_engine::ReasoningBudget;
use hybra_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The fields of a completion request, beside those about sampling and thinking.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionFields {
    /// The model's name.
    pub model: Option<String>,
    /// What to continue; several prompts are answered in one reply.
    pub prompt: PromptField,
    /// Only null: nothing is inserted before a suffix.
    #[schema(value_type = Option<String>, max_length = 0)]
    pub suffix: Option<String>,
    /// Most generated tokens [default: 16; with a thinking budget, what the context leaves].
    /// 0 is allowed with `echo` and `logprobs`.
    #[schema(minimum = 0)]
    pub max_tokens: Option<u32>,
    /// The text begins with the prompt.
    pub echo: Option<bool>,
    /// Log-probabilities: those of the tokens, and of as many alternatives; with `echo` of the
    /// prompt, too.
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<u32>,
    /// Candidates, of which the `n` with the highest log-probability per token are returned.
    #[schema(minimum = 1, maximum = 128)]
    pub best_of: Option<u32>,
    /// Add what the tokenizer puts before plain text [default: true].
    pub add_special_tokens: Option<bool>,
    /// Send the reply piece by piece.
    pub stream: Option<bool>,
    /// What a stream also sends.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub stream_options: Option<StreamOptions>,
    /// Who asks; has no effect, and the reply's `warnings` say so.
    pub user: Option<String>,
}

/// One prompt or several, in text or in ids.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, a list of strings, ids, or a list of id lists")]
pub enum PromptField {
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several prompts in ids.
    IdLists(Vec<Vec<u32>>),
}

/// A reply, or a piece of a streamed one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Completion {
    /// Unique.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Those of the first prompt, then those of the next.
    pub choices: Vec<CompletionChoice>,
    /// Tokens; in a stream, in the last piece if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Fields that had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One of the choices.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Which.
    pub index: u32,
    /// The text, thinking and tags included.
    pub text: String,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// stop or length; in a stream, in the choice's last piece.
    pub finish_reason: Option<&'static str>,
    /// The stop string that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// How much was thought, and why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reasoning_budget: Option<ReasoningBudget>,
}

/// Log-probabilities by token: four lists of one length.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Texts; a token that holds part of a character is `bytes:` and its bytes, as `\xe2`.
    pub tokens: Vec<String>,
    /// Natural logarithms, of the raw model distribution; null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The token itself and its alternatives.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where tokens begin in the text, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Those of an echoed prompt, of which `scored` are the tokens after the first.
    #[must_use]
    pub fn of_prompt(
        prompt: &EchoedPrompt,
        scored: Vec<TokenLogprobs>,
        tokenizer: &Tokenizer,
    ) -> Self {
        let mut all = Self::default();
        let Some(&first) = prompt.ids.first() else { return all };
        let bytes = tokenizer.token_bytes(first);
        all.tokens.push(name(String::from_utf8_lossy(bytes).into_owned(), bytes));
        all.token_logprobs.push(None);
        all.top_logprobs.push(None);
        all.text_offset.push(0);
        let shown = if prompt.num_hidden > 0 { 0 } else { num_chars(bytes) };
        all.extend(scored, shown);
        all
    }

    /// Adds tokens that begin at the character `offset`; where the next one begins.
    pub fn extend(&mut self, tokens: Vec<TokenLogprobs>, mut offset: usize) -> usize {
        for token in tokens {
            let name = name(token.token, &token.bytes);
            let mut top = BTreeMap::from([(name.clone(), token.logprob)]);
            top.extend(
                token.top_logprobs.into_iter().map(|t| (self::name(t.token, &t.bytes), t.logprob)),
            );
            self.tokens.push(name);
            self.token_logprobs.push(Some(token.logprob));
            self.top_logprobs.push(Some(top));
            self.text_offset.push(offset);
            offset += token.num_chars;
        }
        offset
    }
}

/// A token's text, as OpenAI names it.
fn name(token: String, bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => token,
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, b| name + &format!("\\x{b:02x}")),
    }
}
