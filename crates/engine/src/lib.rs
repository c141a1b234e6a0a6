//! Batching, thinking budget and sampling over token ids: no text, no HTTP, no async.
//!
//! What always holds:
//! - [`ThinkingBudget`] alone decides where thinking ends: it counts, forces, splits bytes into
//!   phases and reports. It is a pure function of the tokens and signals it was given.
//! - A sampled token is a function of (logits, parameters, history, seed, position). Who else is
//!   in the batch, which step it is, and what was drafted change nothing.
//! - A state that was kept or moved out goes on with the same bits; so what an engine read before,
//!   and when a sequence had to wait, change nothing either (bf16 snapshots of f32 states excepted).
//! - Every number of a request is checked by [`SamplingParams::validate`] and
//!   [`ThinkingParams::validate`] before a sequence exists. Defects are errors naming the field.
#![forbid(unsafe_code)]

mod admission;
mod choices;
mod config;
mod constraint;
mod disk_cache;
mod engine;
mod error;
mod full_device;
mod handle;
mod isolation;
mod layered_prefill;
mod logits_processor;
mod next_token;
mod prefix;
mod prefix_cache;
mod prompt_logprobs;
mod prompt_lookup;
mod request;
mod row;
mod sampler;
mod scheduler;
mod sequence;
mod snapshot_file;
mod snapshots;
mod speculation;
mod stats;
mod step;
mod stop;
mod swap;
pub mod thinking_budget;
mod warm;

pub use config::EngineConfig;
pub use constraint::{Constraint, ConstraintScope};
pub use engine::{Engine, TokenTable};
pub use error::{RequestError, SamplingError, ThinkingVocabError};
pub use handle::{EngineHandle, EventSink, SubmitError};
pub use logits_processor::{TokenHistory, process_logits};
pub use prompt_logprobs::PromptLogprobs;
pub use prompt_lookup::{Drafter, PromptLookup};
pub use request::{Effort, MAX_LOGIT_BIAS, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS};
pub use request::{MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS};
pub use request::{SamplingParams, ServerBudget, ThinkingParams};
pub use sampler::{Allowed, Draw, SampleInput, Sampler, TokenLogprob, logprob};
pub use sequence::{
    EndToken, Event, FinishEvent, FinishReason, GenerationRequest, SequenceId, TokenEvent,
};
pub use speculation::{MAX_SPECULATIVE_TOKENS, SpeculationReport};
pub use stats::{Counters, Stats};
pub use stop::StopMatcher;
pub use thinking_budget::{
    BudgetPlan, BudgetRequest, EndedBy, EosAction, FinishCause, Grace, Insertion, LimitSource,
    Phase, ReasoningBudget, Run, Runs, Start, Step, TagTexts, ThinkingBudget, ThinkingConfig,
    ThinkingVocab, TokenRoom,
};
