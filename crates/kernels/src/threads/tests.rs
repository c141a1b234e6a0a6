//! The pool under stress: every task once, whoever comes late, sleeps, panics or is dropped.

use super::*;
use std::sync::Barrier;

/// All workers of these pools may be awake at once, on however few cores.
fn pool(threads: usize) -> ThreadPool {
    ThreadPool::with_most_awake(threads, threads)
}

/// Runs a job that counts how often each task ran, in memory that is gone after it.
fn check_job(pool: &ThreadPool, count: usize) {
    let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
    pool.run(count, |i| {
        hits[i].fetch_add(1, Ordering::Relaxed);
    });
    assert!(hits.into_iter().all(|h| h.into_inner() == 1));
}

#[test]
fn every_task_runs_once_also_nested_and_many_times() {
    for threads in [1, 2, 5] {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for count in (0..40).chain([1000]) {
            let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            pool.run(count, |i| {
                let thread = std::thread::current().id();
                pool.run(2, |_| {
                    assert_eq!(std::thread::current().id(), thread, "a nested call stays");
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 2));
        }
    }
}

#[test]
fn tiny_jobs_one_after_the_other_touch_only_their_own_memory() {
    for threads in [2, 3, 8] {
        let pool = pool(threads);
        for round in 0..20_000 {
            // Each sum has its own place, which is overwritten right after the job.
            let mut sums = [round; 4];
            pool.for_parts(crate::buffer::Chunks::new(&mut sums, 1), |i, s| s[0] += i);
            assert_eq!(sums, [round, round + 1, round + 2, round + 3]);
        }
    }
}

#[test]
fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_goes_on() {
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        for bad in (0..100).step_by(3) {
            let inside = AtomicUsize::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |i| {
                    inside.fetch_add(1, Ordering::Relaxed);
                    // Not `panic!`: its message would be printed for each.
                    if i == bad {
                        inside.fetch_sub(1, Ordering::Relaxed);
                        resume_unwind(Box::new(i));
                    }
                    std::hint::spin_loop();
                    inside.fetch_sub(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(inside.into_inner(), 0, "a task runs after the job");
            assert_eq!(*caught.unwrap_err().downcast::<usize>().unwrap(), bad);
            check_job(&pool, 10);
        }
    }
}

#[test]
fn a_panic_on_a_worker_reaches_the_caller() {
    let pool = pool(2);
    let caller = std::thread::current().id();
    let meet = Barrier::new(2);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, |_| {
            // Both threads are in a task.
            meet.wait();
            if std::thread::current().id() != caller {
                resume_unwind(Box::new("from the worker"));
            }
        });
    }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"from the worker"));
}

#[test]
fn sleeping_workers_wake_up() {
    let pool = pool(4);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(1));
        let meet = Barrier::new(4);
        // Ends only if all four threads come.
        pool.run(4, |_| {
            meet.wait();
        });
    }
}

#[test]
fn a_caller_that_waits_long_is_woken() {
    let pool = pool(2);
    let caller = std::thread::current().id();
    let meet = Barrier::new(2);
    for round in 0..20 {
        pool.run(2, |_| {
            meet.wait();
            if std::thread::current().id() != caller {
                std::thread::sleep(round % 4 * PATIENCE);
            }
        });
    }
}

#[test]
fn pools_are_dropped_in_any_state() {
    for round in 0..300 {
        let pool = pool(1 + round % 5);
        // Workers that have not begun, that spin, that go to sleep and that sleep.
        if round % 3 > 0 {
            check_job(&pool, round % 7);
        }
        std::thread::sleep(Duration::from_micros([0, 10, 120, 300][round % 4]));
    }
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = pool(3);
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..2_000 {
                    check_job(pool, (caller + round) % 9);
                }
            });
        }
    });
}

#[test]
fn small_jobs_of_known_size_stay_on_the_calling_thread() {
    let pool = pool(2);
    let caller = std::thread::current().id();
    let mut parts = [0; 64];
    pool.for_parts_sized(64, crate::buffer::Chunks::new(&mut parts, 1), |i, part| {
        assert_eq!(std::thread::current().id(), caller);
        part[0] = i;
    });
    assert!(parts.into_iter().eq(0..64));
}
