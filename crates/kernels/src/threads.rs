//! The worker pool that ops get as an explicit argument.
//!
//! [`ThreadPool::run`] calls a closure once for every task index; threads take indices from a
//! shared counter, so a slow core takes fewer. Workers spin briefly between jobs and then sleep.
//! A call from inside a task runs on the calling thread alone. A panic in a task is raised again
//! in the caller after every worker has left the job. Which thread runs a task is not defined:
//! results must not depend on it.

use crate::buffer::Parts;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Turns of the spin loop before a worker sleeps: about 20 microseconds.
const SPINS: usize = 4_000;

/// Fewer operations than this are done sooner than a sleeping worker wakes up.
const MIN_SHARED_OPERATIONS: usize = 32 * 1024;

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    count: usize,
}

struct Shared {
    /// Grows by one with each job; workers wait for it to change.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    /// Workers that have not left the current job yet.
    busy: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the caller that holds `running`, while no worker is busy, and
// published by the release store to `epoch`.
unsafe impl Sync for Shared {}
// SAFETY: the raw task pointer is used only while `run`, which owns the closure, waits.
unsafe impl Send for Shared {}

/// A fixed set of threads; the calling thread is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    running: Mutex<()>,
}

impl ThreadPool {
    /// A pool of `threads` threads in all (at least one: the caller's).
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("hybra-worker-{i}"))
                    .spawn(move || worker(&shared))
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
        if count <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return (0..count).for_each(task);
        }
        let _one = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let task: &Task<'_> = &task;
        // SAFETY: only the lifetime is erased; `finish` waits until no worker uses the task.
        let task: *const Task<'static> = unsafe { std::mem::transmute(task) };
        self.start(Job { task, count });
        IN_TASK.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| take_tasks(&self.shared, Job { task, count })));
        IN_TASK.set(false);
        self.finish();
        let theirs = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Calls `task(i, part)` once for every part.
    pub fn for_parts<P: Parts>(&self, parts: P, task: impl Fn(usize, P::Part) + Sync) {
        // SAFETY: `run` gives every index below the count exactly once.
        self.run(parts.count(), |i| task(i, unsafe { parts.part(i) }));
    }

    /// [`Self::for_parts`], on the calling thread alone where `operations`, a rough count of all
    /// the arithmetic, are too few to pay for waking others.
    pub fn for_parts_sized<P: Parts>(
        &self,
        operations: usize,
        parts: P,
        task: impl Fn(usize, P::Part) + Sync,
    ) {
        if operations >= MIN_SHARED_OPERATIONS {
            return self.for_parts(parts, task);
        }
        for i in 0..parts.count() {
            // SAFETY: every index below the count once, one after the other.
            task(i, unsafe { parts.part(i) });
        }
    }

    fn start(&self, job: Job) {
        let shared = &self.shared;
        // SAFETY: `running` is held and no worker is busy, so nobody reads the cell.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if *shared.sleepers.lock().unwrap_or_else(|e| e.into_inner()) > 0 {
            shared.wake.notify_all();
        }
    }

    fn finish(&self) {
        let mut spins = 0;
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.sleepers.lock().unwrap_or_else(|e| e.into_inner()));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn take_tasks(shared: &Shared, job: Job) {
    loop {
        let i = shared.next.fetch_add(1, Ordering::Relaxed);
        if i >= job.count {
            return;
        }
        // SAFETY: the closure outlives the job: `run` waits for every worker to leave it.
        unsafe { (*job.task)(i) };
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = next_epoch(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch was published after the job was written, and it is not written again
        // before this worker leaves the job.
        let job = unsafe { *shared.job.get() }.expect("a job is published before its epoch");
        IN_TASK.set(true);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| take_tasks(shared, job))) {
            *shared.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(payload);
        }
        IN_TASK.set(false);
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for an epoch other than `seen`: spins, then sleeps.
fn next_epoch(shared: &Shared, seen: usize) -> usize {
    for _ in 0..SPINS {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    let mut sleepers = shared.sleepers.lock().unwrap_or_else(|e| e.into_inner());
    *sleepers += 1;
    while shared.epoch.load(Ordering::SeqCst) == seen {
        sleepers = shared.wake.wait(sleepers).unwrap_or_else(|e| e.into_inner());
    }
    *sleepers -= 1;
    shared.epoch.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_also_nested_and_many_times() {
        for threads in [1, 2, 5] {
            let pool = ThreadPool::new(threads);
            assert_eq!(pool.threads(), threads);
            for count in (0..40).chain([1000]) {
                let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, |i| {
                    pool.run(2, |_| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = ThreadPool::new(3);
        for bad in [0, 7, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |i| assert_ne!(i, bad, "task {bad}"));
            }));
            assert!(caught.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(10, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = ThreadPool::new(2);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let seen = Mutex::new(Vec::new());
            pool.run(64, |i| seen.lock().unwrap().push(i));
            assert_eq!(seen.into_inner().unwrap().len(), 64);
        }
    }
}
