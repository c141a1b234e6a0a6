//! The worker pool that ops get as an explicit argument.
//!
//! [`ThreadPool::run`] calls a closure once for every task index; threads take indices from a
//! shared counter, so a slow core takes fewer. The caller takes part: a job is done when the
//! counter is used up and the workers that *entered* it have left, so a worker that sleeps or has
//! lost its core to another program costs its share of the work and no waiting. Workers spin
//! briefly between jobs and then sleep; a short job is not worth waking them.
//!
//! A call from inside a task runs on the calling thread alone; calls from several threads take
//! turns. A panic in a task ends the job and is raised again in the caller after every worker has
//! left. Which thread runs a task is not defined: results must not depend on it. A job allocates
//! nothing.

mod gate;
mod sleepers;
mod worker;

use crate::buffer::Parts;
use gate::Gate;
use sleepers::Sleepers;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use worker::Worker;

/// Fewer operations than this are done sooner than another core has heard of them.
const MIN_SHARED_OPERATIONS: usize = 32 * 1024;

/// Fewer operations than this are done sooner than a sleeping worker wakes up.
const MIN_WAKING_OPERATIONS: usize = 256 * 1024;

/// The caller sleeps if it has waited this long for workers to end their last tasks: its core may
/// be the one that such a worker needs.
const PATIENCE: Duration = Duration::from_micros(60);

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    count: usize,
    /// Whether sleeping workers are woken for it.
    wakes: bool,
}

/// Keeps what different threads write out of each other's cache lines (pairs of lines, where they
/// are fetched in pairs).
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    gate: Apart<Gate>,
    /// The next task to take.
    next: Apart<AtomicUsize>,
    job: Apart<UnsafeCell<Option<Job>>>,
    sleepers: Sleepers,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Where the caller sleeps until the last worker leaves.
    last_left: (Mutex<()>, Condvar),
}

// SAFETY: `job` is written only by the caller that holds `running`, while the gate is closed and
// nobody is inside, and read only by workers inside. The gate orders both (see its orderings).
// The closure behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the raw task pointer is used only while `run`, which borrows the closure, waits.
unsafe impl Send for Shared {}

/// A fixed set of threads; the calling thread is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    running: Mutex<()>,
}

impl ThreadPool {
    /// A pool of `threads` threads in all (at least one: the caller's). No more of them work at a
    /// time than this process has cores.
    pub fn new(threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(threads, usize::from);
        Self::with_most_awake(threads, cores.saturating_sub(1).max(1))
    }

    /// A pool that keeps at most `most_awake` workers awake.
    fn with_most_awake(threads: usize, most_awake: usize) -> Self {
        let workers = threads.max(1) - 1;
        assert!(workers < gate::MOST_WORKERS, "{threads} threads");
        let shared = Arc::new(Shared {
            gate: Apart(Gate::new()),
            next: Apart(AtomicUsize::new(0)),
            job: Apart(UnsafeCell::new(None)),
            sleepers: Sleepers::new(workers, most_awake),
            panic: Mutex::new(None),
            last_left: Default::default(),
        });
        let workers = (0..workers)
            .map(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("hybra-worker-{}", i + 1))
                    .spawn(move || {
                        // Whatever a worker runs is a task.
                        IN_TASK.set(true);
                        Worker::new(&shared, i).run();
                    })
                    .expect("a worker thread starts")
            })
            .collect();
        Self { shared, workers, running: Mutex::new(()) }
    }

    /// Threads in all, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < count` and returns when all are done.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        self.run_job(count, true, task);
    }

    /// Calls `task(i, part)` once for every part.
    pub fn for_parts<P: Parts>(&self, parts: P, task: impl Fn(usize, P::Part) + Sync) {
        // SAFETY: `run_job` gives every index below the count exactly once.
        self.run_job(parts.count(), true, |i| task(i, unsafe { parts.part(i) }));
    }

    /// [`Self::for_parts`], on the calling thread alone where `operations`, a rough count of all
    /// the arithmetic, are too few to pay for sharing, and without waking anybody where they are
    /// too few to pay for that.
    pub fn for_parts_sized<P: Parts>(
        &self,
        operations: usize,
        parts: P,
        task: impl Fn(usize, P::Part) + Sync,
    ) {
        if operations >= MIN_SHARED_OPERATIONS {
            let wakes = operations >= MIN_WAKING_OPERATIONS;
            // SAFETY: `run_job` gives every index below the count exactly once.
            return self.run_job(parts.count(), wakes, |i| task(i, unsafe { parts.part(i) }));
        }
        for i in 0..parts.count() {
            // SAFETY: every index below the count once, one after the other.
            task(i, unsafe { parts.part(i) });
        }
    }

    fn run_job(&self, count: usize, wakes: bool, task: impl Fn(usize) + Sync) {
        if count <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return (0..count).for_each(task);
        }
        let _one = locked(&self.running);
        let shared = &*self.shared;
        let task: &Task<'_> = &task;
        // SAFETY: only the lifetime is erased. The pointer is read and used inside the gate alone,
        // and `leave_together` returns when nobody is inside and nobody can enter any more.
        let task: *const Task<'static> = unsafe { std::mem::transmute(task) };
        let job = Job { task, count, wakes };
        // SAFETY: `running` is held, and the last job ended with a closed and empty gate.
        unsafe { *shared.job.0.get() = Some(job) };
        // Relaxed: published by the opening.
        shared.next.0.store(0, Ordering::Relaxed);
        shared.gate.0.open();
        if wakes {
            shared.sleepers.wake_one(count - 1);
        }
        IN_TASK.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(job)));
        IN_TASK.set(false);
        if own.is_err() {
            shared.skip_the_rest(job);
        }
        shared.leave_together();
        let theirs = locked(&shared.panic).take();
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.gate.0.stop();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn take_tasks(&self, job: Job) {
        loop {
            // Relaxed: it only deals out numbers; what tasks write is ordered by the gate.
            let i = self.next.0.fetch_add(1, Ordering::Relaxed);
            if i >= job.count {
                return;
            }
            // SAFETY: the caller of this function is inside the gate or is `run_job` itself,
            // which keeps the closure alive until nobody is inside.
            unsafe { (*job.task)(i) };
        }
    }

    /// After a panic nobody needs the remaining tasks.
    fn skip_the_rest(&self, job: Job) {
        self.next.0.store(job.count, Ordering::Relaxed);
    }

    /// A worker's part of the job that it has entered; true if the caller slept over it.
    fn work_inside(&self) -> bool {
        // SAFETY: this worker is inside, so the job was written before and is not written now.
        let job = unsafe { *self.job.0.get() }.expect("a job is written before its opening");
        self.sleepers.note_help();
        let left = job.count.saturating_sub(self.next.0.load(Ordering::Relaxed));
        if job.wakes && left > 1 {
            // Workers wake each other, so that the caller pays for one system call at most.
            self.sleepers.wake_one(usize::MAX);
        }
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))) {
            *locked(&self.panic) = Some(payload);
            self.skip_the_rest(job);
        }
        let caller_sleeps = self.gate.0.leave();
        if caller_sleeps {
            // The caller looks at the gate under the lock: it is not between look and sleep now.
            drop(locked(&self.last_left.0));
            self.last_left.1.notify_one();
        }
        caller_sleeps
    }

    /// Closes the gate and waits until nobody is inside.
    fn leave_together(&self) {
        if self.gate.0.close() {
            return;
        }
        let mut start = None;
        loop {
            for _ in 0..64 {
                if self.gate.0.is_empty() {
                    return;
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                break;
            }
        }
        self.gate.0.await_last();
        let mut guard = locked(&self.last_left.0);
        while !self.gate.0.is_empty() {
            guard = self.last_left.1.wait(guard).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// The locks of the pool guard nothing that a panic leaves half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests;
