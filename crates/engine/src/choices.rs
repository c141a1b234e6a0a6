//! Choices of one request share the reading of their prompt.
//!
//! The first to start reads it; the others wait and start from its state at the last place where
//! a prompt may be split. A reader that ends before it got there is replaced by the next. A state
//! given away for memory is read again: sharing saves work and decides nothing.

use crate::sequence::Sequence;
use hybra_model::SequenceState;
use std::collections::{HashMap, VecDeque};

/// Groups that have members to start.
#[derive(Default)]
pub(crate) struct Groups {
    states: HashMap<u64, Shared>,
}

/// What the reader of a group left.
pub(crate) struct Shared {
    pub(crate) state: SequenceState,
    /// Prompt tokens that the request did not read.
    pub(crate) cached_tokens: usize,
}

impl Groups {
    /// Members that wait start from a copy of the state of `sequence`, if it is where choices part
    /// and the copy fits into `room` bytes. The bytes that it takes.
    pub(crate) fn share(
        &mut self,
        sequence: &Sequence,
        waiting: &VecDeque<Sequence>,
        room: usize,
    ) -> usize {
        let Some(group) = sequence.group.filter(|_| !sequence.reads_for_others()) else { return 0 };
        let state = sequence.state();
        let is_awaited = waiting.iter().any(|s| s.group == Some(group) && s.held.is_nothing());
        if !is_awaited || state.bytes() > room {
            return 0;
        }
        let (state, cached_tokens) = (state.clone(), sequence.cached_tokens);
        let bytes = state.bytes();
        self.states.insert(group, Shared { state, cached_tokens });
        bytes
    }

    /// What a member starts from.
    pub(crate) fn get(&self, group: u64) -> Option<&Shared> {
        self.states.get(&group)
    }

    /// Gives a group's state away.
    pub(crate) fn take(&mut self, group: u64) -> Option<Shared> {
        self.states.remove(&group)
    }

    /// Whether `sequence` waits for the reader of its prompt.
    pub(crate) fn must_wait(&self, sequence: &Sequence, running: &[Sequence]) -> bool {
        let reads = |group| running.iter().any(|s| s.group == Some(group) && s.reads_for_others());
        let fresh = sequence.held.is_nothing();
        sequence.group.is_some_and(|g| fresh && !self.states.contains_key(&g) && reads(g))
    }

    /// Forgets the states that nobody starts from any more.
    pub(crate) fn retain(&mut self, waiting: &VecDeque<Sequence>) {
        self.states.retain(|&group, _| {
            waiting.iter().any(|s| s.group == Some(group) && s.held.is_nothing())
        });
    }

    /// Forgets one state for its memory; false if there is none.
    pub(crate) fn drop_one(&mut self) -> bool {
        let Some(&group) = self.states.keys().min() else { return false };
        self.states.remove(&group).is_some()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.states.values().map(|shared| shared.state.bytes()).sum()
    }
}
