//! Ranks that are threads of one process.
//!
//! An exchange has two halves: all ranks lay down their parts, then all take theirs. A rank that is
//! dropped ends the group: whoever waits for it gets an error.

use super::{Comm, CommError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// One rank of a group of threads.
pub struct LocalComm {
    rank: usize,
    table: Arc<Table>,
}

struct Table {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Per rank: its parts, by receiver.
    laid: Vec<Option<Vec<Vec<u8>>>>,
    /// Ranks that have taken theirs; everything is laid while this counts.
    taken: Option<usize>,
    lost: Option<usize>,
}

impl LocalComm {
    /// A group of `size` ranks, to be given to as many threads.
    ///
    /// # Panics
    /// If `size` is 0.
    #[must_use]
    pub fn group(size: usize) -> Vec<Self> {
        assert!(size > 0, "a group has a rank");
        let state = State { laid: vec![None; size], taken: None, lost: None };
        let table = Arc::new(Table { state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, table: Arc::clone(&table) }).collect()
    }

    /// The only rank of a group.
    #[must_use]
    pub fn single() -> Self {
        Self::group(1).remove(0)
    }

    /// The state, once `ready` holds of it.
    fn wait(&self, ready: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>, CommError> {
        let mut state = self.table.lock();
        while !ready(&state) {
            if let Some(rank) = state.lost {
                return Err(CommError::Lost { rank });
            }
            let woken = self.table.changed.wait(state);
            state = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        Ok(state)
    }
}

impl Table {
    /// A rank that panicked is lost, and says so by being dropped.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Comm for LocalComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.table.lock().laid.len()
    }

    fn all_to_all(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, CommError> {
        let mut state = self.wait(|state| state.taken.is_none())?;
        assert_eq!(parts.len(), state.laid.len(), "a part for every rank");
        state.laid[self.rank] = Some(parts.iter().map(|part| part.to_vec()).collect());
        if state.laid.iter().all(Option::is_some) {
            state.taken = Some(0);
            self.table.changed.notify_all();
        }
        drop(state);
        let mut state = self.wait(|state| state.taken.is_some())?;
        let here = |laid: &mut Option<Vec<Vec<u8>>>| {
            std::mem::take(&mut laid.as_mut().expect("all have laid down theirs")[self.rank])
        };
        let received = state.laid.iter_mut().map(here).collect();
        state.taken = state.taken.map(|taken| taken + 1);
        if state.taken == Some(state.laid.len()) {
            state.laid.fill(None);
            state.taken = None;
            self.table.changed.notify_all();
        }
        Ok(received)
    }
}

impl Drop for LocalComm {
    fn drop(&mut self) {
        self.table.lock().lost.get_or_insert(self.rank);
        self.table.changed.notify_all();
    }
}
