//! The thinking budget: one state machine per sequence that counts, forces and splits.
//!
//! ```text
//! Before ──<think>──► Thinking ──cut──► Forcing ──► Answer ──► Tool
//!    (prompt leaves the section open ▲) │  └──natural </think>──▲    ▲
//!                                       └──────<TOOLCALL>[──────────┘
//! ```
//! Input per step: a token and its bytes. Output: its phase, how the bytes released so far split
//! ([`Runs`]), and the next forced token ([`ThinkingBudget::forced_next`]). It is a pure function
//! of its inputs, works on bytes and so on every tokenization, and costs O(bytes) per token.
//!
//! **What counts.** A token counts once, by the first rule that holds:
//! 1. inserted by the engine: `forced`;
//! 2. at least one of its bytes is section text, or it has no bytes and the section is open: `used`.
//!    So a token with text and the beginning of a tag is `used`;
//! 3. at least one of its bytes belongs to the close tag that ended the section: a tag token, part
//!    of `reasoning_tokens` but not of `used`. So a token with the end of a tag and answer text is a
//!    tag token;
//! 4. everything else (answer, tool call, a sampled open tag, a sampled blank line after the close
//!    tag) is not reasoning.
//!
//! While a close tag is incomplete its tokens count as `used`; its natural completion takes them
//! back, a cut leaves them. `used` ≥ B is decided on that running count.
//!
//! **When it is cut.** After a token that leaves the section open with `used` ≥ B, in this order:
//! the text ends in a newline plus optional blanks; or, from B + ⌈g/2⌉, in a sentence; or `used` ≥
//! B + g. With g = 0 only the last rule exists. An end that is due waits while the text ends inside a
//! UTF-8 character (at most 3 tokens) or inside a prefix of the tool tag of a request with tools (at
//! most as many tokens as that tag has bytes). Blanks are spaces and tabs. Text includes the
//! section's part in the prompt, counts do not.
//!
//! **Minimum.** Until `min_thinking_tokens` tokens would be `used`, the caller must keep
//! [`ThinkingBudget::forbidden`] (tokens that complete the close tag) and, per
//! [`ThinkingBudget::forbids_eos`], end-of-sequence out of the choice by masking them *before*
//! truncation, so that the choice is exactly the model's distribution without them. The sets are
//! found once per model, for every length of the half-emitted tag.
//!
//! Sources: the budget rule of the Nemotron Nano 2 report (arXiv 2508.14444, section 3.4).

mod constrained;
mod cut;
mod limits;
mod report;
mod runs;
mod split;
mod tag;
mod tail;
mod vocab;

use std::collections::VecDeque;
use std::sync::Arc;

pub(crate) use constrained::Place;
pub use limits::{BudgetPlan, BudgetRequest, Grace, TokenRoom};
pub use report::{EndedBy, LimitSource, ReasoningBudget};
pub use runs::{Phase, Run, Runs};
pub use vocab::{Insertion, Start, TagTexts, ThinkingVocab};

use cut::Script;
use split::Touched;
use tail::TextTail;

/// Newlines after a close tag that belong to it rather than to the answer.
const SEPARATOR_NEWLINES: u8 = 2;

/// What one sequence's machine is set to.
#[derive(Clone, Debug, Default)]
pub struct ThinkingConfig {
    /// Effective numbers.
    pub plan: BudgetPlan,
    /// Where the prompt leaves off.
    pub start: Start,
    /// `used` tokens before the section may end by itself.
    pub min_thinking_tokens: u32,
    /// The request has tools: the tool tag is looked for.
    pub tools: bool,
    /// Where the prompt leaves no section open, there is none: an open tag is text.
    pub answer_only: bool,
    /// Stop strings and stop tokens also apply inside the section.
    pub stop_in_thinking: bool,
}

/// What a step says about its token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// What the token counts as (see the module's rules): `Thinking` for `used` and for an inserted
    /// message, `Tag` for tag tokens, inserted tags and blank lines after a tag, otherwise `Tool` or
    /// `Answer`. Tokens of an incomplete tag are `Thinking` until it completes; the report is exact.
    pub phase: Phase,
    /// Inserted by the engine.
    pub forced: bool,
    /// Bytes released by this step.
    pub runs: Runs,
}

/// What to do after a sampled end-of-sequence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EosAction {
    /// The sequence is over.
    Finish,
    /// Drop the token: the section is being closed instead and the answer follows.
    CloseAndContinue,
}

/// Why a sequence is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FinishCause {
    /// End-of-sequence.
    Eos,
    /// Stop string or stop token.
    Stop,
    /// `max_tokens` or the context limit.
    MaxTokens,
    /// The client went away.
    Cancel,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Before,
    Thinking,
    Forcing,
    Answer,
    Tool,
}

/// The state machine of one sequence. Clone it to look ahead (speculation) and to roll back.
#[derive(Clone, Debug)]
pub struct ThinkingBudget {
    vocab: Arc<ThinkingVocab>,
    insertion: Arc<Insertion>,
    plan: BudgetPlan,
    min_thinking_tokens: u32,
    tools: bool,
    stop_in_thinking: bool,

    state: State,
    script: Option<(Script, usize)>,
    client_end: bool,
    /// Tokens that an end which is due has been waiting.
    waited: u32,

    used: u32,
    tag_tokens: u32,
    forced: u32,
    ended_by: Option<EndedBy>,
    reopened: bool,

    open_state: usize,
    close_state: usize,
    tool_state: usize,
    /// Bytes not released, and how many of them (the first ones) are the prompt's.
    held: usize,
    held_of_prompt: usize,
    separator_left: u8,
    tail: TextTail,
    /// Bytes of the section, with its part in the prompt.
    section_len: usize,
    /// Section offsets of the `used` tokens that begin inside the held bytes.
    starts: VecDeque<usize>,
}

impl ThinkingBudget {
    /// A machine before the first generated token. With an open section and B = 0 it forces the
    /// close tag at once.
    pub fn new(
        vocab: Arc<ThinkingVocab>,
        insertion: Arc<Insertion>,
        config: ThinkingConfig,
    ) -> Self {
        let mut machine = Self {
            vocab,
            insertion,
            plan: config.plan,
            min_thinking_tokens: config.min_thinking_tokens,
            tools: config.tools,
            stop_in_thinking: config.stop_in_thinking,
            state: State::Before,
            script: None,
            client_end: false,
            waited: 0,
            used: 0,
            tag_tokens: 0,
            forced: 0,
            ended_by: config.plan.off.then_some(EndedBy::Off),
            reopened: false,
            open_state: 0,
            close_state: 0,
            tool_state: 0,
            held: 0,
            held_of_prompt: 0,
            separator_left: 0,
            tail: TextTail::default(),
            section_len: 0,
            starts: VecDeque::new(),
        };
        match config.start {
            Start::Absent if config.answer_only => machine.state = State::Answer,
            Start::Absent => {}
            Start::Open { tail } => machine.start_open(&tail),
            Start::Closed { tail } => machine.start_closed(&tail),
        }
        machine
    }

    fn start_open(&mut self, tail: &[u8]) {
        self.state = State::Thinking;
        for (i, &byte) in tail.iter().enumerate() {
            self.section_len += 1;
            self.advance_section(byte);
            if self.close_state == self.vocab.close.len() {
                return self.start_closed(&tail[i + 1..]);
            }
            if self.tool_state == self.vocab.tool_open.len() {
                (self.state, self.ended_by) = (State::Tool, Some(EndedBy::ToolCall));
                return;
            }
        }
        self.held = self.close_state.max(self.tool_state);
        self.held_of_prompt = self.held;
        self.cut_if_due();
    }

    fn start_closed(&mut self, tail: &[u8]) {
        self.state = State::Answer;
        (self.close_state, self.tool_state) = (0, 0);
        if tail.len() <= SEPARATOR_NEWLINES as usize && tail.iter().all(|&b| b == b'\n') {
            self.separator_left = SEPARATOR_NEWLINES - tail.len() as u8;
        }
    }

    /// The token that must come next, or `None` if it is to be sampled.
    pub fn forced_next(&self) -> Option<u32> {
        self.script.map(|(script, at)| self.script_ids(script)[at])
    }

    /// Tokens that must not be sampled next: those that would complete the close tag before the
    /// minimum. Usually empty.
    pub fn forbidden(&self) -> &[u32] {
        let tag_start = self.section_len - self.close_state;
        let in_tag = self.starts.iter().filter(|&&start| start >= tag_start).count() as u32;
        if self.state == State::Thinking && self.used - in_tag < self.min_thinking_tokens {
            return self.vocab.completing(self.close_state);
        }
        &[]
    }

    /// End-of-sequence must not be sampled next (minimum not reached).
    pub fn forbids_eos(&self) -> bool {
        self.state == State::Thinking && self.used < self.min_thinking_tokens
    }

    /// Stop strings and stop tokens apply to what comes next: answer and tool text, and the section
    /// if the request says so; never forced text.
    pub fn stops_apply(&self) -> bool {
        match self.state {
            _ if self.script.is_some() => false,
            State::Thinking => self.stop_in_thinking,
            _ => true,
        }
    }

    /// Takes the next token: the forced one if there is one (anything else is the caller's bug and
    /// panics), else a sampled one that is not end-of-sequence (see [`ThinkingBudget::on_eos`]).
    pub fn push(&mut self, token: u32, bytes: &[u8]) -> Step {
        let forced = self.take_forced(token);
        let opened_before = self.state == State::Thinking;
        if bytes.is_empty() && opened_before {
            self.used += 1;
        }
        let mut touched = Touched::default();
        for &byte in bytes {
            match self.state {
                State::Thinking | State::Forcing => self.section_byte(byte, &mut touched),
                State::Before | State::Answer => self.answer_byte(byte, &mut touched),
                State::Tool => touched.runs.add(Phase::Tool, 1),
            }
        }
        assert!(
            self.script.is_some() || self.state != State::Forcing,
            "the inserted tokens spell the close tag"
        );
        let held_from = self.section_len.saturating_sub(self.held);
        while self.starts.front().is_some_and(|&start| start < held_from) {
            self.starts.pop_front();
        }
        touched.runs.held = self.held - self.held_of_prompt;
        let phase = if forced {
            let message = touched.runs.has(Phase::Thinking);
            if message { Phase::Thinking } else { Phase::Tag }
        } else if bytes.is_empty() && opened_before {
            Phase::Thinking
        } else {
            self.sampled_phase(&touched)
        };
        if self.state == State::Thinking {
            self.cut_if_due();
        }
        Step { phase, forced, runs: touched.runs }
    }

    /// A sampled end-of-sequence. It is not part of the text and is not given to
    /// [`ThinkingBudget::push`]; inside the section the close tag is forced instead.
    pub fn on_eos(&mut self) -> EosAction {
        if self.state != State::Thinking {
            return EosAction::Finish;
        }
        self.cut(EndedBy::Eos);
        EosAction::CloseAndContinue
    }

    /// The client wants the answer now. False if no section is open (already answering, or none
    /// begun); true also while it is being closed already.
    pub fn end_now(&mut self) -> bool {
        if self.state == State::Thinking {
            self.client_end = true;
            if !self.blocked() {
                self.cut(EndedBy::Client);
            }
        }
        matches!(self.state, State::Thinking | State::Forcing)
    }

    /// The sequence is over: releases the held bytes and settles the report.
    pub fn finish(&mut self, cause: FinishCause) -> Runs {
        let (phase, tag_bytes) = match self.state {
            State::Thinking => (Phase::Thinking, 0),
            State::Forcing => (Phase::Thinking, self.close_state),
            State::Before | State::Answer => (Phase::Answer, 0),
            State::Tool => (Phase::Tool, 0),
        };
        if self.state == State::Thinking {
            self.ended_by = Some(match cause {
                FinishCause::Eos => EndedBy::Eos,
                FinishCause::Stop => EndedBy::Stop,
                FinishCause::MaxTokens => EndedBy::MaxTokens,
                FinishCause::Cancel => EndedBy::Client,
            });
        }
        let mut runs = Runs::default();
        self.release(phase, self.held - tag_bytes, &mut runs);
        self.release(Phase::Tag, tag_bytes, &mut runs);
        self.held = 0;
        runs
    }

    /// The section is open or being closed.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thinking | State::Forcing)
    }

    /// A second `<think>` appeared in the answer. It changed nothing; evaluation counts it.
    pub fn reopened(&self) -> bool {
        self.reopened
    }

    /// `used` + `forced` + tokens of a naturally completed close tag.
    pub fn reasoning_tokens(&self) -> u32 {
        self.used + self.forced + self.tag_tokens
    }

    /// The counters as of now.
    pub fn report(&self) -> ReasoningBudget {
        ReasoningBudget {
            requested: self.plan.requested,
            limit: self.plan.limit,
            limit_source: self.plan.limit_source,
            grace: self.plan.grace,
            used: self.used,
            forced: self.forced,
            ended_by: self.ended_by,
        }
    }
}
