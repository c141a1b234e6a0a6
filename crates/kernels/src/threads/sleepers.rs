//! Workers that sleep, and how they are woken: no locks, one system call for each that is woken.
//!
//! The pact that keeps wakes from being lost: a worker announces its sleep, then looks at the
//! gate; the caller opens the gate, then looks for sleepers. All four are sequentially
//! consistent, so at least one sees the other. The token of `unpark` covers the time between the
//! announcement and the sleep. A job never depends on a wake: the caller can do all of it.
//!
//! A wake costs its caller about as much as a short job, and a worker may come too late for it.
//! So a wake that brought no help makes the callers skip the next ones, twice as many each time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::Thread;

/// Wakes skipped in a row, at most.
const MOST_SKIPPED: u32 = 64;

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

pub(super) struct Sleepers {
    workers: Box<[Sleeper]>,
    /// Workers that announced their sleep and were not woken.
    asleep: AtomicUsize,
    /// Workers that are woken at most: more than there are cores would take turns with the
    /// caller on its core.
    most_awake: usize,
    /// Whether a worker has entered a job since the last wake.
    helped: AtomicBool,
    /// Wakes still to be skipped, and how many were to be at first.
    skips: AtomicU32,
    penalty: AtomicU32,
}

impl Sleepers {
    pub(super) fn new(workers: usize, most_awake: usize) -> Self {
        let workers = (0..workers).map(|_| Sleeper::default()).collect();
        Self {
            workers,
            asleep: AtomicUsize::new(0),
            most_awake,
            helped: AtomicBool::new(true),
            skips: AtomicU32::new(0),
            penalty: AtomicU32::new(0),
        }
    }

    /// Wakes one worker if fewer than `wanted` are awake.
    #[inline]
    pub(super) fn wake_one(&self, wanted: usize) {
        let asleep = self.asleep.load(Ordering::SeqCst);
        if asleep > 0 && self.workers.len() - asleep < wanted.min(self.most_awake) {
            self.wake_first();
        }
    }

    /// A worker has entered a job.
    #[inline]
    pub(super) fn note_help(&self) {
        // The look first: a line that all have is cheaper to read than to write.
        if !self.helped.load(Ordering::Relaxed) {
            self.helped.store(true, Ordering::Relaxed);
        }
    }

    /// Whether wakes pay. A guess from relaxed counters: it costs or saves time, no more.
    fn pays(&self) -> bool {
        if self.helped.load(Ordering::Relaxed) {
            self.penalty.store(0, Ordering::Relaxed);
            self.skips.store(0, Ordering::Relaxed);
            return true;
        }
        let skips = self.skips.load(Ordering::Relaxed);
        if skips > 0 {
            self.skips.store(skips - 1, Ordering::Relaxed);
            return false;
        }
        let penalty = (2 * self.penalty.load(Ordering::Relaxed)).clamp(1, MOST_SKIPPED);
        self.penalty.store(penalty, Ordering::Relaxed);
        self.skips.store(penalty, Ordering::Relaxed);
        true
    }

    #[cold]
    fn wake_first(&self) {
        if !self.pays() {
            return;
        }
        // The first that sleeps: a few warm workers serve short jobs, the others stay asleep.
        for sleeper in &self.workers {
            if sleeper.rouse(&self.asleep) {
                self.helped.store(false, Ordering::Relaxed);
                // Set before the mark that was just cleared.
                return sleeper.thread.get().expect("a sleeper has a name").unpark();
            }
        }
    }

    /// Worker `index` sleeps until it is woken, or not at all if `called` says so after the
    /// announcement.
    pub(super) fn sleep(&self, index: usize, called: impl Fn() -> bool) {
        let sleeper = &self.workers[index];
        sleeper.thread.get_or_init(std::thread::current);
        // The count first: it is never below the marks that are set.
        self.asleep.fetch_add(1, Ordering::SeqCst);
        sleeper.asleep.store(true, Ordering::SeqCst);
        // The mark is cleared by who wakes; `park` may return without that.
        while sleeper.asleep.load(Ordering::Acquire) {
            if called() {
                sleeper.rouse(&self.asleep);
                return;
            }
            std::thread::park();
        }
    }
}

impl Sleeper {
    /// Clears the mark; true for the one who cleared it.
    fn rouse(&self, asleep: &AtomicUsize) -> bool {
        let mine = self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst);
        if mine {
            asleep.fetch_sub(1, Ordering::SeqCst);
        }
        mine
    }
}
