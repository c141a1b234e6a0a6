//! `/v1/responses`: the reply and the events of a streamed one.

use crate::wire::responses::{ResponsesTool, ResponsesToolChoice, TextField};
use crate::wire::usage::Usage;
use hybra_engine::ReasoningBudget;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A whole reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ResponseObject {
    /// Unique.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// in_progress, completed, incomplete or failed.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As sent.
    pub instructions: Option<String>,
    /// As sent.
    pub max_output_tokens: Option<u32>,
    /// The model's name.
    pub model: String,
    /// What it wrote.
    pub output: Vec<OutputItem>,
    /// As sent, or true.
    pub parallel_tool_calls: bool,
    /// Always null.
    pub previous_response_id: Option<String>,
    /// Always false.
    pub store: bool,
    /// Always false.
    pub background: bool,
    /// As used.
    pub temperature: f32,
    /// As used.
    pub top_p: f32,
    /// As sent.
    pub text: TextField,
    /// As sent, or auto.
    pub tool_choice: ResponsesToolChoice,
    /// As sent.
    pub tools: Vec<ResponsesTool>,
    /// Always `disabled`.
    pub truncation: &'static str,
    /// As sent.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Tokens, once it has ended.
    pub usage: Option<ResponseUsage>,
    /// How much was thought, and why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reasoning_budget: Option<ReasoningBudget>,
    /// Fields that had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Why a reply failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ResponseError {
    /// `server_error`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why a reply is incomplete.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// An item of a reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Thinking.
    Reasoning {
        /// Unique.
        id: String,
        /// Always empty: the whole text is given.
        #[schema(value_type = Vec<Object>)]
        summary: Vec<Value>,
        /// The text.
        content: Vec<OutputPart>,
        /// in_progress or completed.
        status: &'static str,
    },
    /// The answer.
    Message {
        /// Unique.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// The text.
        content: Vec<OutputPart>,
        /// in_progress, completed or incomplete.
        status: &'static str,
    },
    /// A call.
    FunctionCall {
        /// Unique.
        id: String,
        /// What the call's output refers to.
        call_id: String,
        /// The function.
        name: String,
        /// JSON, as the model wrote it.
        arguments: String,
        /// in_progress, completed or incomplete.
        status: &'static str,
    },
}

/// Part of an item.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    /// Of the answer.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        annotations: Vec<Value>,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        logprobs: Vec<Value>,
    },
    /// Of the thinking.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// Tokens of a reply.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Of the prompt.
    pub input_tokens: usize,
    /// What they were.
    pub input_tokens_details: InputTokensDetails,
    /// Generated: thinking, inserted and answer.
    pub output_tokens: usize,
    /// What they were.
    pub output_tokens_details: OutputTokensDetails,
    /// Both.
    pub total_tokens: usize,
}

/// Of the prompt.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Tokens that were not read because a cached state had read them.
    pub cached_tokens: usize,
    /// Always 0.
    pub cache_write_tokens: usize,
}

/// Of what was generated.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Tokens of thinking, inserted ones and the close tag included.
    pub reasoning_tokens: u32,
}

impl From<&Usage> for ResponseUsage {
    fn from(usage: &Usage) -> Self {
        let cached_tokens = usage.prompt_tokens_details.cached_tokens;
        let reasoning_tokens = usage.completion_tokens_details.reasoning_tokens;
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: usage.total_tokens,
        }
    }
}

/// An event of a streamed reply.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ResponseEvent {
    /// Such as `response.output_text.delta`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Counts the events, from 0.
    pub sequence_number: u64,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What an event says.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EventBody {
    /// created, in_progress, completed, incomplete, failed.
    Response {
        /// The reply as it is now.
        response: Box<ResponseObject>,
    },
    /// output_item.added, output_item.done.
    Item {
        /// Which.
        output_index: usize,
        /// The item as it is now.
        item: OutputItem,
    },
    /// content_part.added, content_part.done.
    Part {
        /// Its item.
        item_id: String,
        /// Its item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The part as it is now.
        part: OutputPart,
    },
    /// output_text.delta, reasoning_text.delta, function_call_arguments.delta.
    Delta {
        /// Its item.
        item_id: String,
        /// Its item.
        output_index: usize,
        /// 0 for text.
        #[serde(skip_serializing_if = "Option::is_none")]
        content_index: Option<usize>,
        /// New text.
        delta: String,
        /// Empty for output_text.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<Vec<Object>>)]
        logprobs: Option<[Value; 0]>,
    },
    /// output_text.done, reasoning_text.done.
    TextDone {
        /// Its item.
        item_id: String,
        /// Its item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// All of it.
        text: String,
        /// Empty for output_text.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<Vec<Object>>)]
        logprobs: Option<[Value; 0]>,
    },
    /// function_call_arguments.done.
    CallDone {
        /// Its item.
        item_id: String,
        /// Its item.
        output_index: usize,
        /// The function.
        name: String,
        /// All of it.
        arguments: String,
    },
}
