//! Reads a reply into the cache after it was sent, so that the next turn starts behind it.
//!
//! Templates drop old thinking, so the next prompt departs from what was generated. What it will
//! begin with is known all the same: the conversation with the answer, up to where the next
//! message's own text begins. Two prompts that differ in that text only agree exactly that far.

use crate::choice::{Choice, Kind};
use crate::state::AppState;
use crate::validate::ChatRequest;
use hybra_chat::{ChatInput, ChatModel};
use hybra_engine::ThinkingParams;
use hybra_tokenizer::Message;
use serde_json::json;
use std::sync::Arc;

/// Texts of a next message; their first tokens differ.
const NEXT: [&str; 2] = ["a", "7"];

/// Has the conversation of a request, continued by the one choice of its reply, read in idle time.
pub fn next_turn(state: &Arc<AppState>, request: &ChatRequest, choices: &[Choice]) {
    let [choice] = choices else { return };
    let complete = matches!(choice.finish_reason(), "stop" | "tool_calls");
    if !state.config.warm || !complete || request.input.continue_final_message {
        return;
    }
    let mut input = request.input.clone();
    input.messages.push(message(choice));
    let (thinking, salt) = (request.requests[0].thinking.clone(), request.requests[0].cache_salt);
    let state = Arc::clone(state);
    // Rendering takes its time, and nobody waits for it.
    tokio::task::spawn_blocking(move || {
        if let Some(tokens) = common_prefix(&state.model, &input, &thinking) {
            tracing::debug!(tokens = tokens.len(), "a prompt to read in idle time");
            state.engine.warm(tokens, salt);
        }
    });
}

/// The reply as a client sends it back.
fn message(choice: &Choice) -> Message {
    let calls = choice.segments.iter().filter_map(|piece| {
        let head = piece.head.as_ref()?;
        let function = json!({ "name": head.name, "arguments": piece.text });
        Some(json!({ "id": head.id, "type": "function", "function": function }))
    });
    Message {
        tool_calls: calls.collect(),
        ..Message::new("assistant", &choice.text(Kind::Content))
    }
}

/// What every next prompt begins with; `None` where the template refuses a next message.
fn common_prefix(
    model: &ChatModel,
    input: &ChatInput,
    thinking: &ThinkingParams,
) -> Option<Vec<u32>> {
    let called = input.messages.last().is_some_and(|reply| !reply.tool_calls.is_empty());
    let role = if called { "tool" } else { "user" };
    let [mut one, other] = NEXT.map(|text| {
        let mut input = input.clone();
        input.messages.push(Message::new(role, text));
        model.chat_prompt(&input, thinking).ok().map(|prompt| prompt.ids)
    });
    let (one, other) = (one.as_mut()?, other?);
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    one.truncate(same);
    Some(std::mem::take(one))
}
