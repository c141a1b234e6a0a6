//! Compiled grammars, the latest used ones, in memory only.
//!
//! Invariant: at most [`MOST_ENTRIES`] grammars and [`MOST_SOURCE_BYTES`] of sources are kept, and
//! what is handed out shares nothing with what stays.

use llguidance::Matcher;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const MOST_ENTRIES: usize = 64;
const MOST_SOURCE_BYTES: usize = 4 << 20;

#[derive(Default)]
pub(crate) struct Cache(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// By source: the grammar, and when it was last used.
    by_source: HashMap<String, (Matcher, u64)>,
    source_bytes: usize,
    uses: u64,
}

impl Cache {
    pub(crate) fn get(&self, source: &str) -> Option<Matcher> {
        let mut entries = self.lock();
        entries.uses += 1;
        let now = entries.uses;
        let (matcher, used) = entries.by_source.get_mut(source)?;
        *used = now;
        Some(matcher.deep_clone())
    }

    pub(crate) fn put(&self, source: String, matcher: Matcher) {
        let mut entries = self.lock();
        entries.uses += 1;
        entries.source_bytes += source.len();
        let entry = (matcher, entries.uses);
        let len = source.len();
        if entries.by_source.insert(source, entry).is_some() {
            // Compiled twice at the same time.
            entries.source_bytes -= len;
        }
        while entries.by_source.len() > MOST_ENTRIES || entries.source_bytes > MOST_SOURCE_BYTES {
            let oldest = entries.by_source.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(source, _)| source.clone()) else { return };
            entries.by_source.remove(&oldest);
            entries.source_bytes -= oldest.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().by_source.len()
    }
}
