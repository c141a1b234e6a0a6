//! The numbers of a budget: the grace window g(B), and the effective budget B that leaves room for
//! the answer.
//!
//! With R the answer reserve and room = limit − R − insertion, B is the largest value not above the
//! requested one with B + g(B) ≤ room; where no B ≥ 1 fits (for the default grace exactly when
//! room ≤ 16), g = 0 and B = max(0, room). The rule is applied to `max_tokens` and to the context.

use std::str::FromStr;

use super::report::LimitSource;
use crate::error::RequestError;

/// Length of the window after the budget in which a good place for the cut is looked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Grace {
    /// min(500, max(16, ⌊B/10⌋)).
    #[default]
    Default,
    /// A fixed number of tokens; 0 is an exact hard cut.
    Tokens(u32),
    /// A share of B, rounded down.
    Percent(u32),
}

impl Grace {
    /// The window for budget `budget`, in tokens. A budget of 0 has none.
    pub fn tokens(self, budget: u32) -> u32 {
        match self {
            _ if budget == 0 => 0,
            Grace::Default => (budget / 10).clamp(16, 500),
            Grace::Tokens(tokens) => tokens,
            Grace::Percent(percent) => {
                u32::try_from(u64::from(budget) * u64::from(percent) / 100).unwrap_or(u32::MAX)
            }
        }
    }
}

impl FromStr for Grace {
    type Err = RequestError;

    /// `"64"` tokens or `"10%"` of the budget.
    fn from_str(text: &str) -> Result<Self, RequestError> {
        let malformed = || RequestError::Malformed {
            field: "thinking_budget_grace",
            expected: "a number of tokens, or a whole percentage such as \"10%\"",
            found: text.chars().take(64).collect(),
        };
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().map(Grace::Percent),
            None => text.parse().map(Grace::Tokens),
        }
        .map_err(|_| malformed())
    }
}

/// What was asked for, after precedence and the server's ceiling
/// (see [`ThinkingParams::resolve`](crate::ThinkingParams::resolve)).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BudgetRequest {
    /// Thinking is off.
    pub off: bool,
    /// Budget before the ceiling, for the report.
    pub requested: Option<u32>,
    /// Budget to plan with; `None`: no limit of its own.
    pub budget: Option<u32>,
    /// Where `budget` comes from.
    pub source: Option<LimitSource>,
    /// The window.
    pub grace: Grace,
}

/// The tokens that thinking, insertion and answer share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenRoom {
    /// The request's `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Context limit minus prompt length.
    pub context: u32,
    /// `answer_token_reserve`; the default is min(256, ⌈limit/4⌉).
    pub answer_reserve: Option<u32>,
    /// [`Insertion::max_len`](super::Insertion::max_len).
    pub insertion_len: u32,
}

/// The numbers that a sequence runs under; fixed before its first token.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BudgetPlan {
    /// Thinking is off, so that an end is reported as `off`.
    pub off: bool,
    /// As asked for.
    pub requested: Option<u32>,
    /// Effective budget B; `None`: unlimited.
    pub limit: Option<u32>,
    /// Source of `limit`.
    pub limit_source: Option<LimitSource>,
    /// Window g.
    pub grace: u32,
}

impl BudgetPlan {
    /// The effective budget. `room` is `None` where the answer reserve does not apply: a raw
    /// completion without a budget field.
    pub fn new(request: BudgetRequest, room: Option<TokenRoom>) -> Self {
        let BudgetRequest { off, requested, budget, source, grace } = request;
        let mut plan = Self { off, requested, limit: budget, limit_source: source, grace: 0 };
        if off {
            return Self { limit: Some(0), ..plan };
        }
        plan.grace = budget.map_or(0, |b| grace.tokens(b));
        let Some(room) = room else { return plan };
        let left = |limit: u32| {
            let reserve = room.answer_reserve.unwrap_or(limit.div_ceil(4).min(256));
            limit.saturating_sub(reserve).saturating_sub(room.insertion_len)
        };
        let (context, max_tokens) = (left(room.context), room.max_tokens.map(left));
        match max_tokens {
            Some(room) if room <= context => plan.fit(room, LimitSource::MaxTokens, grace),
            _ => plan.fit(context, LimitSource::Context, grace),
        }
        plan
    }

    /// Lowers the limit, and failing that the window, until both fit into `room` tokens.
    fn fit(&mut self, room: u32, source: LimitSource, grace: Grace) {
        let fits = |b: u32| u64::from(b) + u64::from(grace.tokens(b)) <= u64::from(room);
        let cap = self.limit.unwrap_or(u32::MAX).min(room);
        // B + g(B) grows with B: the largest that fits is found by bisection over [0, cap].
        let (mut low, mut high) = (0, cap);
        while low < high {
            let middle = high - (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let (limit, window) = if low == 0 { (cap, 0) } else { (low, grace.tokens(low)) };
        if self.limit != Some(limit) {
            (self.limit, self.limit_source) = (Some(limit), Some(source));
        }
        self.grace = window;
    }
}
