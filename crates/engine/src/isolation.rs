//! A panic in one sequence's work is that sequence's error.
//!
//! Whoever calls [`isolated`] replaces or drops everything that the work may have left half done.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` gives, or the message of its panic.
pub(crate) fn isolated<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        format!("internal error: {}", text.unwrap_or("a panic without a message"))
    })
}
