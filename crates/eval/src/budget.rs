//! A budget to measure at.

use crate::error::EvalError;
use hybra_engine::{Grace, ThinkingParams};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How much a model may think.
///
/// `Off` and `Tokens(0)` are two things: the prompt of `Off` has closed the thinking section, that
/// of `Tokens(0)` has opened it, and the engine closes it at once. (A request for an answer with
/// budget 0 is answered with thinking off.)
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Budget {
    /// Thinking is off.
    Off,
    /// So many tokens, and the grace window after them.
    Tokens(u32),
    /// What `max_tokens` leaves.
    Unlimited,
}

impl Budget {
    /// Whether the prompt opens a thinking section.
    pub(crate) fn opens(self) -> bool {
        self != Self::Off
    }

    /// What the prompt is rendered for.
    #[must_use]
    pub fn switch(self) -> ThinkingParams {
        ThinkingParams { enabled: Some(self.opens()), ..ThinkingParams::default() }
    }

    /// What the engine is asked for.
    #[must_use]
    pub fn params(self, grace: Grace) -> ThinkingParams {
        let budget = match self {
            Self::Off => 0,
            Self::Tokens(tokens) => i64::from(tokens),
            Self::Unlimited => -1,
        };
        ThinkingParams { budget: Some(budget), grace, ..ThinkingParams::default() }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off"),
            Self::Tokens(tokens) => f.pad(&tokens.to_string()),
            Self::Unlimited => f.pad("inf"),
        }
    }
}

impl FromStr for Budget {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self, EvalError> {
        match text {
            "off" => Ok(Self::Off),
            "inf" => Ok(Self::Unlimited),
            _ => text
                .parse()
                .map(Self::Tokens)
                .map_err(|_| EvalError::Budget { found: text.chars().take(64).collect() }),
        }
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tokens(tokens) => serializer.serialize_u32(*tokens),
            other => serializer.collect_str(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_back() {
        for budget in [Budget::Off, Budget::Tokens(0), Budget::Tokens(64), Budget::Unlimited] {
            assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget);
        }
        for bad in ["", "-1", "on", "1.5", "4294967296"] {
            assert!(bad.parse::<Budget>().unwrap_err().to_string().contains("found"), "{bad}");
        }
    }
}
