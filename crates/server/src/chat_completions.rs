//! `POST /v1/chat/completions`, whole and streamed.

use crate::choice::{Choice, Piece};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::json::{self, Body};
use crate::sse::{self, Sender};
use crate::state::{AppState, new_id, unix_seconds};
use crate::validate::{ChatRequest, chat_request};
use crate::wire::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice, Delta,
    FunctionCall, FunctionDelta, PromptProgress, ToolCall, ToolCallDelta,
};
use crate::wire::usage::Usage;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hybra_engine::{Event, FinishReason};
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
    let generation = Generation::start(&state, request.requests.clone(), control).await?;
    let chat = Chat { id, created: unix_seconds(), state, request };
    if chat.request.stream {
        let keep_alive = chat.state.config.keep_alive;
        return Ok(sse::response(keep_alive, move |sender| chat.stream(generation, sender)));
    }
    Ok(Json(chat.whole(generation).await?).into_response())
}

/// One request on its way to a reply.
struct Chat {
    id: String,
    created: u64,
    state: Arc<AppState>,
    request: ChatRequest,
}

impl Chat {
    async fn whole(self, mut generation: Generation) -> Result<ChatCompletion, ApiError> {
        let mut choices: Vec<_> = self.request.requests.iter().map(Choice::new).collect();
        let mut usage = Usage::default();
        while let Some(happened) = generation.next().await? {
            let choice = &mut choices[happened.choice];
            match happened.event {
                Event::Prefill { .. } => {}
                Event::Token(token) => drop(choice.token(&token, &self.state.model)),
                Event::Finish(end) => {
                    usage.add(&end);
                    failure(&end.reason, end.error.as_deref())?;
                    choice.finish(end);
                }
            }
        }
        let choices = choices.into_iter().enumerate().map(|(i, choice)| self.choice(i, choice));
        Ok(ChatCompletion {
            choices: choices.collect(),
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
        let Choice { reasoning, content, calls, logprobs, end, .. } = choice;
        let reasoning = Some(reasoning).filter(|r| !r.is_empty() && !self.request.hidden);
        let call = |call: crate::choice::Call| ToolCall {
            id: call.id,
            kind: "function",
            function: FunctionCall { name: call.name, arguments: call.arguments },
        };
        let calls: Vec<_> = calls.into_iter().map(call).collect();
        let message = AssistantMessage {
            role: "assistant",
            content: Some(content).filter(|text| !text.is_empty() || calls.is_empty()),
            refusal: None,
            reasoning: reasoning.clone().filter(|_| self.request.short_name),
            reasoning_content: reasoning,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
        };
        ChatChoice {
            index: index as u32,
            message,
            logprobs: self.request.logprobs().then_some(ChatLogprobs { content: logprobs }),
            finish_reason,
            stop_reason,
            reasoning_budget: end.expect("every choice has ended").budget,
        }
    }

    async fn stream(self, mut generation: Generation, sender: Sender) -> Result<(), ApiError> {
        let mut choices: Vec<_> = self.request.requests.iter().map(Choice::new).collect();
        let mut usage = Usage::default();
        for index in 0..choices.len() {
            let first =
                Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            let mut chunk = self.chunk(index, first);
            if index == 0 {
                chunk.warnings.clone_from(&self.request.warnings);
            }
            sender.json(&chunk).await?;
        }
        while let Some(happened) = generation.next().await? {
            let (index, choice) = (happened.choice, &mut choices[happened.choice]);
            let pieces = match happened.event {
                Event::Prefill { done, total, .. } => {
                    if self.request.progress && index == 0 {
                        sender.json(&self.progress(done, total, 0)).await?;
                    }
                    continue;
                }
                Event::Token(token) => choice.token(&token, &self.state.model),
                Event::Finish(end) => {
                    usage.add(&end);
                    failure(&end.reason, end.error.as_deref())?;
                    choice.finish(end)
                }
            };
            for piece in pieces {
                if let Some(delta) = self.delta(piece) {
                    let mut chunk = self.chunk(index, delta);
                    self.attach_logprobs(&mut chunk, choice);
                    sender.json(&chunk).await?;
                }
            }
            if choice.end.is_some() {
                sender.json(&self.last(index, choice)).await?;
            }
        }
        if self.request.include_usage {
            let mut chunk = self.chunk(0, Delta::default());
            chunk.choices.clear();
            chunk.usage = Some(usage);
            sender.json(&chunk).await?;
        }
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

    fn delta(&self, piece: Piece) -> Option<Delta> {
        let none = Delta::default();
        Some(match piece {
            Piece::Reasoning(_) if self.request.hidden => return None,
            Piece::Reasoning(text) => Delta {
                reasoning: Some(text.clone()).filter(|_| self.request.short_name),
                reasoning_content: Some(text),
                ..none
            },
            Piece::Content(text) => Delta { content: Some(text), ..none },
            Piece::Tool(piece) => {
                let (id, name) = piece.head.unzip();
                let function = FunctionDelta { name, arguments: piece.arguments };
                let kind = id.as_ref().map(|_| "function");
                let delta = ToolCallDelta { index: piece.index, id, kind, function };
                Delta { tool_calls: Some(vec![delta]), ..none }
            }
        })
    }
}

/// A choice that failed fails its request.
///
/// # Errors
/// It failed, or was cancelled by the server.
pub fn failure(reason: &FinishReason, error: Option<&str>) -> Result<(), ApiError> {
    let message = match reason {
        FinishReason::Failed => error.unwrap_or("generation failed"),
        FinishReason::Cancelled => "the reply was cancelled by the server",
        FinishReason::Stop | FinishReason::Length => return Ok(()),
    };
    Err(ApiError::Internal { message: message.to_owned() })
}
