//! The gate of the pool: which job is on, whether it may still be entered, who is inside.
//!
//! All of it is one atomic number, so that entering is one compare-and-swap that succeeds only
//! while the very job that the worker saw is open. Invariant: once the caller has closed the gate
//! and then seen nobody inside, no worker reads the job or its closure until the next opening.
//!
//! **Orderings.** What the caller wrote before [`Gate::open`] (release) is visible to a worker
//! whose [`Gate::enter`] (acquire) succeeds: it reads the opening or the entry or exit of another
//! worker, which are read-modify-writes and so continue the release sequence of the opening. What
//! a worker did before [`Gate::leave`] (release) is visible to the caller that reads a number
//! with that exit in it ([`Gate::close`], [`Gate::is_empty`], acquire), for the same reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Workers inside.
const INSIDE: u64 = (1 << 16) - 1;
/// Tasks may be left: workers may enter.
const OPEN: u64 = 1 << 16;
/// The caller sleeps until the last worker leaves.
const AWAITED: u64 = 1 << 17;
/// The pool ends.
const STOP: u64 = 1 << 18;
/// One job; the bits from here up count them. They do not wrap within centuries.
const JOB: u64 = 1 << 19;

/// Workers that the number has room for.
pub(super) const MOST_WORKERS: usize = INSIDE as usize;

pub(super) struct Gate(AtomicU64);

/// Number of a job, in the upper bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct JobId(u64);

impl JobId {
    /// Before the first job.
    pub(super) const NONE: Self = Self(0);

    fn of(state: u64) -> Self {
        Self(state / JOB)
    }
}

pub(super) enum Entry {
    /// Inside the job: it must be left.
    Entered(JobId),
    /// No job, a closed one, or the last one again.
    Nothing,
    Stop,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Opens the next job. Only for the caller, who has closed the last one and seen it empty.
    ///
    /// Sequentially consistent beside its release: it is one half of the pact with workers that
    /// go to sleep (see `Sleepers`).
    pub(super) fn open(&self) {
        // Nobody else changes a closed and empty gate.
        let state = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state & (OPEN | INSIDE | STOP), 0);
        self.0.store(((state / JOB + 1) * JOB) | OPEN, Ordering::SeqCst);
    }

    /// Enters the open job, unless it is `last`.
    #[inline]
    pub(super) fn enter(&self, last: JobId) -> Entry {
        // Relaxed: the exchange decides; a stale number only delays the entry.
        let mut state = self.0.load(Ordering::Relaxed);
        loop {
            if state & STOP != 0 {
                return Entry::Stop;
            }
            if state & OPEN == 0 || JobId::of(state) == last {
                return Entry::Nothing;
            }
            let next = state + 1;
            let entered =
                self.0.compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed);
            match entered {
                Ok(_) => return Entry::Entered(JobId::of(state)),
                Err(now) => state = now,
            }
        }
    }

    /// Whether a worker that read `last` has something to do: the other half of the pact.
    pub(super) fn calls(&self, last: JobId) -> bool {
        let state = self.0.load(Ordering::SeqCst);
        state & STOP != 0 || state & OPEN != 0 && JobId::of(state) != last
    }

    /// Leaves the job; true if the caller sleeps and this was the last worker.
    pub(super) fn leave(&self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::Release);
        before & AWAITED != 0 && before & INSIDE == 1
    }

    /// Lets nobody enter any more; true if nobody is inside.
    pub(super) fn close(&self) -> bool {
        self.0.fetch_and(!OPEN, Ordering::Acquire) & INSIDE == 0
    }

    /// Whether all workers have left the closed job.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) & INSIDE == 0
    }

    /// Asks the last worker to wake the caller.
    pub(super) fn await_last(&self) {
        // Relaxed: it joins the order of the exits on this number; what they did is read by the
        // acquire of `is_empty`, which the caller asks afterwards.
        self.0.fetch_or(AWAITED, Ordering::Relaxed);
    }

    /// Ends the pool.
    pub(super) fn stop(&self) {
        self.0.fetch_or(STOP, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_entered_once_while_it_is_open() {
        let gate = Gate::new();
        assert!(matches!(gate.enter(JobId::NONE), Entry::Nothing) && !gate.calls(JobId::NONE));
        gate.open();
        assert!(gate.calls(JobId::NONE));
        let Entry::Entered(first) = gate.enter(JobId::NONE) else { panic!("the gate is open") };
        assert!(matches!(gate.enter(first), Entry::Nothing) && !gate.calls(first));
        assert!(!gate.close() && !gate.is_empty());
        assert!(matches!(gate.enter(JobId::NONE), Entry::Nothing));
        gate.await_last();
        assert!(gate.leave() && gate.is_empty());
        gate.open();
        let Entry::Entered(second) = gate.enter(first) else { panic!("the gate is open") };
        assert!(second != first && !gate.leave() && gate.close());
        gate.stop();
        assert!(matches!(gate.enter(second), Entry::Stop) && gate.calls(second));
    }
}
