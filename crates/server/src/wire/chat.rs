//! `/v1/chat/completions`: request and reply.

use crate::wire::usage::Usage;
use hybra_engine::ReasoningBudget;
use hybra_tokenizer::{Content, Message};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The fields of a chat request, beside those about sampling and thinking.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatFields {
    /// The model's name.
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// Whether it may, must, or must not call one.
    pub tool_choice: Option<ToolChoiceField>,
    /// Whether it may call several at once [default: true].
    pub parallel_tool_calls: Option<bool>,
    /// What the answer must look like.
    pub response_format: Option<ResponseFormat>,
    /// vLLM's formats of the answer; only one format may be given.
    pub structured_outputs: Option<StructuredOutputs>,
    /// vLLM's older spelling of `structured_outputs.json`.
    #[schema(value_type = Option<Object>)]
    pub guided_json: Option<Value>,
    /// vLLM's older spelling of `structured_outputs.regex`.
    pub guided_regex: Option<String>,
    /// vLLM's older spelling of `structured_outputs.choice`.
    pub guided_choice: Option<Vec<String>>,
    /// vLLM's older spelling of `structured_outputs.grammar`.
    pub guided_grammar: Option<String>,
    /// Most generated tokens, thinking included.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// OpenAI's newer spelling of `max_tokens`.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u32>,
    /// Log-probabilities of the generated tokens.
    pub logprobs: Option<bool>,
    /// Alternatives per token.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// Send the reply piece by piece.
    pub stream: Option<bool>,
    /// What a stream also sends.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub stream_options: Option<StreamOptions>,
    /// Tell in the stream how much of the prompt was read.
    pub return_progress: Option<bool>,
    /// The last message is an assistant's beginning, to be continued.
    pub continue_final_message: Option<bool>,
    /// Who asks; has no effect, and the reply's `warnings` say so.
    pub user: Option<String>,
    /// Has no effect, as `user`.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Has no effect, as `user`.
    pub safety_identifier: Option<String>,
    /// Has no effect: every prompt is cached.
    pub prompt_cache_key: Option<String>,
    /// Replies are not stored: only false.
    pub store: Option<bool>,
}

/// One turn.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// system, developer, user, assistant or tool.
    pub role: String,
    /// Text, or parts of text.
    pub content: Option<MessageContent>,
    /// Thinking of an earlier turn; most templates leave it out.
    pub reasoning_content: Option<String>,
    /// The same, in OpenRouter's spelling.
    pub reasoning: Option<String>,
    /// Calls of an assistant turn.
    #[schema(value_type = Option<Vec<Value>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// Who speaks.
    pub name: Option<String>,
    /// Only null: what clients send back from a reply.
    #[schema(ignore)]
    pub refusal: Option<Null>,
    /// Only null.
    #[schema(ignore)]
    pub audio: Option<Null>,
    /// Only null.
    #[schema(ignore)]
    pub function_call: Option<Null>,
    /// Only null.
    #[schema(ignore)]
    pub annotations: Option<Null>,
}

/// A field of which only null, or an empty list, is accepted.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Null([(); 0]);

/// Content of a message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum MessageContent {
    /// Text.
    Text(String),
    /// `{"type": "text", "text": …}` and no other kind.
    #[schema(value_type = Vec<Object>)]
    Parts(Vec<Value>),
}

impl ChatMessage {
    /// As the template sees it.
    #[must_use]
    pub fn into_message(self) -> Message {
        Message {
            role: self.role,
            content: self.content.map(|content| match content {
                MessageContent::Text(text) => Content::Text(text),
                MessageContent::Parts(parts) => Content::Parts(parts),
            }),
            reasoning_content: self.reasoning_content.or(self.reasoning),
            tool_calls: self.tool_calls.unwrap_or_default(),
            tool_call_id: self.tool_call_id,
            name: self.name,
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolType,
    /// The function.
    pub function: FunctionSpec,
}

/// Kinds of tools.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolType {
    /// A function of the caller.
    Function,
}

/// What a function is called and takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// Letters, digits, `_` and `-`.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub parameters: Option<Value>,
    /// Arguments must match the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether a function is called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoiceField {
    /// By mode.
    Mode(ToolChoiceMode),
    /// This one.
    Named(NamedTool),
}

/// Modes of tool choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoiceMode {
    /// As the model likes.
    Auto,
    /// Not at all.
    None,
    /// At least one.
    Required,
}

/// A function to be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolType,
    /// Which.
    pub function: FunctionName,
}

/// Name of a function.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// What the answer must look like.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema {
        /// The schema.
        json_schema: JsonSchemaFormat,
    },
}

/// What the answer must look like, as vLLM says it.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StructuredOutputs {
    /// JSON of a schema.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// Any JSON object.
    pub json_object: Option<bool>,
    /// All of the answer matches it.
    pub regex: Option<String>,
    /// One of these texts.
    pub choice: Option<Vec<String>>,
    /// A grammar in Lark's notation.
    pub grammar: Option<String>,
}

/// A named schema.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchemaFormat {
    /// For the caller.
    pub name: Option<String>,
    /// For the caller.
    pub description: Option<String>,
    /// The JSON schema.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// Always strict here.
    pub strict: Option<bool>,
}

/// What a stream also sends.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
}

/// A whole reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Unique.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The choices, by index.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// Fields that had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One of the choices.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which.
    pub index: u32,
    /// The text.
    pub message: AssistantMessage,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// stop, length, tool_calls, or error.
    pub finish_reason: &'static str,
    /// The stop string or token that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// How much was thought, and why it ended.
    #[schema(value_type = Object)]
    pub reasoning_budget: ReasoningBudget,
}

/// The text of a choice.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer; null where there are only calls.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
    /// Thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same, for those who ask in this spelling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
}

/// A call.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ToolCall {
    /// Unique.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which, with what.
    pub function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// Log-probabilities of a choice.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// By token.
    pub content: Vec<TokenLogprobs>,
}

/// A token with its alternatives.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenLogprobs {
    /// Its text, lossy where it holds part of a character.
    pub token: String,
    /// Natural logarithm, of the raw model distribution; −9999 for impossible.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most probable tokens here.
    pub top_logprobs: Vec<TopLogprob>,
    /// The engine inserted it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// Characters of the text that begin in it.
    #[serde(skip)]
    pub num_chars: usize,
}

/// An alternative.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A piece of a reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChunk {
    /// That of the reply.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// At most one.
    pub choices: Vec<ChunkChoice>,
    /// Tokens: in the last chunk, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How much of the prompt was read, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_progress: Option<PromptProgress>,
    /// Fields that had no effect, in the first chunk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A piece of a choice.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Log-probabilities of the tokens of this piece.
    pub logprobs: Option<ChatLogprobs>,
    /// In the choice's last piece.
    pub finish_reason: Option<&'static str>,
    /// In the choice's last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// In the choice's last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reasoning_budget: Option<ReasoningBudget>,
}

/// New text.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Delta {
    /// In the choice's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Of the thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same, for those who ask in this spelling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Of calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// A piece of a call.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which.
    pub index: u32,
    /// In its first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In its first piece.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// A piece of a call's name and arguments.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// In the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// How much of a prompt was read.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct PromptProgress {
    /// Tokens of the prompt.
    pub total: usize,
    /// Of these, taken from the cache.
    pub cache: usize,
    /// Read or taken so far.
    pub processed: usize,
}
