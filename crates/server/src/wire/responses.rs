//! `/v1/responses`: the request.

use crate::wire::chat::ToolType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The fields of a request, beside those about sampling and thinking.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesFields {
    /// The model's name.
    pub model: Option<String>,
    /// What to answer: text, or the items of a conversation.
    #[schema(value_type = InputField)]
    pub input: Value,
    /// What comes before all items.
    pub instructions: Option<String>,
    /// Most generated tokens, thinking included.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ResponsesTool>>,
    /// Whether it may, must, or must not call one.
    pub tool_choice: Option<ResponsesToolChoice>,
    /// Whether it may call several at once [default: true].
    pub parallel_tool_calls: Option<bool>,
    /// What the answer must look like.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub text: Option<TextField>,
    /// Send the reply piece by piece.
    pub stream: Option<bool>,
    /// Has no effect, and the reply's `warnings` say so.
    #[schema(value_type = Option<Object>)]
    pub stream_options: Option<Map<String, Value>>,
    /// Only `reasoning.encrypted_content`, which has no effect: the thinking is given as text.
    pub include: Option<Vec<String>>,
    /// Replies are not stored: only false.
    pub store: Option<bool>,
    /// Only false.
    pub background: Option<bool>,
    /// Only null: replies are not stored.
    pub previous_response_id: Option<String>,
    /// Only null: replies are not stored.
    #[schema(value_type = Option<Object>)]
    pub conversation: Option<Value>,
    /// Only null: prompts are not stored.
    #[schema(value_type = Option<Object>)]
    pub prompt: Option<Value>,
    /// Only `disabled`.
    pub truncation: Option<String>,
    /// Only 0: use `/v1/chat/completions` for log-probabilities.
    #[schema(minimum = 0, maximum = 0)]
    pub top_logprobs: Option<u32>,
    /// Comes back in the reply.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Has no effect, as `stream_options`.
    pub max_tool_calls: Option<u32>,
    /// Has no effect, as `stream_options`.
    pub service_tier: Option<String>,
    /// Has no effect, as `stream_options`.
    pub user: Option<String>,
    /// Has no effect, as `stream_options`.
    pub safety_identifier: Option<String>,
    /// Has no effect: every prompt is cached.
    pub prompt_cache_key: Option<String>,
    /// Has no effect: every prompt is cached.
    pub prompt_cache_retention: Option<String>,
}

/// Text, or items.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum InputField {
    /// The user's text.
    Text(String),
    /// The items of a conversation.
    Items(Vec<InputItem>),
}

/// An item of a conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum InputItem {
    /// A turn.
    Message(InputMessage),
    /// A call of an earlier turn.
    FunctionCall(InputCall),
    /// What a call gave.
    FunctionCallOutput(InputCallOutput),
    /// Thinking of an earlier turn.
    Reasoning(InputReasoning),
}

/// A turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    /// `message`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// user, assistant, system or developer.
    pub role: String,
    /// Text, or parts of text.
    #[schema(value_type = PartsField)]
    pub content: Value,
    /// As it came.
    pub id: Option<String>,
    /// As it came.
    pub status: Option<String>,
    /// As it came.
    pub phase: Option<String>,
}

/// Text, or parts of text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PartsField {
    /// Text.
    Text(String),
    /// Parts of text.
    Parts(Vec<InputPart>),
}

/// Part of a text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum InputPart {
    /// What was sent.
    InputText {
        /// The text.
        text: String,
    },
    /// What was answered.
    OutputText {
        /// The text.
        text: String,
        /// As they came.
        #[schema(value_type = Option<Vec<Object>>)]
        annotations: Option<Vec<Value>>,
        /// As they came.
        #[schema(value_type = Option<Vec<Object>>)]
        logprobs: Option<Vec<Value>>,
    },
    /// What was thought.
    ReasoningText {
        /// The text.
        text: String,
    },
    /// What was thought, in short.
    SummaryText {
        /// The text.
        text: String,
    },
}

impl InputPart {
    /// Its text.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::InputText { text }
            | Self::OutputText { text, .. }
            | Self::ReasoningText { text }
            | Self::SummaryText { text } => text,
        }
    }
}

/// A call of an earlier turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCall {
    /// `function_call`.
    #[serde(rename = "type")]
    pub kind: String,
    /// That of the call.
    pub call_id: String,
    /// The function.
    pub name: String,
    /// JSON.
    pub arguments: String,
    /// As it came.
    pub id: Option<String>,
    /// As it came.
    pub status: Option<String>,
}

/// What a call gave.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCallOutput {
    /// `function_call_output`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The call.
    pub call_id: String,
    /// Text, or parts of text.
    #[schema(value_type = PartsField)]
    pub output: Value,
    /// As it came.
    pub id: Option<String>,
    /// As it came.
    pub status: Option<String>,
}

/// Thinking of an earlier turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputReasoning {
    /// `reasoning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// As it came.
    pub id: Option<String>,
    /// Read where there is no `content`.
    pub summary: Option<Vec<InputPart>>,
    /// The text.
    pub content: Option<Vec<InputPart>>,
    /// Only null: this server gives thinking as text.
    #[schema(value_type = Option<String>, max_length = 0)]
    pub encrypted_content: Option<String>,
    /// As it came.
    pub status: Option<String>,
}

/// A function that the model may call.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolType,
    /// Letters, digits, `_` and `-`.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub parameters: Option<Value>,
    /// Arguments must match the schema.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// Whether a function is called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected auto, none, required, or a function's type and name")]
pub enum ResponsesToolChoice {
    /// By mode.
    Mode(crate::wire::chat::ToolChoiceMode),
    /// This one.
    Named(ResponsesNamedTool),
}

/// A function to be called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesNamedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolType,
    /// Which.
    pub name: String,
}

/// What the answer must look like.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextField {
    /// Its format.
    #[serde(default)]
    pub format: Option<TextFormat>,
    /// Only `medium`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
}

/// Formats of the answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TextFormat {
    /// Anything.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON of a schema.
    JsonSchema {
        /// For the caller.
        name: String,
        /// For the caller.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<String>,
        /// The JSON schema.
        #[schema(value_type = Object)]
        schema: Value,
        /// Always strict here.
        #[serde(default)]
        strict: Option<bool>,
    },
}
