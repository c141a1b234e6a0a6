//! A constraint on the answer: which tokens may come next (a grammar, a schema).
//!
//! Thinking is free: a constraint is asked from the first token after the close tag and its blank
//! lines. It is a function of the tokens it was given; what it is compiled from is the caller's.

use std::fmt::Debug;

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
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}
