//! A constraint on the answer: which tokens may come next (a grammar, a schema).
//!
//! Thinking is free: a constraint is asked from the first token after the close tag and its blank
//! lines, or, where it is about tool calls only, from the token after `<TOOLCALL>[`. It is a
//! function of the tokens it was given; what it is compiled from is the caller's.
//!
//! Invariant: text that a constraint has to see is never half of a token. While one waits, tokens
//! that end a tag and hold text behind it are forbidden, and so are, as long as blank lines after
//! the close tag belong to that tag, tokens with a newline before other text.

use crate::sampler::Allowed;
use crate::thinking_budget::{Place, ThinkingBudget};
use std::fmt::Debug;

/// Where a constraint begins to hold.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ConstraintScope {
    /// The whole answer.
    #[default]
    Answer,
    /// A tool call, from behind `<TOOLCALL>[`; text before it is free.
    ToolCall,
}

/// The state of one sequence's constraint.
pub trait Constraint: Send + Debug {
    /// One bit per token id, 32 to a word, set where the token may come next; end-of-sequence ids
    /// are set where the text may end here.
    ///
    /// # Errors
    /// The constraint cannot go on (a dead end, a limit): the sequence fails with this message.
    fn allowed(&mut self) -> Result<&[u32], String>;

    /// Takes an allowed token.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn push(&mut self, token: u32) -> Result<(), String>;

    /// Nothing may follow: the sequence ends by itself.
    fn is_complete(&mut self) -> bool;

    /// A copy in the same state.
    fn boxed_clone(&self) -> Box<dyn Constraint>;

    /// Where it begins to hold.
    fn scope(&self) -> ConstraintScope {
        ConstraintScope::Answer
    }

    /// `<TOOLCALL>[` was written before the constraint held, so its tokens were not given to it; it
    /// goes on behind them.
    ///
    /// # Errors
    /// It allows no tool call.
    fn open_tool_call(&mut self) -> Result<(), String> {
        Err("it allows no tool call, and the model began one".to_owned())
    }
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// A sequence's constraint, and whether it holds yet.
#[derive(Debug)]
pub(crate) struct Arming {
    constraint: Box<dyn Constraint>,
    holds: bool,
}

/// What a constraint makes of the next token.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdict<'a> {
    /// What may come, once the constraint holds.
    pub(crate) allowed: Option<Allowed<'a>>,
    /// What must not, whatever `allowed` says.
    pub(crate) forbidden: [&'a [u32]; 2],
}

impl Arming {
    pub(crate) fn new(constraint: Box<dyn Constraint>) -> Self {
        Self { constraint, holds: false }
    }

    /// Lets the constraint hold where its place is reached. True if nothing may follow.
    pub(crate) fn arm(&mut self, budget: &ThinkingBudget) -> Result<bool, String> {
        if !self.holds {
            let whole_answer = self.constraint.scope() == ConstraintScope::Answer;
            self.holds = match budget.place() {
                Place::Section => false,
                Place::Answer => whole_answer,
                Place::Tool => {
                    self.constraint.open_tool_call().map_err(explained)?;
                    true
                }
            };
        }
        Ok(self.is_complete())
    }

    /// What may come next.
    pub(crate) fn verdict<'a>(
        &'a mut self,
        budget: &'a ThinkingBudget,
    ) -> Result<Verdict<'a>, String> {
        if !self.holds {
            let whole_answer = self.constraint.scope() == ConstraintScope::Answer;
            return Ok(Verdict { allowed: None, forbidden: budget.straddling(whole_answer) });
        }
        let mask = self.constraint.allowed().map_err(explained)?;
        let allowed = Allowed { mask, beside: budget.blank_lines() };
        Ok(Verdict { allowed: Some(allowed), forbidden: [budget.led_by_newline(), &[]] })
    }

    /// Takes the token that was sampled; before `budget` does.
    pub(crate) fn push(&mut self, token: u32, budget: &ThinkingBudget) -> Result<(), String> {
        if !self.holds || budget.blank_lines().binary_search(&token).is_ok() {
            return Ok(());
        }
        self.constraint.push(token).map_err(explained)
    }

    /// It holds and nothing may follow.
    pub(crate) fn is_complete(&mut self) -> bool {
        self.holds && self.constraint.is_complete()
    }
}

fn explained(error: String) -> String {
    format!("constraint: {error}")
}

impl Verdict<'_> {
    /// Whether the constraint lets the text end here.
    pub(crate) fn allows_any(&self, ids: &[u32]) -> bool {
        self.allowed.is_some_and(|allowed| ids.iter().any(|&id| allowed.has(id)))
    }
}

#[cfg(test)]
mod tests;
