//! `POST /v1/messages`, whole and streamed, and `POST /v1/messages/count_tokens`.

use crate::choice::{Choice, Kind, Piece, Shown};
use crate::choices::{Choices, Growth};
use crate::error::ApiError;
use crate::json::{self, Body};
use crate::sse::{self, Sender};
use crate::state::{AppState, new_id};
use crate::validate::{ChatRequest, chat_fields, chat_request};
use crate::warm;
use crate::wire::messages::{
    BlockDelta, ContentBlock, InputTokens, MessageEnd, MessageEvent, MessageObject, MessageUsage,
    MessagesFields, MessagesGeneration,
};
use crate::wire::sampling::{SamplingFields, StopField};
use crate::wire::thinking::ThinkingFields;
use crate::wire::usage::Usage;
use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// `POST /v1/messages`; its errors have Anthropic's form.
pub async fn messages(
    State(state): State<Arc<AppState>>,
    body: Result<Body, ApiError>,
) -> Response {
    reply(state, body).await.unwrap_or_else(ApiError::into_anthropic)
}

/// `POST /v1/messages/count_tokens`; its errors have Anthropic's form.
pub async fn count_tokens(
    State(state): State<Arc<AppState>>,
    body: Result<Body, ApiError>,
) -> Response {
    let count = body.and_then(|Body(mut body)| {
        let fields: MessagesFields = json::take(&mut body)?;
        let thinking = with_effort(json::take(&mut body)?, &fields)?;
        json::finish(&body)?;
        let request =
            chat_request(&state, chat_fields(fields)?, SamplingFields::default(), thinking)?;
        Ok(Json(InputTokens { input_tokens: request.requests[0].prompt.len() }))
    });
    count.map_or_else(ApiError::into_anthropic, IntoResponse::into_response)
}

async fn reply(state: Arc<AppState>, body: Result<Body, ApiError>) -> Result<Response, ApiError> {
    let Body(body) = body?;
    let (stream, request) = request(&state, body)?;
    let id = new_id("msg_");
    let control = request.control.then_some(id.as_str());
    let shown = Shown { hidden: request.hidden, raw: false };
    let choices = Choices::start(&state, request.requests.clone(), 1, shown, control).await?;
    let job = Job { id, state, request };
    if stream {
        let keep_alive = job.state.config.keep_alive;
        return Ok(sse::response_with(
            keep_alive,
            move |sender| job.stream(choices, sender),
            |error| {
                let event = Event::default().event("error").json_data(error.anthropic_body());
                event.unwrap_or_default()
            },
        ));
    }
    Ok(Json(job.whole(choices).await?).into_response())
}

fn request(
    state: &AppState,
    mut body: Map<String, Value>,
) -> Result<(bool, ChatRequest), ApiError> {
    let fields: MessagesFields = json::take(&mut body)?;
    let own: MessagesGeneration = json::take(&mut body)?;
    let mut sampling: SamplingFields = json::take(&mut body)?;
    let thinking = with_effort(json::take(&mut body)?, &fields)?;
    json::finish(&body)?;
    if sampling.n.is_some_and(|n| n != 1) {
        return Err(ApiError::unsupported("n", "this endpoint gives one reply"));
    }
    if let Some(stops) = own.stop_sequences {
        if sampling.stop.is_some() {
            let message = "stop: give either stop or stop_sequences";
            return Err(ApiError::invalid("stop", message));
        }
        sampling.stop = Some(StopField::Many(stops));
    }
    let mut chat = chat_fields(fields)?;
    chat.max_tokens = Some(own.max_tokens);
    chat.metadata = own.metadata;
    let mut request = chat_request(state, chat, sampling, thinking)?;
    request.warnings.extend(own.service_tier.map(|_| "service_tier has no effect".to_owned()));
    Ok((own.stream.unwrap_or(false), request))
}

/// `output_config.effort` is one more spelling of the effort.
fn with_effort(
    mut thinking: ThinkingFields,
    fields: &MessagesFields,
) -> Result<ThinkingFields, ApiError> {
    let effort = fields.output_config.as_ref().and_then(|config| config.effort.clone());
    if let (Some(own), Some(other)) = (&effort, &thinking.reasoning_effort)
        && own != other
    {
        let message = "output_config.effort contradicts reasoning_effort";
        return Err(ApiError::invalid("output_config.effort", message));
    }
    thinking.reasoning_effort = effort.or(thinking.reasoning_effort);
    Ok(thinking)
}

/// One request on its way to a reply.
struct Job {
    id: String,
    state: Arc<AppState>,
    request: ChatRequest,
}

impl Job {
    async fn whole(self, mut choices: Choices) -> Result<MessageObject, ApiError> {
        choices.wait().await?;
        warm::next_turn(&self.state, &self.request, &choices.list);
        let usage = usage(&choices.usage());
        let choice = choices.list.remove(0);
        let end = end(&choice);
        Ok(MessageObject {
            content: choice.segments.into_iter().map(block).collect(),
            stop_reason: Some(end.stop_reason),
            stop_sequence: end.stop_sequence,
            reasoning_budget: end.reasoning_budget,
            ..self.empty(usage)
        })
    }

    async fn stream(self, mut choices: Choices, sender: Sender) -> Result<(), ApiError> {
        let prompt_tokens = self.request.requests[0].prompt.len();
        let usage_before = usage(&Usage { prompt_tokens, ..Usage::default() });
        send(&sender, MessageEvent::MessageStart { message: self.empty(usage_before) }).await?;
        send(&sender, MessageEvent::Ping).await?;
        let mut blocks = Blocks { sender: &sender, open: None, index: 0 };
        while let Some((_, growth)) = choices.next().await? {
            let Growth::Text(pieces) = growth else { continue };
            for piece in pieces {
                blocks.add(piece).await?;
            }
        }
        blocks.close().await?;
        warm::next_turn(&self.state, &self.request, &choices.list);
        let (delta, usage) = (end(&choices.list[0]), usage(&choices.usage()));
        send(&sender, MessageEvent::MessageDelta { delta, usage }).await?;
        send(&sender, MessageEvent::MessageStop).await
    }

    fn empty(&self, usage: MessageUsage) -> MessageObject {
        MessageObject {
            id: self.id.clone(),
            kind: "message",
            role: "assistant",
            model: self.state.model.name.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
            reasoning_budget: None,
            warnings: self.request.warnings.clone(),
        }
    }
}

/// The blocks of a stream: one is open at a time.
struct Blocks<'a> {
    sender: &'a Sender,
    open: Option<Kind>,
    index: usize,
}

impl Blocks<'_> {
    async fn add(&mut self, piece: Piece) -> Result<(), ApiError> {
        if self.open != Some(piece.kind) {
            self.close().await?;
            self.open = Some(piece.kind);
            let content_block = block(Piece { text: String::new(), ..piece.clone() });
            let index = self.index;
            send(self.sender, MessageEvent::ContentBlockStart { index, content_block }).await?;
        }
        let index = self.index;
        let delta = match piece.kind {
            Kind::Content => BlockDelta::TextDelta { text: piece.text },
            Kind::Reasoning => BlockDelta::ThinkingDelta { thinking: piece.text },
            Kind::Call(_) => BlockDelta::InputJsonDelta { partial_json: piece.text },
        };
        send(self.sender, MessageEvent::ContentBlockDelta { index, delta }).await
    }

    async fn close(&mut self) -> Result<(), ApiError> {
        if self.open.take().is_some() {
            let index = self.index;
            self.index += 1;
            send(self.sender, MessageEvent::ContentBlockStop { index }).await?;
        }
        Ok(())
    }
}

async fn send(sender: &Sender, event: MessageEvent) -> Result<(), ApiError> {
    sender.named(event.name(), &event).await
}

fn block(segment: Piece) -> ContentBlock {
    match (segment.kind, segment.head) {
        (Kind::Reasoning, _) => ContentBlock::Thinking { thinking: segment.text, signature: "" },
        (Kind::Call(_), Some(head)) => {
            let input = match segment.text.as_str() {
                "" => json!({}),
                text => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
            };
            ContentBlock::ToolUse { id: head.id, name: head.name, input }
        }
        _ => ContentBlock::Text { text: segment.text },
    }
}

fn end(choice: &Choice) -> MessageEnd {
    let stop_sequence = choice.stop_reason();
    let stop_reason = match choice.finish_reason() {
        "tool_calls" => "tool_use",
        "length" => "max_tokens",
        _ if stop_sequence.is_some() => "stop_sequence",
        _ => "end_turn",
    };
    let reasoning_budget = choice.end.as_ref().map(|end| end.budget);
    MessageEnd { stop_reason, stop_sequence, reasoning_budget }
}

fn usage(usage: &Usage) -> MessageUsage {
    let cached = usage.prompt_tokens_details.cached_tokens;
    MessageUsage {
        input_tokens: usage.prompt_tokens - cached,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: cached,
        output_tokens: usage.completion_tokens,
    }
}
