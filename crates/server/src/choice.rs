//! One choice of a reply: events become pieces of text, and what a finished choice says.
//!
//! Invariant: pieces of one kind that follow each other, joined, are a segment of the finished
//! choice; streamed and whole replies are made of the same pieces.

use crate::wire::chat::{TokenLogprobs, TopLogprob};
use hybra_chat::{ChatModel, Reply, ToolCallParser, ToolDelta};
use hybra_engine::{
    FinishEvent, FinishReason, GenerationRequest, Phase, PromptLogprobs, TokenEvent, TokenLogprob,
    TokenTable,
};
use hybra_tokenizer::Tokenizer;
use serde_json::Value;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Thinking.
    Reasoning,
    /// Answer.
    Content,
    /// Arguments of a call, by its index.
    Call(u32),
}

/// New text of a choice; joined with those of its kind before it, a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// What it is.
    pub kind: Kind,
    /// In the first piece of a call.
    pub head: Option<CallHead>,
    /// The text.
    pub text: String,
}

/// What a call is known by.
#[derive(Debug, Clone, PartialEq)]
pub struct CallHead {
    /// Unique.
    pub id: String,
    /// The function.
    pub name: String,
}

/// What of a choice is its text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// Thinking is left out.
    pub hidden: bool,
    /// Thinking, tags and calls are content, as the model wrote them.
    pub raw: bool,
}

impl Shown {
    fn kind(self, phase: Phase) -> Option<Kind> {
        match phase {
            Phase::Thinking | Phase::Tag if self.hidden => None,
            _ if self.raw => Some(Kind::Content),
            Phase::Thinking => Some(Kind::Reasoning),
            Phase::Answer => Some(Kind::Content),
            Phase::Tag | Phase::Tool => None,
        }
    }
}

/// A choice, growing token by token.
pub struct Choice {
    reply: Reply,
    shown: Shown,
    calls: ToolCallParser,
    stops: Vec<Vec<u8>>,
    /// Its text, in order.
    pub segments: Vec<Piece>,
    /// One entry per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// One entry per token of the prompt after its first, if asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// What the engine said at the end.
    pub end: Option<FinishEvent>,
}

impl Choice {
    /// A choice before its first token.
    #[must_use]
    pub fn new(request: &GenerationRequest, shown: Shown) -> Self {
        let stops = request.sampling.stop.clone();
        Self {
            reply: Reply::new(&stops, request.thinking.stop_in_thinking),
            shown,
            calls: ToolCallParser::new(),
            stops,
            segments: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            end: None,
        }
    }

    /// Takes log-probabilities of a piece of its prompt. A piece that was read anew comes again.
    pub fn scored(&mut self, scored: PromptLogprobs, tokenizer: &Tokenizer) {
        self.prompt_logprobs.truncate(scored.start.saturating_sub(1));
        let top = |t: &TokenLogprob| top_logprob(t.token, t.logprob, tokenizer);
        self.prompt_logprobs.extend(scored.tokens.iter().map(|(own, alternatives)| {
            let TopLogprob { token, logprob, bytes } = top(own);
            let top_logprobs = alternatives.iter().map(top).collect();
            let num_chars = num_chars(&bytes);
            TokenLogprobs { token, logprob, bytes, top_logprobs, forced: false, num_chars }
        }));
    }

    /// Takes a token; the text that it releases.
    pub fn token(&mut self, event: &TokenEvent, model: &ChatModel) -> Vec<Piece> {
        let bytes = model.table.bytes(event.token);
        if let Some(logprob) = event.logprob {
            self.logprobs.push(token_logprobs(event, logprob, bytes, &model.tokenizer));
        }
        let (shown, calls, mut pieces) = (self.shown, &mut self.calls, Vec::new());
        let add = &mut |phase, text: &str| add(shown, calls, phase, text, &mut pieces);
        self.reply.token(event, bytes, add);
        self.keep(&pieces);
        pieces
    }

    /// Takes the end; the text that was held back.
    pub fn finish(&mut self, end: FinishEvent) -> Vec<Piece> {
        let (shown, calls, mut pieces) = (self.shown, &mut self.calls, Vec::new());
        let add = &mut |phase, text: &str| add(shown, calls, phase, text, &mut pieces);
        self.reply.finish(&end, add);
        pieces.extend(self.calls.finish().into_iter().map(tool_piece));
        self.keep(&pieces);
        self.end = Some(end);
        pieces
    }

    fn keep(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            match self.segments.last_mut().filter(|last| last.kind == piece.kind) {
                Some(last) => last.text.push_str(&piece.text),
                None => self.segments.push(piece.clone()),
            }
        }
    }

    /// All text of one kind.
    #[must_use]
    pub fn text(&self, kind: Kind) -> String {
        let own = self.segments.iter().filter(|segment| segment.kind == kind);
        own.map(|segment| segment.text.as_str()).collect()
    }

    fn has_calls(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment.kind, Kind::Call(_)))
    }

    /// OpenAI's `finish_reason`.
    #[must_use]
    pub fn finish_reason(&self) -> &'static str {
        match self.end.as_ref().map(|end| end.reason) {
            Some(FinishReason::Stop) if self.has_calls() => "tool_calls",
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

fn add(
    shown: Shown,
    calls: &mut ToolCallParser,
    phase: Phase,
    text: &str,
    pieces: &mut Vec<Piece>,
) {
    if phase == Phase::Tool && !shown.raw {
        pieces.extend(calls.push(text).into_iter().map(tool_piece));
    } else if let Some(kind) = shown.kind(phase) {
        pieces.push(Piece { kind, head: None, text: text.to_owned() });
    }
}

/// What the reader of calls found, as pieces.
fn tool_piece(delta: ToolDelta) -> Piece {
    match delta {
        ToolDelta::Content(text) => Piece { kind: Kind::Content, head: None, text },
        ToolDelta::Call { index, name } => {
            let head = Some(CallHead { id: crate::state::new_id("call_"), name });
            Piece { kind: Kind::Call(index as u32), head, text: String::new() }
        }
        ToolDelta::Arguments { index, fragment } => {
            Piece { kind: Kind::Call(index as u32), head: None, text: fragment }
        }
    }
}

fn token_logprobs(
    event: &TokenEvent,
    logprob: f32,
    shown: &[u8],
    tokenizer: &Tokenizer,
) -> TokenLogprobs {
    let TopLogprob { token, logprob, bytes } = top_logprob(event.token, logprob, tokenizer);
    let top_logprobs = event.top_logprobs.iter();
    let top_logprobs = top_logprobs.map(|t| top_logprob(t.token, t.logprob, tokenizer)).collect();
    let num_chars = num_chars(shown);
    TokenLogprobs { token, logprob, bytes, top_logprobs, forced: event.step.forced, num_chars }
}

/// A token as the wire names it.
#[must_use]
pub fn top_logprob(id: u32, logprob: f32, tokenizer: &Tokenizer) -> TopLogprob {
    let bytes = tokenizer.token_bytes(id).to_vec();
    let token = String::from_utf8_lossy(&bytes).into_owned();
    // JSON has no infinity.
    let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
    TopLogprob { token, logprob, bytes }
}

/// Characters that begin in `bytes`.
#[must_use]
pub fn num_chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}
