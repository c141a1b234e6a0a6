//! What is known about the request that a task works for: its id, deadline and account.
//!
//! A handler's task holds it while it runs, so that what starts a generation finds it there.

use crate::traces::RequestSpan;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

tokio::task_local! {
    /// The request of this task.
    static CURRENT: Context;
}

/// A request's id, deadline and account.
#[derive(Clone, Default)]
pub struct Context {
    /// As in `x-request-id`.
    pub id: String,
    /// When it must have ended.
    pub deadline: Option<Deadline>,
    /// Which route answers it, once that is known.
    pub route: Arc<OnceLock<String>>,
    /// Its tokens.
    pub tokens: Arc<Tokens>,
    /// Its span, where traces are kept.
    pub span: Option<RequestSpan>,
}

/// When a request must have ended.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// The time that it had.
    pub limit: Duration,
}

/// Tokens that a request used, for its line in the log.
#[derive(Default)]
pub struct Tokens {
    /// Of its prompts.
    pub prompt: AtomicU64,
    /// Those of them that came from the cache.
    pub cached: AtomicU64,
    /// Generated ones.
    pub completion: AtomicU64,
}

impl Tokens {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, tokens: usize) {
        counter.fetch_add(tokens as u64, Ordering::Relaxed);
    }
}

impl Context {
    /// That of this task; outside of requests one without deadline.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Runs `work` for this request.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }
}

impl Deadline {
    /// Now and `limit`.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }
}
