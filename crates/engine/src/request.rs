//! The parameters of a request as the engine understands them, and their limits.
//!
//! A value that passed [`SamplingParams::validate`] and [`ThinkingParams::validate`] cannot make a
//! step fail. Text (messages, stop strings) and wire spellings are not here: the caller maps them.

use std::str::FromStr;

use crate::error::RequestError;
use crate::thinking_budget::{BudgetRequest, Grace, LimitSource};

/// Most alternatives returned per token.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most entries of `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;
/// Most stop strings.
pub const MAX_STOP_STRINGS: usize = 32;
/// Most bytes of a stop string.
pub const MAX_STOP_STRING_BYTES: usize = 1024;

/// How tokens are chosen, and when a sequence is over.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 (and anything below 1e-5) is greedy; at most 100.
    pub temperature: f32,
    /// Number of most probable tokens kept; 0 and −1 keep all, 1 is greedy.
    pub top_k: i64,
    /// Probability mass kept, in (0, 1].
    pub top_p: f32,
    /// Least probability kept, relative to the most probable token, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output, in (0, 100].
    pub repetition_penalty: f32,
    /// Subtracted per occurrence in the output, in [−2, 2].
    pub frequency_penalty: f32,
    /// Subtracted once for tokens in the output, in [−2, 2].
    pub presence_penalty: f32,
    /// Key of the random stream; `None` lets the caller draw one.
    pub seed: Option<u64>,
    /// Most generated tokens (thinking, inserted and answer), at least 1.
    pub max_tokens: Option<u32>,
    /// Generated tokens before end-of-sequence and stop tokens may be chosen.
    pub min_tokens: u32,
    /// `None`: no log-probabilities; `Some(n)`: the chosen token's and the n best, n ≤ 20.
    pub logprobs: Option<u32>,
    /// Tokens that end the sequence, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Bytes that end the sequence where they appear in the answer (see
    /// [`ThinkingParams::stop_in_thinking`]); none is empty.
    pub stop: Vec<Vec<u8>>,
    /// Added to logits, each in [−100, 100].
    pub logit_bias: Vec<(u32, f32)>,
    /// End-of-sequence tokens are ordinary tokens.
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    /// The plain model distribution: temperature 1, nothing truncated, nothing penalized.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            logprobs: None,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            logit_bias: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-5 || self.top_k == 1
    }

    /// At least one penalty changes logits, so that the history must be kept.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Checks every field; token ids must be below `vocab_size`.
    pub fn validate(&self, vocab_size: usize) -> Result<(), RequestError> {
        in_range("temperature", self.temperature, 0.0..=100.0, "a number from 0 to 100")?;
        positive("top_p", self.top_p, 1.0, "a number above 0, at most 1")?;
        in_range("min_p", self.min_p, 0.0..=1.0, "a number from 0 to 1")?;
        let penalty = "a number above 0, at most 100";
        positive("repetition_penalty", self.repetition_penalty, 100.0, penalty)?;
        for (field, value) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            in_range(field, value, -2.0..=2.0, "a number from -2 to 2")?;
        }
        check("top_k", self.top_k >= -1, "-1 or 0 (off), or a positive integer", self.top_k)?;
        check_opt("max_tokens", self.max_tokens, |n| n >= 1, "an integer of at least 1")?;
        check_opt("top_logprobs", self.logprobs, |n| n <= MAX_TOP_LOGPROBS, "0 to 20")?;
        if let Some(max_tokens) = self.max_tokens.filter(|&max| self.min_tokens > max) {
            return Err(RequestError::Conflict {
                first: format!("min_tokens {}", self.min_tokens),
                second: format!("max_tokens {max_tokens}"),
                rule: "the minimum must not exceed the maximum",
            });
        }
        self.validate_token_lists(vocab_size)
    }

    fn validate_token_lists(&self, vocab_size: usize) -> Result<(), RequestError> {
        at_most("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIAS)?;
        at_most("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKEN_IDS)?;
        at_most("stop", self.stop.len(), MAX_STOP_STRINGS)?;
        let sound = |len| (1..=MAX_STOP_STRING_BYTES).contains(&len);
        if let Some(stop) = self.stop.iter().find(|stop| !sound(stop.len())) {
            let found = format!("{} bytes", stop.len());
            let expected = "strings of 1 to 1024 bytes";
            return Err(RequestError::OutOfRange { field: "stop", expected, found });
        }
        let in_vocab = |field, id: u32| {
            if (id as usize) < vocab_size {
                return Ok(());
            }
            Err(RequestError::TokenOutOfVocab { field, vocab_size, found: id })
        };
        for &(id, bias) in &self.logit_bias {
            in_vocab("logit_bias", id)?;
            in_range("logit_bias", bias, -100.0..=100.0, "biases from -100 to 100")?;
        }
        self.stop_token_ids.iter().try_for_each(|&id| in_vocab("stop_token_ids", id))
    }
}

/// Named amounts of thinking.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effort {
    /// Thinking off.
    None,
    /// 128 tokens.
    Minimal,
    /// 512 tokens.
    Low,
    /// 2,048 tokens.
    Medium,
    /// 8,192 tokens.
    High,
    /// No limit of its own.
    Xhigh,
    /// No limit of its own.
    Max,
}

impl Effort {
    /// The budget that the effort stands for; `None`: no limit.
    pub fn budget(self) -> Option<u32> {
        match self {
            Effort::None => Some(0),
            Effort::Minimal => Some(128),
            Effort::Low => Some(512),
            Effort::Medium => Some(2048),
            Effort::High => Some(8192),
            Effort::Xhigh | Effort::Max => None,
        }
    }
}

impl FromStr for Effort {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        Ok(match text {
            "none" => Effort::None,
            "minimal" => Effort::Minimal,
            "low" => Effort::Low,
            "medium" => Effort::Medium,
            "high" => Effort::High,
            "xhigh" => Effort::Xhigh,
            "max" => Effort::Max,
            _ => {
                return Err(RequestError::Malformed {
                    field: "reasoning_effort",
                    expected: "none, minimal, low, medium, high, xhigh or max",
                    found: text.chars().take(64).collect(),
                });
            }
        })
    }
}

/// What a request says about thinking. The message at the cut is text and reaches the engine as
/// an [`Insertion`](crate::Insertion).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ThinkingParams {
    /// The explicit switch.
    pub enabled: Option<bool>,
    /// The effort; ranks below `budget`.
    pub effort: Option<Effort>,
    /// `None`: not given; −1 (JSON `null` too): no limit of its own, whatever effort and server
    /// default say; 0: off; else tokens.
    pub budget: Option<i64>,
    /// The window after the budget.
    pub grace: Grace,
    /// Tokens before the section may end by itself.
    pub min_thinking_tokens: u32,
    /// Tokens kept for the answer.
    pub answer_token_reserve: Option<u32>,
    /// Stop strings and stop tokens also apply inside the section.
    pub stop_in_thinking: bool,
}

/// What the server says about budgets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServerBudget {
    /// Used where the request names neither budget nor effort.
    pub default: Option<u32>,
    /// No budget exceeds this.
    pub ceiling: Option<u32>,
}

impl ThinkingParams {
    /// Checks ranges and contradictions. `max_tokens` is the request's own.
    pub fn validate(&self, max_tokens: Option<u32>) -> Result<(), RequestError> {
        let expected = "an integer from 0 to 4294967295, or -1 for no limit";
        let budget = self.budget.unwrap_or(-1);
        check("thinking_budget", (-1..=i64::from(u32::MAX)).contains(&budget), expected, budget)?;
        if let Grace::Percent(percent) = self.grace {
            check("thinking_budget_grace", percent <= 100, "0% to 100%", format!("{percent}%"))?;
        }
        let conflict = |first: String, second: String, rule| {
            Err(RequestError::Conflict { first, second, rule })
        };
        let budget_text = || format!("thinking_budget {budget}");
        if budget > 0 {
            let rule = "thinking cannot be off and have a budget";
            if self.enabled == Some(false) {
                return conflict("enable_thinking false".into(), budget_text(), rule);
            }
            if self.effort == Some(Effort::None) {
                return conflict("reasoning_effort none".into(), budget_text(), rule);
            }
        }
        let min = i64::from(self.min_thinking_tokens);
        if budget >= 0 && min > budget {
            let rule = "the minimum must not exceed the budget";
            return conflict(format!("min_thinking_tokens {min}"), budget_text(), rule);
        }
        if let Some(max_tokens) = max_tokens.filter(|&max| budget >= i64::from(max)) {
            let rule = "the budget must leave room for an answer";
            return conflict(budget_text(), format!("max_tokens {max_tokens}"), rule);
        }
        Ok(())
    }

    /// The budget that holds: request, then effort, then server default, under the server's
    /// ceiling. Expects validated parameters.
    pub fn resolve(&self, server: ServerBudget) -> BudgetRequest {
        let own = |budget: Option<u32>, source| (budget, budget.map(|_| source));
        let (requested, source) = match (self.budget, self.effort) {
            // A negative budget is −1 after validation: no limit.
            (Some(budget), _) => own(u32::try_from(budget).ok(), LimitSource::Request),
            (None, Some(effort)) => own(effort.budget(), LimitSource::Effort),
            (None, None) => own(server.default, LimitSource::Server),
        };
        let mut request =
            BudgetRequest { off: false, requested, budget: requested, source, grace: self.grace };
        if self.enabled == Some(false) {
            (request.budget, request.source) = (Some(0), Some(LimitSource::Request));
        } else if self.effort == Some(Effort::None) && request.budget != Some(0) {
            (request.budget, request.source) = (Some(0), Some(LimitSource::Effort));
        }
        if let Some(ceiling) = server.ceiling
            && request.budget.is_none_or(|budget| budget > ceiling)
        {
            (request.budget, request.source) = (Some(ceiling), Some(LimitSource::Server));
        }
        request.off = request.budget == Some(0);
        request
    }
}

fn check(
    field: &'static str,
    ok: bool,
    expected: &'static str,
    found: impl ToString,
) -> Result<(), RequestError> {
    if ok {
        return Ok(());
    }
    Err(RequestError::OutOfRange { field, expected, found: found.to_string() })
}

fn check_opt(
    field: &'static str,
    value: Option<u32>,
    ok: impl Fn(u32) -> bool,
    expected: &'static str,
) -> Result<(), RequestError> {
    value.map_or(Ok(()), |value| check(field, ok(value), expected, value))
}

fn in_range(
    field: &'static str,
    value: f32,
    range: std::ops::RangeInclusive<f32>,
    expected: &'static str,
) -> Result<(), RequestError> {
    if value.is_nan() {
        return Err(RequestError::NotANumber { field, expected });
    }
    check(field, range.contains(&value), expected, value)
}

/// A float above 0 and at most `max`.
fn positive(
    field: &'static str,
    value: f32,
    max: f32,
    expected: &'static str,
) -> Result<(), RequestError> {
    in_range(field, value, f32::MIN_POSITIVE..=max, expected)
}

fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), RequestError> {
    if found <= max {
        return Ok(());
    }
    Err(RequestError::TooMany { field, max, found })
}
