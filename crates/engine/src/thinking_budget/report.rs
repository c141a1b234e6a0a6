//! What a reply says about its thinking: the `reasoning_budget` object, names as on the wire.

use serde::{Deserialize, Serialize};

/// Why the thinking section ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The model completed `</think>` itself.
    Natural,
    /// Cut at a newline inside the window.
    BudgetNewline,
    /// Cut at a sentence end in the second half of the window.
    BudgetSentence,
    /// Cut at B + g, or at once because the effective budget is 0.
    BudgetHard,
    /// The model opened a tool call inside the section.
    ToolCall,
    /// The client asked for the answer, or went away.
    Client,
    /// The model sampled end-of-sequence inside the section.
    Eos,
    /// A stop string or stop token matched inside the section (`stop_in_thinking`).
    Stop,
    /// The sequence reached its last token inside the section.
    MaxTokens,
    /// Thinking was off: budget 0, switch off or effort none.
    Off,
}

/// Where the effective budget comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitSource {
    /// The request's budget (or its switch OFF).
    Request,
    /// The request's reasoning effort.
    Effort,
    /// The server's default or ceiling.
    Server,
    /// The answer reserve inside `max_tokens`.
    MaxTokens,
    /// The answer reserve inside the context limit.
    Context,
}

/// The counters of one choice, in tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ReasoningBudget {
    /// Budget as asked for; `None`: no own limit.
    pub requested: Option<u32>,
    /// Effective budget B; `None`: unlimited.
    pub limit: Option<u32>,
    /// Where `limit` comes from; `None` exactly when `limit` is.
    pub limit_source: Option<LimitSource>,
    /// Grace window g.
    pub grace: u32,
    /// Sampled tokens in the section, without those of a naturally completed close tag.
    pub used: u32,
    /// Tokens inserted by the engine.
    pub forced: u32,
    /// How the section ended; `None` while it is open, or when there never was one.
    pub ended_by: Option<EndedBy>,
}
