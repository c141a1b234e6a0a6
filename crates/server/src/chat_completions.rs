//! `POST /v1/chat/completions`, whole and streamed.

use crate::choice::{Choice, Kind, Piece, Shown};
use crate::choices::{Choices, Growth};
use crate::error::ApiError;
use crate::json::{self, Body};
use crate::sse::{self, Sender};
use crate::state::{AppState, new_id, unix_seconds};
use crate::validate::{ChatRequest, chat_request};
use crate::warm;
use crate::wire::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice, Delta,
    FunctionCall, FunctionDelta, PromptProgress, ToolCall, ToolCallDelta,
};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// The handler.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn chat_completions(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Response, ApiError> {
    let request = chat_request(
        &state,
        json::take(&mut body)?,
        json::take(&mut body)?,
        json::take(&mut body)?,
    );
    json::finish(&body)?;
    let request = request?;
    let id = new_id("chatcmpl-");
    let control = request.control.then_some(id.as_str());
    let (requests, n) = (request.requests.clone(), request.requests.len());
    let shown = Shown { hidden: request.hidden, raw: false };
    let choices = Choices::start(&state, requests, n, shown, control).await?;
    let chat = Chat { id, created: unix_seconds(), state, request };
    if chat.request.stream {
        let keep_alive = chat.state.config.keep_alive;
        return Ok(sse::response(keep_alive, move |sender| chat.stream(choices, sender)));
    }
    Ok(Json(chat.whole(choices).await?).into_response())
}

/// One request on its way to a reply.
struct Chat {
    id: String,
    created: u64,
    state: Arc<AppState>,
    request: ChatRequest,
}

impl Chat {
    async fn whole(self, mut choices: Choices) -> Result<ChatCompletion, ApiError> {
        choices.wait().await?;
        warm::next_turn(&self.state, &self.request, &choices.list);
        let usage = choices.usage();
        let choices = choices.list.into_iter().enumerate();
        Ok(ChatCompletion {
            choices: choices.map(|(i, choice)| self.choice(i, choice)).collect(),
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.state.model.name.clone(),
            usage,
            warnings: self.request.warnings.clone(),
        })
    }

    fn choice(&self, index: usize, choice: Choice) -> ChatChoice {
        let (finish_reason, stop_reason) = (choice.finish_reason(), choice.stop_reason());
        let content = choice.text(Kind::Content);
        let reasoning = Some(choice.text(Kind::Reasoning)).filter(|text| !text.is_empty());
        let call = |segment: Piece| {
            let head = segment.head?;
            let function = FunctionCall { name: head.name, arguments: segment.text };
            Some(ToolCall { id: head.id, kind: "function", function })
        };
        let calls: Vec<_> = choice.segments.into_iter().filter_map(call).collect();
        let message = AssistantMessage {
            role: "assistant",
            content: Some(content).filter(|text| !text.is_empty() || calls.is_empty()),
            refusal: None,
            reasoning: reasoning.clone().filter(|_| self.request.short_name),
            reasoning_content: reasoning,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
        };
        let logprobs = ChatLogprobs { content: choice.logprobs };
        ChatChoice {
            index: index as u32,
            message,
            logprobs: self.request.logprobs().then_some(logprobs),
            finish_reason,
            stop_reason,
            reasoning_budget: choice.end.expect("every choice has ended").budget,
        }
    }

    async fn stream(self, mut choices: Choices, sender: Sender) -> Result<(), ApiError> {
        for index in 0..choices.list.len() {
            let first =
                Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            let mut chunk = self.chunk(index, first);
            if index == 0 {
                chunk.warnings.clone_from(&self.request.warnings);
            }
            sender.json(&chunk).await?;
        }
        while let Some((index, growth)) = choices.next().await? {
            let choice = &mut choices.list[index];
            let pieces = match growth {
                Growth::Prefill { done, total, cached } => {
                    if self.request.progress && index == 0 {
                        sender.json(&self.progress(done, total, cached)).await?;
                    }
                    continue;
                }
                Growth::Text(pieces) => pieces,
            };
            for piece in pieces {
                let mut chunk = self.chunk(index, self.delta(piece));
                self.attach_logprobs(&mut chunk, choice);
                sender.json(&chunk).await?;
            }
            if choice.end.is_some() {
                sender.json(&self.last(index, choice)).await?;
            }
        }
        if self.request.include_usage {
            let mut chunk = self.chunk(0, Delta::default());
            chunk.choices.clear();
            chunk.usage = Some(choices.usage());
            sender.json(&chunk).await?;
        }
        warm::next_turn(&self.state, &self.request, &choices.list);
        sender.done().await
    }

    /// The tokens since the last piece.
    fn attach_logprobs(&self, chunk: &mut ChatChunk, choice: &mut Choice) {
        if self.request.logprobs() {
            let content = std::mem::take(&mut choice.logprobs);
            chunk.choices[0].logprobs = Some(ChatLogprobs { content });
        }
    }

    fn last(&self, index: usize, choice: &mut Choice) -> ChatChunk {
        let mut chunk = self.chunk(index, Delta::default());
        if !choice.logprobs.is_empty() {
            self.attach_logprobs(&mut chunk, choice);
        }
        chunk.choices[0].finish_reason = Some(choice.finish_reason());
        chunk.choices[0].stop_reason = choice.stop_reason();
        chunk.choices[0].reasoning_budget = choice.end.as_ref().map(|end| end.budget);
        chunk
    }

    fn chunk(&self, index: usize, delta: Delta) -> ChatChunk {
        let choice = ChunkChoice {
            index: index as u32,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            reasoning_budget: None,
        };
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.state.model.name.clone(),
            choices: vec![choice],
            usage: None,
            prompt_progress: None,
            warnings: Vec::new(),
        }
    }

    fn progress(&self, processed: usize, total: usize, cache: usize) -> ChatChunk {
        let mut chunk = self.chunk(0, Delta::default());
        chunk.choices.clear();
        chunk.prompt_progress = Some(PromptProgress { total, cache, processed });
        chunk
    }

    fn delta(&self, piece: Piece) -> Delta {
        let (none, text) = (Delta::default(), piece.text);
        match piece.kind {
            Kind::Reasoning => Delta {
                reasoning: Some(text.clone()).filter(|_| self.request.short_name),
                reasoning_content: Some(text),
                ..none
            },
            Kind::Content => Delta { content: Some(text), ..none },
            Kind::Call(index) => {
                let (id, name) = piece.head.map(|head| (head.id, head.name)).unzip();
                let function = FunctionDelta { name, arguments: text };
                let kind = id.as_ref().map(|_| "function");
                let delta = ToolCallDelta { index, id, kind, function };
                Delta { tool_calls: Some(vec![delta]), ..none }
            }
        }
    }
}
