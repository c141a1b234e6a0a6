//! A device that has no room for a pass, though the limits of memory let it begin: others use the
//! device too, or states lie apart.
//!
//! The pass has changed nothing and is planned again in the next step, after room was made in the
//! order of [`admission`](crate::admission): half of the cache, somebody who does not run, at last
//! the worst sequence that runs, which goes to a file. Only a sequence that finds no room while it
//! runs alone fails.
//!
//! Invariants: each pass that finds no room frees something or ends a sequence, so some pass finds
//! room; what gave way does not come back in the next step, but as others end; no bit changes.

use crate::engine::Engine;
use crate::sequence::Event;
use hybra_model::ForwardError;

/// Why a pass came to nothing.
pub(crate) enum PassError {
    /// No room on the device; no state has changed.
    Full(String),
    /// The states are of no use.
    Failed(String),
}

impl From<ForwardError> for PassError {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::DeviceFull(error) => Self::Full(error),
            error => Self::Failed(format!("internal error: {error}")),
        }
    }
}

impl Engine {
    /// Makes room for a pass that failed with `error`, or ends the sequence that runs alone.
    pub(crate) fn make_device_room(&mut self, error: &str, events: &mut Vec<Event>) {
        let (cached, _) = self.snapshots.size();
        if cached > 0 {
            return self.snapshots.shrink_to(cached / 2);
        }
        if self.reclaim(None) {
            return;
        }
        if let Some(worst) = self.worst_running().filter(|_| self.running.len() > 1) {
            self.preempt(worst, true);
            self.seats = Some(self.running.len());
            return;
        }
        for mut sequence in self.running.drain(..) {
            let tokens = sequence.tokens.len();
            events.push(sequence.fail(format!(
                "no room on the device for this request of {tokens} tokens alone: {error}; shorten \
                 it, or free memory of the device"
            )));
        }
    }

    /// Sequences that may run: since the device was full, one more than did whenever one ends.
    pub(crate) fn places(&mut self) -> usize {
        match self.seats {
            Some(_) if self.waiting.is_empty() => self.seats = None,
            Some(seats) if self.running.len() < seats => self.seats = Some(self.running.len() + 2),
            _ => {}
        }
        self.config.max_num_seqs.min(self.seats.unwrap_or(usize::MAX))
    }
}
