//! What a worker does: enter jobs, spin for the next one, make room for others, sleep.
//!
//! Within a step of a model the next job is some 10 µs away, so a worker spins for it. It sleeps
//! when none comes, and it steps aside where other programs want its core: a thread that yields
//! between jobs is not interrupted in the middle of a task, where its caller would have to wait
//! for it. The clock is read to decide when to rest, never to decide what is computed.

use super::Shared;
use super::gate::{Entry, JobId};
use std::time::{Duration, Instant};

/// A worker that waited this long for a job sleeps.
const SPIN: Duration = Duration::from_micros(120);
/// The same where the core is contended: others can use the time.
const CONTENDED_SPIN: Duration = Duration::from_micros(20);
/// Looks at the gate between two looks at the clock: less than a microsecond.
const LOOKS: usize = 32;
/// A worker that did not run for this long while it looked was not alone on its core.
const GAP: Duration = Duration::from_micros(40);
/// A worker on a contended core works for so long at a time: less than the time slices of
/// schedulers, which end in the middle of a task.
const TURN: Duration = Duration::from_micros(1000);

pub(super) struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    last: JobId,
    /// Others want this core.
    contended: bool,
    /// When it last had the core anew.
    turn: Instant,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared, index: usize) -> Self {
        Self { shared, index, last: JobId::NONE, contended: false, turn: Instant::now() }
    }

    /// Works until the pool is dropped.
    pub(super) fn run(mut self) {
        while let Some(id) = self.next_job() {
            self.last = id;
            let late = self.shared.work_inside();
            if late {
                // The caller went to sleep over this worker's last task.
                self.step_aside();
            }
        }
    }

    /// Enters the next job; `None` at the end of the pool.
    fn next_job(&mut self) -> Option<JobId> {
        // Workers begin asleep: the pool may never be used.
        if self.last == JobId::NONE {
            self.sleep();
        }
        loop {
            match self.spin() {
                Entry::Entered(id) => return Some(id),
                Entry::Stop => return None,
                Entry::Nothing => self.sleep(),
            }
        }
    }

    fn spin(&mut self) -> Entry {
        // Most jobs follow at once: no look at the clock for them.
        if let Some(entry) = self.look() {
            return entry;
        }
        let start = Instant::now();
        let mut seen = start;
        if self.contended && start - self.turn > TURN {
            self.step_aside();
            seen = self.turn;
        }
        loop {
            if let Some(entry) = self.look() {
                return entry;
            }
            let now = Instant::now();
            if now - seen > GAP {
                (self.contended, self.turn) = (true, now);
            }
            seen = now;
            if now - start > if self.contended { CONTENDED_SPIN } else { SPIN } {
                return Entry::Nothing;
            }
        }
    }

    /// Looks for a job for a moment.
    #[inline]
    fn look(&self) -> Option<Entry> {
        for _ in 0..LOOKS {
            match self.shared.gate.0.enter(self.last) {
                Entry::Nothing => std::hint::spin_loop(),
                entry => return Some(entry),
            }
        }
        None
    }

    /// Lets others have the core, if there are any; their absence ends the contention.
    fn step_aside(&mut self) {
        let before = Instant::now();
        std::thread::yield_now();
        self.turn = Instant::now();
        self.contended = self.turn - before > GAP;
    }

    fn sleep(&mut self) {
        let (gate, last) = (&self.shared.gate.0, self.last);
        self.shared.sleepers.sleep(self.index, || gate.calls(last));
        // What was known about the core is old.
        (self.contended, self.turn) = (false, Instant::now());
    }
}
