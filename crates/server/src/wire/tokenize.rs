//! `/tokenize`, `/detokenize` (vLLM's forms) and `/apply-template` (llama-server's).

use crate::wire::chat::{ChatMessage, Tool};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to encode: `prompt` or `messages`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeFields {
    /// The model's name.
    pub model: Option<String>,
    /// Plain text.
    pub prompt: Option<String>,
    /// Add what the tokenizer puts before plain text [default: true for `prompt`; a chat template
    /// writes its own].
    pub add_special_tokens: Option<bool>,
    /// Also give the tokens' texts.
    pub return_token_strs: Option<bool>,
    /// A conversation, as the model reads it.
    pub messages: Option<Vec<ChatMessage>>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// End where an assistant's turn begins [default: true].
    pub add_generation_prompt: Option<bool>,
    /// The last message is an assistant's beginning, to be continued.
    pub continue_final_message: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Tokens {
    /// How many.
    pub count: usize,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, if asked for; lossy where a token holds part of a character.
    pub token_strs: Option<Vec<String>>,
}

/// What to decode.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeFields {
    /// The model's name.
    pub model: Option<String>,
    /// Ids.
    pub tokens: Vec<u32>,
}

/// A conversation to print.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateFields {
    /// The model's name.
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// End where an assistant's turn begins [default: true].
    pub add_generation_prompt: Option<bool>,
    /// The last message is an assistant's beginning, to be continued.
    pub continue_final_message: Option<bool>,
}

/// What a client's tokenizer must know.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenizerInfo {
    /// Before plain text.
    pub bos_token: Option<String>,
    /// After an answer.
    pub eos_token: Option<String>,
    /// Between texts of a batch.
    pub pad_token: Option<String>,
}

/// A text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptText {
    /// The text.
    pub prompt: String,
}
