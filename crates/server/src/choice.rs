//! One choice of a reply: events become pieces of text, and what a finished choice says.
//!
//! Invariant: the pieces of a choice, joined, are the fields of its finished form; streamed and
//! whole replies are made of the same pieces.

use crate::wire::chat::{TokenLogprobs, TopLogprob};
use hybra_chat::{ChatModel, Reply};
use hybra_engine::{FinishEvent, FinishReason, GenerationRequest, Phase, TokenEvent};
use hybra_tokenizer::Tokenizer;
use serde_json::Value;

/// New text of a choice.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Of the thinking.
    Reasoning(String),
    /// Of the answer.
    Content(String),
    /// Of a call.
    Tool(ToolPiece),
}

/// New text of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolPiece {
    /// Which call.
    pub index: u32,
    /// Id and name, in its first piece.
    pub head: Option<(String, String)>,
    /// More of the arguments.
    pub arguments: String,
}

/// A call of a finished choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Unique.
    pub id: String,
    /// The function.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// A choice, growing token by token.
pub struct Choice {
    reply: Reply,
    stops: Vec<Vec<u8>>,
    /// Text of the thinking.
    pub reasoning: String,
    /// Text of the answer.
    pub content: String,
    /// Calls.
    pub calls: Vec<Call>,
    /// One entry per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// What the engine said at the end.
    pub end: Option<FinishEvent>,
}

impl Choice {
    /// A choice before its first token.
    #[must_use]
    pub fn new(request: &GenerationRequest) -> Self {
        let stops = request.sampling.stop.clone();
        Self {
            reply: Reply::new(&stops, request.thinking.stop_in_thinking),
            stops,
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            end: None,
        }
    }

    /// Takes a token; the text that it releases.
    pub fn token(&mut self, event: &TokenEvent, model: &ChatModel) -> Vec<Piece> {
        if let Some(logprob) = event.logprob {
            self.logprobs.push(token_logprobs(event, logprob, &model.tokenizer));
        }
        let mut pieces = Vec::new();
        let bytes = hybra_engine::TokenTable::bytes(&*model.table, event.token);
        self.reply.token(event, bytes, &mut |phase, text| text_piece(phase, text, &mut pieces));
        self.keep(&pieces);
        pieces
    }

    /// Takes the end; the text that was held back.
    pub fn finish(&mut self, end: FinishEvent) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.reply.finish(&end, &mut |phase, text| text_piece(phase, text, &mut pieces));
        pieces.extend(tool_pieces(&self.reply.tool));
        self.keep(&pieces);
        self.end = Some(end);
        pieces
    }

    fn keep(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.reasoning.push_str(text),
                Piece::Content(text) => self.content.push_str(text),
                Piece::Tool(piece) => {
                    if let Some((id, name)) = piece.head.clone() {
                        self.calls.push(Call { id, name, arguments: String::new() });
                    }
                    if let Some(call) = self.calls.get_mut(piece.index as usize) {
                        call.arguments.push_str(&piece.arguments);
                    }
                }
            }
        }
    }

    /// OpenAI's `finish_reason`.
    #[must_use]
    pub fn finish_reason(&self) -> &'static str {
        match self.end.as_ref().map(|end| end.reason) {
            Some(FinishReason::Stop) if !self.calls.is_empty() => "tool_calls",
            Some(FinishReason::Stop) => "stop",
            Some(FinishReason::Length) => "length",
            Some(FinishReason::Failed) => "error",
            Some(FinishReason::Cancelled) | None => "cancelled",
        }
    }

    /// The stop string that ended it.
    #[must_use]
    pub fn stop_reason(&self) -> Option<Value> {
        let stop = self.stops.get(self.end.as_ref()?.stop?)?;
        Some(String::from_utf8_lossy(stop).into())
    }
}

fn text_piece(phase: Phase, text: &str, pieces: &mut Vec<Piece>) {
    match phase {
        Phase::Thinking => pieces.push(Piece::Reasoning(text.to_owned())),
        Phase::Answer => pieces.push(Piece::Content(text.to_owned())),
        Phase::Tag | Phase::Tool => {}
    }
}

/// The calls of `<TOOLCALL>[…]</TOOLCALL>`; text that is no sound call stays visible.
fn tool_pieces(text: &str) -> Vec<Piece> {
    let calls = || -> Option<Vec<Piece>> {
        let body = text.trim().strip_prefix("<TOOLCALL>")?;
        let body = body.strip_suffix("</TOOLCALL>").unwrap_or(body);
        let calls: Vec<Value> = serde_json::from_str(body).ok()?;
        let call = |(index, call): (usize, &Value)| {
            let arguments = match &call["arguments"] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let head = Some((crate::state::new_id("call_"), call["name"].as_str()?.to_owned()));
            Some(Piece::Tool(ToolPiece { index: index as u32, head, arguments }))
        };
        calls.iter().enumerate().map(call).collect()
    };
    match text {
        "" => Vec::new(),
        text => calls().unwrap_or_else(|| vec![Piece::Content(text.to_owned())]),
    }
}

fn token_logprobs(event: &TokenEvent, logprob: f32, tokenizer: &Tokenizer) -> TokenLogprobs {
    let top = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).to_vec();
        let token = String::from_utf8_lossy(&bytes).into_owned();
        // JSON has no infinity.
        let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
        TopLogprob { token, logprob, bytes }
    };
    let TopLogprob { token, logprob, bytes } = top(event.token, logprob);
    let top_logprobs = event.top_logprobs.iter().map(|t| top(t.token, t.logprob)).collect();
    TokenLogprobs { token, logprob, bytes, top_logprobs, forced: event.step.forced }
}
