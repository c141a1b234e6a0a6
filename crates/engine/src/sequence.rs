//! One request inside the engine: its tokens, its model state and its thinking budget.
//!
//! Invariants: a state has read the first `len()` of its sequence's tokens (prompt, then output);
//! everything after them is still to be fed. A sequence that runs has its state in memory.

use crate::constraint::{Arming, Constraint};
use crate::isolation::isolated;
use crate::logits_processor::TokenHistory;
use crate::prefix::{Prefixes, last_split};
use crate::prompt_logprobs::PromptLogprobs;
use crate::request::{SamplingParams, ThinkingParams};
use crate::sampler::TokenLogprob;
use crate::speculation::{Speculation, SpeculationReport};
use crate::stop::StopWatch;
use crate::swap::Swapped;
use crate::thinking_budget::{
    FinishCause, Insertion, ReasoningBudget, Runs, Start, Step, ThinkingBudget,
};
use hybra_model::{LogitsFor, SequenceState};
use std::sync::Arc;

/// Name of a sequence, unique within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What an engine is asked to generate.
#[derive(Clone)]
pub struct GenerationRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when to stop.
    pub sampling: SamplingParams,
    /// The thinking budget as asked for.
    pub thinking: ThinkingParams,
    /// Where the prompt leaves off.
    pub start: Start,
    /// What a cut inserts.
    pub insertion: Arc<Insertion>,
    /// Whether part of `max_tokens` and of the context is kept for the answer (not for raw
    /// completions without a budget).
    pub reserve_answer: bool,
    /// The request has tools.
    pub tools: bool,
    /// Tokens that end the sequence.
    pub eos_token_ids: Vec<u32>,
    /// What the answer must look like; applied where the answer begins.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Lower numbers go first.
    pub priority: i32,
    /// Prompts share cached state only with prompts of the same salt.
    pub cache_salt: u64,
    /// Prompt lengths at which the state is worth keeping, ascending: ends of messages.
    pub cache_points: Vec<usize>,
    /// Log-probabilities of the prompt's tokens, and of as many alternatives.
    pub prompt_logprobs: Option<u32>,
}

/// Why a sequence ended, as OpenAI's `finish_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-sequence or a stop token.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// Its logits were not finite, its constraint could not go on, its work panicked, or the device
    /// has no room for it even alone; other sequences go on.
    Failed,
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct TokenEvent {
    /// Whose token.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log-probability under the raw model distribution, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, if asked for.
    pub top_logprobs: Vec<TokenLogprob>,
    /// Phase, forced mark and released bytes.
    pub step: Step,
}

/// A sampled end-of-sequence token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndToken {
    /// The token.
    pub token: u32,
    /// Its log-probability under the raw model distribution, if asked for.
    pub logprob: Option<f32>,
}

/// The end of a sequence.
#[derive(Clone, Debug)]
pub struct FinishEvent {
    /// Which sequence.
    pub sequence: SequenceId,
    /// Why.
    pub reason: FinishReason,
    /// What went wrong, for [`FinishReason::Failed`].
    pub error: Option<String>,
    /// Bytes that were held back and are released now.
    pub runs: Runs,
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens that were not read because a cached state had read them. For choices of one
    /// request: those that none of them read, so that the request's prompt counts once.
    pub cached_tokens: usize,
    /// The stop string that ended it: index into [`SamplingParams::stop`].
    pub stop: Option<usize>,
    /// The end-of-sequence token that ended it, which is no [`TokenEvent`].
    pub eos: Option<EndToken>,
    /// Generated tokens, forced ones included.
    pub completion_tokens: usize,
    /// Tokens of the thinking section, forced ones and the close tag included.
    pub reasoning_tokens: u32,
    /// The budget's counters.
    pub budget: ReasoningBudget,
    /// What drafts brought, where the engine drafts.
    pub speculation: Option<SpeculationReport>,
}

/// What a step of the engine reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// Part of a prompt was read: `done` of `total` tokens.
    Prefill {
        /// Whose prompt.
        sequence: SequenceId,
        /// Tokens read.
        done: usize,
        /// Tokens in all.
        total: usize,
        /// Of these, taken from a kept state.
        cached: usize,
    },
    /// Part of a prompt was scored, if asked for.
    PromptLogprobs(PromptLogprobs),
    /// A token.
    Token(TokenEvent),
    /// An end; the last event of its sequence.
    Finish(FinishEvent),
}

impl Event {
    /// Whose event it is.
    pub fn sequence(&self) -> SequenceId {
        match self {
            Event::Prefill { sequence, .. } => *sequence,
            Event::PromptLogprobs(scored) => scored.sequence,
            Event::Token(token) => token.sequence,
            Event::Finish(finish) => finish.sequence,
        }
    }
}

/// Where a sequence's state is.
pub(crate) enum Held {
    /// Nothing was read, or it has to be read again.
    Nothing,
    /// Here; always so while the sequence runs.
    Memory(SequenceState),
    /// In a file, until the sequence runs again.
    Disk(Swapped),
}

impl Held {
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Held::Nothing)
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Held::Memory(state) => state.bytes(),
            Held::Nothing | Held::Disk(_) => 0,
        }
    }
}

pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) priority: i32,
    pub(crate) salt: u64,
    /// The choices that share the prompt.
    pub(crate) group: Option<u64>,
    /// Of the prompt's prefixes, where states are kept.
    pub(crate) keys: Vec<u64>,
    /// Prompt lengths at which the state may be worth keeping.
    pub(crate) cache_points: Vec<usize>,
    /// Prompt lengths at which the state is to be kept or shared, descending; none is passed.
    pub(crate) stops: Vec<usize>,
    /// The last step that read of the prompt.
    pub(crate) last_served: u64,
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    pub(crate) max_len: usize,
    pub(crate) held: Held,
    pub(crate) sampling: SamplingParams,
    pub(crate) history: TokenHistory,
    pub(crate) eos: Vec<u32>,
    pub(crate) budget: ThinkingBudget,
    pub(crate) speculation: Option<Speculation>,
    pub(crate) stop: Option<StopWatch>,
    pub(crate) constraint: Option<Arming>,
    pub(crate) cached_tokens: usize,
    pub(crate) prompt_logprobs: Option<u32>,
    /// The end-of-sequence token, once it was sampled.
    pub(crate) eos_sampled: Option<EndToken>,
}

impl Sequence {
    /// The alternatives to score its prompt with, while it reads one that is to be scored.
    pub(crate) fn scores(&self) -> Option<u32> {
        self.prompt_logprobs.filter(|_| self.output_len() == 0)
    }

    /// Generated tokens so far.
    pub(crate) fn output_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Its place among those that wait and run: lower ones go first.
    pub(crate) fn rank(&self) -> (i32, SequenceId) {
        (self.priority, self.id)
    }

    /// The state of a sequence that runs.
    pub(crate) fn state(&self) -> &SequenceState {
        match &self.held {
            Held::Memory(state) => state,
            Held::Nothing | Held::Disk(_) => unreachable!("a sequence runs with its state"),
        }
    }

    /// As [`Self::state`], to be changed.
    pub(crate) fn state_mut(&mut self) -> &mut SequenceState {
        match &mut self.held {
            Held::Memory(state) => state,
            Held::Nothing | Held::Disk(_) => unreachable!("a sequence runs with its state"),
        }
    }

    /// Tokens not yet read by the model.
    pub(crate) fn pending(&self) -> &[u32] {
        &self.tokens[self.state().len()..]
    }

    /// For which of its next `len` tokens logits are computed.
    pub(crate) fn logits_of(&self, len: usize) -> LogitsFor {
        match self.scores() {
            Some(_) => LogitsFor::All,
            None if len == self.pending().len() => LogitsFor::Last,
            None => LogitsFor::None,
        }
    }

    /// What its logits are multiplied with before they become weights.
    pub(crate) fn scale(&self) -> f32 {
        if self.sampling.is_greedy() { 1.0 } else { 1.0 / self.sampling.temperature }
    }

    /// The prompt with its keys.
    pub(crate) fn prefixes(&self) -> Prefixes<'_> {
        let tokens = &self.tokens[..self.prompt_len];
        Prefixes { salt: self.salt, tokens, keys: &self.keys }
    }

    /// It has not read as much of its prompt as choices share.
    pub(crate) fn reads_for_others(&self) -> bool {
        self.state().len() < last_split(self.prompt_len)
    }

    /// Its end by an error.
    pub(crate) fn fail(&mut self, error: String) -> Event {
        let runs = isolated(|| self.budget.finish(FinishCause::Cancel)).unwrap_or_default();
        Event::Finish(self.finish_event(FinishReason::Failed, Some(error), runs))
    }

    /// Guesses tokens after the known ones: at most `room`, and none that `max_len` would leave
    /// unread. A sequence that still reads its prompt guesses nothing.
    pub(crate) fn propose(&mut self, room: usize) {
        let decoding = self.output_len() > 0 && self.pending().len() == 1;
        if let Some(speculation) = self.speculation.as_mut().filter(|_| decoding) {
            let of_use = (self.max_len - self.tokens.len()).saturating_sub(1);
            speculation.propose(&self.tokens, room.min(of_use));
        }
    }

    /// The guess of this step.
    pub(crate) fn draft(&self) -> &[u32] {
        self.speculation.as_ref().map_or(&[], Speculation::draft)
    }

    /// How much of it came true so far.
    pub(crate) fn accepted(&self) -> usize {
        self.speculation.as_ref().map_or(0, Speculation::accepted)
    }

    /// Adds a generated token.
    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(speculation) = &mut self.speculation {
            speculation.observe(token);
        }
    }

    pub(crate) fn finish_event(
        &self,
        reason: FinishReason,
        error: Option<String>,
        runs: Runs,
    ) -> FinishEvent {
        FinishEvent {
            sequence: self.id,
            reason,
            error,
            runs,
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens,
            stop: self.stop.as_ref().and_then(|watch| watch.found),
            eos: self.eos_sampled,
            completion_tokens: self.output_len(),
            reasoning_tokens: self.budget.reasoning_tokens(),
            budget: self.budget.report(),
            speculation: self.speculation.as_ref().map(Speculation::report),
        }
    }
}
