//! `POST /v1/responses`, whole and streamed; nothing is stored.
//!
//! Invariant: the items of a streamed reply, as its `output_item.done` events give them, are the
//! output of the whole one.

use crate::choice::{Choice, Kind, Piece, Shown};
use crate::choices::{Choices, Growth};
use crate::error::ApiError;
use crate::json::{self, Body};
use crate::sse::{self, Sender};
use crate::state::{AppState, new_id, unix_seconds};
use crate::validate::{ChatRequest, response_request};
use crate::warm;
use crate::wire::chat::ToolChoiceMode;
use crate::wire::response_object::{
    EventBody, IncompleteDetails, OutputItem, OutputPart, ResponseError, ResponseEvent,
    ResponseObject,
};
use crate::wire::responses::{ResponsesFields, ResponsesToolChoice, TextField, TextFormat};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// The handler.
///
/// # Errors
/// A request that cannot be served, in OpenAI's form.
pub async fn responses(
    State(state): State<Arc<AppState>>,
    Body(mut body): Body,
) -> Result<Response, ApiError> {
    let fields: ResponsesFields = json::take(&mut body)?;
    let (sampling, thinking) = (json::take(&mut body)?, json::take(&mut body)?);
    json::finish(&body)?;
    let request = response_request(&state, &fields, sampling, thinking)?;
    let stream = fields.stream.unwrap_or(false);
    let reply = empty(&state, &request, fields);
    let control = request.control.then_some(reply.id.as_str());
    let shown = Shown { hidden: request.hidden, raw: false };
    let mut choices = Choices::start(&state, request.requests.clone(), 1, shown, control).await?;
    if stream {
        return Ok(sse::response(state.config.keep_alive, move |sender| {
            Stream { sender, state, request, reply, sequence_number: 0, open: None }.run(choices)
        }));
    }
    choices.wait().await?;
    warm::next_turn(&state, &request, &choices.list);
    Ok(Json(ended(reply, &choices)).into_response())
}

fn empty(state: &AppState, request: &ChatRequest, fields: ResponsesFields) -> ResponseObject {
    let auto = ResponsesToolChoice::Mode(ToolChoiceMode::Auto);
    let text = fields.text.unwrap_or_default();
    let format = Some(text.format.unwrap_or(TextFormat::Text {}));
    let sampling = &request.requests[0].sampling;
    ResponseObject {
        id: new_id("resp_"),
        object: "response",
        created_at: unix_seconds(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: fields.instructions,
        max_output_tokens: fields.max_output_tokens,
        model: state.model.name.clone(),
        output: Vec::new(),
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
        previous_response_id: None,
        store: false,
        background: false,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        text: TextField { format, verbosity: text.verbosity },
        tool_choice: fields.tool_choice.unwrap_or(auto),
        tools: fields.tools.unwrap_or_default(),
        truncation: "disabled",
        metadata: fields.metadata.unwrap_or_default(),
        usage: None,
        reasoning_budget: None,
        warnings: request.warnings.clone(),
    }
}

/// The reply of a choice that has ended.
fn ended(reply: ResponseObject, choices: &Choices) -> ResponseObject {
    let choice = &choices.list[0];
    let cut = choice.finish_reason() == "length";
    ResponseObject {
        status: if cut { "incomplete" } else { "completed" },
        incomplete_details: cut.then_some(IncompleteDetails { reason: "max_output_tokens" }),
        output: output(&reply.id, choice, cut),
        usage: Some((&choices.usage()).into()),
        reasoning_budget: choice.end.as_ref().map(|end| end.budget),
        ..reply
    }
}

fn output(id: &str, choice: &Choice, cut: bool) -> Vec<OutputItem> {
    let last = choice.segments.len().saturating_sub(1);
    let item = |(i, segment): (usize, &Piece)| {
        let status = if cut && i == last { "incomplete" } else { "completed" };
        item(id, i, segment, status)
    };
    choice.segments.iter().enumerate().map(item).collect()
}

/// The name of an item: that of the reply, with the item's kind and place.
fn item_id(id: &str, index: usize, kind: Kind) -> String {
    let prefix = match kind {
        Kind::Reasoning => "rs",
        Kind::Content => "msg",
        Kind::Call(_) => "fc",
    };
    format!("{prefix}_{}_{index}", id.trim_start_matches("resp_"))
}

fn item(id: &str, index: usize, segment: &Piece, status: &'static str) -> OutputItem {
    let id = item_id(id, index, segment.kind);
    // An item without text has no part yet.
    let content = || Some(part(segment)).filter(|_| !segment.text.is_empty()).into_iter().collect();
    match (segment.kind, &segment.head) {
        (Kind::Reasoning, _) => {
            OutputItem::Reasoning { id, summary: Vec::new(), content: content(), status }
        }
        (Kind::Call(_), Some(head)) => OutputItem::FunctionCall {
            id,
            call_id: head.id.clone(),
            name: head.name.clone(),
            arguments: segment.text.clone(),
            status,
        },
        _ => OutputItem::Message { id, role: "assistant", content: content(), status },
    }
}

fn part(segment: &Piece) -> OutputPart {
    let text = segment.text.clone();
    match segment.kind {
        Kind::Reasoning => OutputPart::ReasoningText { text },
        _ => OutputPart::OutputText { text, annotations: Vec::new(), logprobs: Vec::new() },
    }
}

/// A reply that is sent piece by piece.
struct Stream {
    sender: Sender,
    state: Arc<AppState>,
    request: ChatRequest,
    reply: ResponseObject,
    sequence_number: u64,
    /// The item that grows, and its place.
    open: Option<(usize, Kind)>,
}

impl Stream {
    async fn run(mut self, mut choices: Choices) -> Result<(), ApiError> {
        self.response("response.created", self.reply.clone()).await?;
        self.response("response.in_progress", self.reply.clone()).await?;
        if let Err(error) = self.items(&mut choices).await {
            let error = Some(ResponseError { code: "server_error", message: error.to_string() });
            let failed = ResponseObject { status: "failed", error, ..self.reply.clone() };
            return self.response("response.failed", failed).await;
        }
        // Before the last event, at which clients go away.
        warm::next_turn(&self.state, &self.request, &choices.list);
        let reply = ended(self.reply.clone(), &choices);
        let kind = match reply.status {
            "incomplete" => "response.incomplete",
            _ => "response.completed",
        };
        self.response(kind, reply).await
    }

    async fn items(&mut self, choices: &mut Choices) -> Result<(), ApiError> {
        while let Some((_, growth)) = choices.next().await? {
            let Growth::Text(pieces) = growth else { continue };
            let choice = &choices.list[0];
            for piece in pieces {
                if self.open.is_none_or(|(_, kind)| kind != piece.kind) {
                    self.close(choice, false).await?;
                    self.add(&piece).await?;
                }
                self.delta(piece).await?;
            }
        }
        let choice = &choices.list[0];
        self.close(choice, choice.finish_reason() == "length").await
    }

    /// A new item begins.
    async fn add(&mut self, piece: &Piece) -> Result<(), ApiError> {
        let output_index = self.next_index();
        self.open = Some((output_index, piece.kind));
        let empty = Piece { text: String::new(), ..piece.clone() };
        let added = item(&self.reply.id, output_index, &empty, "in_progress");
        let body = EventBody::Item { output_index, item: added };
        self.send("response.output_item.added", body).await?;
        if matches!(piece.kind, Kind::Call(_)) {
            return Ok(());
        }
        self.part("response.content_part.added", output_index, &empty).await
    }

    async fn delta(&mut self, piece: Piece) -> Result<(), ApiError> {
        let (output_index, _) = self.open.expect("an item was opened");
        let (kind, content_index, logprobs) = match piece.kind {
            Kind::Reasoning => ("response.reasoning_text.delta", Some(0), None),
            Kind::Content => ("response.output_text.delta", Some(0), Some([])),
            Kind::Call(_) => ("response.function_call_arguments.delta", None, None),
        };
        let item_id = item_id(&self.reply.id, output_index, piece.kind);
        let delta = piece.text;
        let body = EventBody::Delta { item_id, output_index, content_index, delta, logprobs };
        self.send(kind, body).await
    }

    /// The open item has all of its text. `cut`: and more was to come.
    async fn close(&mut self, choice: &Choice, cut: bool) -> Result<(), ApiError> {
        let Some((output_index, kind)) = self.open else { return Ok(()) };
        let segment = &choice.segments[output_index];
        let item_id = item_id(&self.reply.id, output_index, kind);
        let text = segment.text.clone();
        match (kind, &segment.head) {
            (Kind::Call(_), Some(head)) => {
                let (name, arguments) = (head.name.clone(), text);
                let body = EventBody::CallDone { item_id, output_index, name, arguments };
                self.send("response.function_call_arguments.done", body).await?;
            }
            _ => {
                let (kind, logprobs) = match kind {
                    Kind::Reasoning => ("response.reasoning_text.done", None),
                    _ => ("response.output_text.done", Some([])),
                };
                let content_index = 0;
                let body =
                    EventBody::TextDone { item_id, output_index, content_index, text, logprobs };
                self.send(kind, body).await?;
                self.part("response.content_part.done", output_index, segment).await?;
            }
        }
        let status = if cut { "incomplete" } else { "completed" };
        let done = item(&self.reply.id, output_index, segment, status);
        self.reply.output.push(done.clone());
        let body = EventBody::Item { output_index, item: done };
        self.send("response.output_item.done", body).await
    }

    fn next_index(&self) -> usize {
        self.open.map_or(0, |(index, _)| index + 1)
    }

    async fn part(
        &mut self,
        kind: &'static str,
        output_index: usize,
        segment: &Piece,
    ) -> Result<(), ApiError> {
        let item_id = item_id(&self.reply.id, output_index, segment.kind);
        let (content_index, part) = (0, part(segment));
        self.send(kind, EventBody::Part { item_id, output_index, content_index, part }).await
    }

    async fn response(&mut self, kind: &'static str, now: ResponseObject) -> Result<(), ApiError> {
        self.send(kind, EventBody::Response { response: Box::new(now) }).await
    }

    async fn send(&mut self, kind: &'static str, body: EventBody) -> Result<(), ApiError> {
        let sequence_number = self.sequence_number;
        self.sequence_number += 1;
        self.sender.named(kind, &ResponseEvent { kind, sequence_number, body }).await
    }
}
