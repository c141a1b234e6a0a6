//! From the wire to the engine: the only way in which a request from outside becomes a
//! [`GenerationRequest`].

mod completion;
mod format;
mod messages;
mod response;

pub use completion::{CompletionRequest, EchoedPrompt, completion_request};
pub use messages::chat_fields;
pub use response::response_request;

use crate::error::ApiError;
use crate::state::{AppState, random_u64};
use crate::wire::chat::{ChatFields, StreamOptions, ToolChoiceField, ToolChoiceMode};
use crate::wire::sampling::SamplingFields;
use crate::wire::thinking::{Thinking, ThinkingFields};
use hybra_chat::{ChatInput, Prompt};
use hybra_engine::{GenerationRequest, SamplingParams};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A chat request that passed all checks.
pub struct ChatRequest {
    /// One for each choice: the same prompt, each with its own seed.
    pub requests: Vec<GenerationRequest>,
    /// What was said, for the next turn.
    pub input: ChatInput,
    /// The reply comes piece by piece.
    pub stream: bool,
    /// A last chunk says the usage.
    pub include_usage: bool,
    /// The stream tells how much of the prompt was read.
    pub progress: bool,
    /// The text of the thinking is left out.
    pub hidden: bool,
    /// The text of the thinking is spelled `reasoning`, too.
    pub short_name: bool,
    /// Thinking may be ended by another request.
    pub control: bool,
    /// Fields that had no effect.
    pub warnings: Vec<String>,
}

impl ChatRequest {
    /// Whether log-probabilities were asked for.
    #[must_use]
    pub fn logprobs(&self) -> bool {
        self.requests[0].sampling.logprobs.is_some()
    }
}

/// Checks a chat request. Templates and grammars take their time: other requests go on beside it.
///
/// # Errors
/// Every defect, with the name of its field.
pub fn chat_request(
    state: &AppState,
    chat: ChatFields,
    sampling: SamplingFields,
    thinking: ThinkingFields,
) -> Result<ChatRequest, ApiError> {
    tokio::task::block_in_place(|| checked(state, chat, sampling, thinking))
}

fn checked(
    state: &AppState,
    chat: ChatFields,
    sampling: SamplingFields,
    thinking: ThinkingFields,
) -> Result<ChatRequest, ApiError> {
    state.check_model(chat.model.as_deref())?;
    let warnings = warnings(&chat)?;
    let thinking = thinking.resolve()?;
    let max_tokens = max_tokens(&chat)?;
    let logprobs = logprobs(&chat)?;
    let stream = chat.stream.unwrap_or(false);
    check_stream_options(chat.stream, chat.stream_options)?;
    let include_usage = chat.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
    let progress = chat.return_progress.unwrap_or(false);
    let constraint = format::constraint(state, &chat)?;
    let input = input(chat, thinking.kwargs.clone())?;
    let prompt = state.model.chat_prompt(&input, &thinking.params)?;
    let params =
        sampling.params(&state.model.defaults, prompt.is_thinking(), max_tokens, logprobs)?;
    let (hidden, short_name, control) = (thinking.hidden, thinking.short_name, thinking.control);
    let mut requests = choices(state, prompt, params, thinking, &sampling)?;
    requests.iter_mut().for_each(|request| request.constraint.clone_from(&constraint));
    Ok(ChatRequest {
        requests,
        input,
        stream,
        include_usage,
        progress,
        hidden,
        short_name,
        control,
        warnings,
    })
}

/// The requests of all choices.
///
/// # Errors
/// A request that the model cannot serve.
pub fn choices(
    state: &AppState,
    prompt: Prompt,
    params: SamplingParams,
    thinking: Thinking,
    sampling: &SamplingFields,
) -> Result<Vec<GenerationRequest>, ApiError> {
    let message = thinking.message.as_deref();
    let mut request = state.model.request(prompt, params, thinking.params, message)?;
    request.priority = sampling.priority.unwrap_or(0);
    request.cache_salt = sampling.cache_salt.as_ref().map_or(0, |salt| hash(salt));
    let seed = request.sampling.seed.unwrap_or_else(random_u64);
    let choice = |index: u32| {
        let mut request = request.clone();
        request.sampling.seed = Some(seed.wrapping_add(u64::from(index)));
        request
    };
    Ok((0..sampling.num_choices()?).map(choice).collect())
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn input(chat: ChatFields, kwargs: serde_json::Map<String, Value>) -> Result<ChatInput, ApiError> {
    if chat.messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: expected at least one message"));
    }
    let none = matches!(chat.tool_choice, Some(ToolChoiceField::Mode(ToolChoiceMode::None)));
    let tools = chat.tools.filter(|_| !none).unwrap_or_default();
    let tools = tools.iter().map(|tool| serde_json::json!(tool)).collect();
    Ok(ChatInput {
        messages: chat.messages.into_iter().map(|m| m.into_message()).collect(),
        tools,
        continue_final_message: chat.continue_final_message.unwrap_or(false),
        kwargs,
    })
}

fn check_stream_options(
    stream: Option<bool>,
    options: Option<StreamOptions>,
) -> Result<(), ApiError> {
    if options.is_some() && stream != Some(true) {
        let message = "stream_options: expected only together with stream: true";
        return Err(ApiError::invalid("stream_options", message));
    }
    Ok(())
}

fn max_tokens(chat: &ChatFields) -> Result<Option<u32>, ApiError> {
    match (chat.max_tokens, chat.max_completion_tokens) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("max_tokens {a} contradicts max_completion_tokens {b}");
            Err(ApiError::invalid("max_completion_tokens", message))
        }
        (a, b) => Ok(a.or(b)),
    }
}

fn logprobs(chat: &ChatFields) -> Result<Option<u32>, ApiError> {
    match (chat.logprobs.unwrap_or(false), chat.top_logprobs) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs: expected only together with logprobs: true";
            Err(ApiError::invalid("top_logprobs", message))
        }
    }
}

/// Fields that have no effect here are named; one that asks for what cannot be had is an error.
fn warnings(chat: &ChatFields) -> Result<Vec<String>, ApiError> {
    if chat.store == Some(true) {
        return Err(ApiError::unsupported("store", "replies are not stored"));
    }
    let idle = [
        ("user", chat.user.is_some()),
        ("metadata", chat.metadata.is_some()),
        ("safety_identifier", chat.safety_identifier.is_some()),
        ("prompt_cache_key", chat.prompt_cache_key.is_some()),
    ];
    let named = idle.into_iter().filter(|(_, given)| *given);
    Ok(named.map(|(name, _)| format!("{name} has no effect")).collect())
}
