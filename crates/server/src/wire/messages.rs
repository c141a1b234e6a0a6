//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's objects.

use crate::wire::thinking::EffortName;
use hybra_engine::ReasoningBudget;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagesFields {
    /// The model's name.
    pub model: Option<String>,
    /// The turns; a last one of the assistant is continued.
    #[schema(min_items = 1)]
    pub messages: Vec<InputTurn>,
    /// What comes before all turns: text, or blocks of text.
    #[schema(value_type = Option<BlocksField>)]
    pub system: Option<Value>,
    /// Functions that the model may call.
    pub tools: Option<Vec<MessagesTool>>,
    /// Whether it may, must, or must not call one.
    pub tool_choice: Option<MessagesToolChoice>,
    /// What the answer must look like, and how much to think.
    #[serde(default, deserialize_with = "crate::json::object")]
    pub output_config: Option<OutputConfig>,
}

/// What the answer must look like, and how much to think.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// As `reasoning_effort`.
    #[schema(value_type = Option<EffortName>)]
    pub effort: Option<String>,
    /// What the answer must look like.
    pub format: Option<OutputFormat>,
}

/// Formats of the answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum OutputFormat {
    /// JSON of a schema.
    JsonSchema {
        /// The JSON schema.
        #[schema(value_type = Object)]
        schema: Value,
    },
}

/// What to generate.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagesGeneration {
    /// Most generated tokens, thinking included.
    #[schema(minimum = 1)]
    pub max_tokens: u32,
    /// Texts that end the answer and are not part of it.
    pub stop_sequences: Option<Vec<String>>,
    /// Send the reply piece by piece.
    pub stream: Option<bool>,
    /// Has no effect, and the reply's `warnings` say so.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Has no effect, as `metadata`.
    pub service_tier: Option<String>,
}

/// One turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputTurn {
    /// Who speaks.
    pub role: TurnRole,
    /// Text, or blocks.
    #[schema(value_type = BlocksField)]
    pub content: Value,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TurnRole {
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// Text, or blocks.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum BlocksField {
    /// Text.
    Text(String),
    /// Blocks.
    Blocks(Vec<InputBlock>),
}

/// A block of a turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum InputBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Has no effect: every prompt is cached.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Map<String, Value>>,
        /// Only null or empty.
        #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
        citations: Option<[Value; 0]>,
    },
    /// Thinking of an earlier turn.
    Thinking {
        /// The text.
        thinking: String,
        /// As it came.
        signature: Option<String>,
    },
    /// A call of an earlier turn.
    ToolUse {
        /// That of the call.
        id: String,
        /// The function.
        name: String,
        /// Its arguments.
        #[schema(value_type = Value)]
        input: Value,
        /// Has no effect: every prompt is cached.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Map<String, Value>>,
    },
    /// What a call gave.
    ToolResult {
        /// The call.
        tool_use_id: String,
        /// Text, or blocks of text.
        #[schema(value_type = Option<Value>)]
        content: Option<Value>,
        /// The call failed.
        is_error: Option<bool>,
        /// Has no effect: every prompt is cached.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// A function that the model may call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagesTool {
    /// Only `custom`.
    #[serde(rename = "type")]
    pub kind: Option<MessagesToolType>,
    /// Letters, digits, `_` and `-`.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Value)]
    pub input_schema: Value,
    /// Arguments must match the schema.
    pub strict: Option<bool>,
    /// Has no effect: every prompt is cached.
    #[schema(value_type = Option<Object>)]
    pub cache_control: Option<Map<String, Value>>,
}

/// Kinds of tools.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessagesToolType {
    /// A function of the caller.
    Custom,
}

/// Whether a function is called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum MessagesToolChoice {
    /// As the model likes.
    Auto {
        /// At most one at once.
        disable_parallel_tool_use: Option<bool>,
    },
    /// At least one.
    Any {
        /// At most one at once.
        disable_parallel_tool_use: Option<bool>,
    },
    /// This one.
    Tool {
        /// Which.
        name: String,
        /// At most one at once.
        disable_parallel_tool_use: Option<bool>,
    },
    /// Not at all.
    None {},
}

/// Tokens of a prompt.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct InputTokens {
    /// How many.
    pub input_tokens: usize,
}

/// A whole reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MessageObject {
    /// Unique.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model's name.
    pub model: String,
    /// What it wrote.
    pub content: Vec<ContentBlock>,
    /// end_turn, max_tokens, stop_sequence or tool_use.
    pub stop_reason: Option<&'static str>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<Value>,
    /// Tokens.
    pub usage: MessageUsage,
    /// How much was thought, and why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reasoning_budget: Option<ReasoningBudget>,
    /// Fields that had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A block of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// The answer.
    Text {
        /// The text.
        text: String,
    },
    /// Thinking.
    Thinking {
        /// The text.
        thinking: String,
        /// Always empty.
        signature: &'static str,
    },
    /// A call.
    ToolUse {
        /// Unique.
        id: String,
        /// The function.
        name: String,
        /// Its arguments; a string where they are no JSON.
        input: Value,
    },
}

/// Tokens of a reply.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct MessageUsage {
    /// Of the prompt, those that were read.
    pub input_tokens: usize,
    /// Always 0.
    pub cache_creation_input_tokens: usize,
    /// Of the prompt, those that a cached state had read.
    pub cache_read_input_tokens: usize,
    /// Generated: thinking, inserted and answer.
    pub output_tokens: usize,
}

/// An event of a streamed reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// The first.
    MessageStart {
        /// The reply, still empty.
        message: MessageObject,
    },
    /// Nothing happened.
    Ping,
    /// A block begins.
    ContentBlockStart {
        /// Which.
        index: usize,
        /// The block, still empty.
        content_block: ContentBlock,
    },
    /// A block grows.
    ContentBlockDelta {
        /// Which.
        index: usize,
        /// What is new.
        delta: BlockDelta,
    },
    /// A block has ended.
    ContentBlockStop {
        /// Which.
        index: usize,
    },
    /// The reply has ended.
    MessageDelta {
        /// Why.
        delta: MessageEnd,
        /// Tokens.
        usage: MessageUsage,
    },
    /// The last.
    MessageStop,
}

impl MessageEvent {
    /// The name of the event.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::Ping => "ping",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// New text of a block.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// Of the answer.
    TextDelta {
        /// The text.
        text: String,
    },
    /// Of the thinking.
    ThinkingDelta {
        /// The text.
        thinking: String,
    },
    /// Of a call's arguments.
    InputJsonDelta {
        /// More of the JSON.
        partial_json: String,
    },
}

/// Why a reply ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MessageEnd {
    /// end_turn, max_tokens, stop_sequence or tool_use.
    pub stop_reason: &'static str,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<Value>,
    /// How much was thought, and why it ended.
    #[schema(value_type = Option<Object>)]
    pub reasoning_budget: Option<ReasoningBudget>,
}

/// Anthropic's error object.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MessageError {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The error.
    pub error: MessageErrorDetail,
}

/// What an error says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MessageErrorDetail {
    /// Kind of error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people.
    pub message: String,
}
