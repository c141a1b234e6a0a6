//! A compiled grammar as the engine's constraint of one sequence.

use hybra_engine::{Constraint, ConstraintScope};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::fmt;
use std::sync::Arc;

use crate::grammar_source::short;

/// The state of one sequence's grammar.
pub(crate) struct GrammarConstraint {
    matcher: Matcher,
    vocab_size: usize,
    scope: ConstraintScope,
    /// Tokens of `<TOOLCALL>[`; empty where the grammar has no calls.
    prefix: Arc<[u32]>,
    /// What may come next, while nothing was pushed since it was asked for.
    mask: Option<SimpleVob>,
}

impl GrammarConstraint {
    pub(crate) fn new(
        matcher: Matcher,
        vocab_size: usize,
        scope: ConstraintScope,
        prefix: Arc<[u32]>,
    ) -> Self {
        Self { matcher, vocab_size, scope, prefix, mask: None }
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<(), String> {
        self.mask = None;
        self.matcher.consume_tokens(tokens).map_err(|error| short(&error.to_string()))
    }
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self) -> Result<&[u32], String> {
        if self.mask.is_none() {
            let mut mask =
                self.matcher.compute_mask_or_eos().map_err(|error| dead_end(&error.to_string()))?;
            // One bit past the vocabulary stands for "no token".
            if self.vocab_size / 32 < mask.as_slice().len() {
                mask.set(self.vocab_size, false);
            }
            self.mask = Some(mask);
        }
        Ok(self.mask.as_ref().map_or(&[], SimpleVob::as_slice))
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        self.consume(&[token])
    }

    fn is_complete(&mut self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error() && self.matcher.stop_reason().is_ok()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        let (scope, prefix) = (self.scope, Arc::clone(&self.prefix));
        Box::new(Self::new(self.matcher.deep_clone(), self.vocab_size, scope, prefix))
    }

    fn scope(&self) -> ConstraintScope {
        self.scope
    }

    fn open_tool_call(&mut self) -> Result<(), String> {
        if self.prefix.is_empty() {
            return Err("the answer's grammar allows no tool call, and the model began one".into());
        }
        let prefix = Arc::clone(&self.prefix);
        self.consume(&prefix)
    }
}

fn dead_end(error: &str) -> String {
    if error.contains("NoExtension") {
        return "a dead end: the grammar allows no token of the vocabulary here".to_owned();
    }
    short(error)
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").field("scope", &self.scope).finish_non_exhaustive()
    }
}
