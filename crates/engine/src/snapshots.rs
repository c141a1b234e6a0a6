//! States of prompts kept for later prompts: in memory, and in files if asked for.
//!
//! A snapshot has read exactly a prefix as long as a multiple of the scan chunk, as part of a
//! prompt. Prompts are split there anyway, so going on from a snapshot gives the bits of reading
//! the whole prompt (unless it is kept in fewer bits than it was made in).
//!
//! Snapshots are taken at the last place where a prompt may be split, at the last few of the
//! request's cache points, and where a prompt leaves what was seen before.

use crate::config::EngineConfig;
use crate::disk_cache::DiskCache;
use crate::prefix::{Prefixes, SeenPrefixes, last_split};
use crate::prefix_cache::PrefixCache;
use crate::snapshot_file::Form;
use hybra_kernels::ops::ssm_state::SsmDtype;
use hybra_model::{SCAN_CHUNK, SequenceState, States};
use std::io;
use std::sync::Arc;

/// Cache points of a request that are used: the last ones.
const MOST_CACHE_POINTS: usize = 4;

/// The snapshots.
pub(crate) struct Snapshots {
    memory: PrefixCache,
    seen: SeenPrefixes,
    /// `None` without a folder, or where it cannot be used.
    disk: Option<DiskCache>,
    /// Why the folder cannot be used.
    disk_error: Option<io::Error>,
    /// Most bytes in memory.
    limit: usize,
    running: SsmDtype,
    kept: SsmDtype,
}

impl Snapshots {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        let (memory, seen) = (PrefixCache::default(), SeenPrefixes::default());
        let (running, kept) = (config.state_dtype, config.cache_dtypes().ssm);
        let form = Form { model_id: config.model_id, dtypes: config.cache_dtypes() };
        let open = |folder| DiskCache::open(folder, form, config.cache_dir_bytes);
        let (disk, disk_error) = match config.cache_dir.as_deref().map(open).transpose() {
            Ok(disk) => (disk, None),
            Err(error) => (None, Some(error)),
        };
        Self { memory, seen, disk, disk_error, limit: config.cache_memory, running, kept }
    }

    /// Why the folder for files cannot be used.
    pub(crate) fn disk_error(&self) -> Option<&io::Error> {
        self.disk_error.as_ref()
    }

    /// Whether anything is kept at all.
    pub(crate) fn is_on(&self) -> bool {
        self.limit > 0 || self.disk.is_some()
    }

    /// Bytes and entries in memory.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.memory.bytes(), self.memory.len())
    }

    /// Files that could not be written or read.
    pub(crate) fn file_errors(&self) -> u64 {
        self.disk.as_ref().map_or(0, DiskCache::errors)
    }

    /// Lets go of memory beyond `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        self.memory.shrink_to(bytes);
    }

    /// A copy of the state of the longest prefix that is kept. One that comes from a file is then
    /// kept in `room` bytes of memory.
    pub(crate) fn find(
        &mut self,
        prefixes: Prefixes,
        states: States<'_>,
        room: usize,
    ) -> Option<SequenceState> {
        let mut found = self.memory.find(prefixes);
        let have = found.as_ref().map_or(0, |state| state.len());
        let from_file = self.disk.as_ref().and_then(|d| d.find(prefixes, have, states));
        if let Some(state) = from_file {
            let state = Arc::new(state);
            let prefix = prefixes.up_to(state.len());
            self.memory.insert(prefix, Arc::clone(&state), room.min(self.limit));
            found = Some(state);
        }
        Some(found?.to_ssm_dtype(self.running))
    }

    /// Keeps the state of `prefixes.tokens` in at most `room` bytes of memory, and in a file if it
    /// is `lasting`.
    pub(crate) fn keep(
        &mut self,
        prefixes: Prefixes,
        state: &SequenceState,
        room: usize,
        lasting: bool,
    ) {
        let kept = self.memory.get(prefixes).unwrap_or_else(|| {
            let state = Arc::new(state.to_ssm_dtype(self.kept));
            self.memory.insert(prefixes, Arc::clone(&state), room.min(self.limit));
            state
        });
        if let Some(disk) = self.disk.as_ref().filter(|_| lasting) {
            disk.keep(prefixes, &kept);
        }
    }

    /// Remembers the prefixes of a prompt.
    pub(crate) fn note(&mut self, keys: &[u64]) {
        self.seen.note(keys);
    }

    /// Remembers a prompt; the lengths, descending, at which its state is to be kept.
    pub(crate) fn stops(
        &mut self,
        keys: &[u64],
        prompt_len: usize,
        cache_points: &[usize],
    ) -> Vec<usize> {
        let last = last_split(prompt_len);
        let split = |point: &usize| point / SCAN_CHUNK * SCAN_CHUNK;
        let points = cache_points.iter().rev().map(split).filter(|&p| p < last);
        let branch = SCAN_CHUNK * self.seen.note(&keys[..last / SCAN_CHUNK]);
        let mut stops: Vec<_> = points.take(MOST_CACHE_POINTS).chain([branch, last]).collect();
        stops.sort_unstable_by(|a, b| b.cmp(a));
        stops.dedup();
        stops.retain(|&stop| stop > 0);
        stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::prefix_keys;

    #[test]
    fn stops_are_ends_points_and_branches() {
        let config = EngineConfig { cache_memory: 1, ..EngineConfig::default() };
        let mut snapshots = Snapshots::new(&config);
        let mut stops = |tokens: &[u32], points: &[usize]| {
            snapshots.stops(&prefix_keys(0, tokens), tokens.len(), points)
        };
        let mut tokens: Vec<u32> = (0..1000).collect();
        assert_eq!(stops(&tokens, &[5, 64, 130, 131, 300, 400, 999, 5000]), [960, 384, 256, 128]);
        assert_eq!(stops(&tokens, &[]), [960]);
        tokens[500] = 1;
        assert_eq!(stops(&tokens, &[]), [960, 448]);
        tokens[10] = 1;
        assert_eq!(stops(&tokens, &[]), [960], "nothing in common");
        assert_eq!(stops(&[7; 64], &[64]), [0usize; 0]);
    }
}
