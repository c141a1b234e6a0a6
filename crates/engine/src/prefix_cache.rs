//! States of prompts' prefixes, kept in memory: the least recently used go first.
//!
//! Invariants: a state is found only under its exact salt and tokens; [`PrefixCache::bytes`] counts
//! each block of keys and values once, however many entries share it; entries are never changed,
//! and whoever finds one copies it.

use crate::prefix::Prefixes;
use hybra_model::SequenceState;
use std::collections::HashMap;
use std::sync::Arc;

/// The entries, by key.
#[derive(Default)]
pub(crate) struct PrefixCache {
    entries: HashMap<u64, Entry>,
    /// Entries that hold a block.
    blocks: HashMap<usize, usize>,
    bytes: usize,
    clock: u64,
}

struct Entry {
    salt: u64,
    tokens: Box<[u32]>,
    state: Arc<SequenceState>,
    used: u64,
}

impl Entry {
    /// Bytes beside keys and values.
    fn own_bytes(&self) -> usize {
        own_bytes(&self.tokens, &self.state)
    }
}

fn own_bytes(tokens: &[u32], state: &SequenceState) -> usize {
    let mut kv = 0;
    state.for_each_kv_block(|_, bytes| kv += bytes);
    state.bytes() - kv + size_of_val(tokens)
}

impl PrefixCache {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries held.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The state of the longest prefix that is held.
    pub(crate) fn find(&mut self, prefixes: Prefixes) -> Option<Arc<SequenceState>> {
        let salt = prefixes.salt;
        prefixes.longest_first().find_map(|(key, tokens)| self.touch(salt, key, tokens))
    }

    /// The state of exactly `prefixes.tokens`.
    pub(crate) fn get(&mut self, prefixes: Prefixes) -> Option<Arc<SequenceState>> {
        self.touch(prefixes.salt, *prefixes.keys.last()?, prefixes.tokens)
    }

    fn touch(&mut self, salt: u64, key: u64, tokens: &[u32]) -> Option<Arc<SequenceState>> {
        let entry = self.entries.get_mut(&key)?;
        if entry.salt != salt || *entry.tokens != *tokens {
            return None;
        }
        self.clock += 1;
        entry.used = self.clock;
        Some(Arc::clone(&entry.state))
    }

    /// Keeps the state of `prefixes.tokens` if it fits into `limit` bytes at all; others make room.
    pub(crate) fn insert(&mut self, prefixes: Prefixes, state: Arc<SequenceState>, limit: usize) {
        let Some(&key) = prefixes.keys.last() else { return };
        if state.bytes() + size_of_val(prefixes.tokens) > limit {
            return;
        }
        self.remove(key);
        while self.bytes + self.added_bytes(prefixes.tokens, &state) > limit {
            self.evict();
        }
        self.bytes += self.added_bytes(prefixes.tokens, &state);
        state.for_each_kv_block(|block, _| *self.blocks.entry(block).or_default() += 1);
        self.clock += 1;
        let (salt, tokens, used) = (prefixes.salt, prefixes.tokens.into(), self.clock);
        self.entries.insert(key, Entry { salt, tokens, state, used });
    }

    /// Bytes that an entry would add.
    fn added_bytes(&self, tokens: &[u32], state: &SequenceState) -> usize {
        let mut bytes = own_bytes(tokens, state);
        state.for_each_kv_block(|block, size| {
            bytes += if self.blocks.contains_key(&block) { 0 } else { size };
        });
        bytes
    }

    /// Evicts until at most `bytes` are held.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            self.evict();
        }
    }

    /// Drops the least recently used entry.
    fn evict(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        let key = *oldest.expect("an empty cache holds no bytes").0;
        self.remove(key);
    }

    fn remove(&mut self, key: u64) {
        let Some(entry) = self.entries.remove(&key) else { return };
        self.bytes -= entry.own_bytes();
        entry.state.for_each_kv_block(|block, size| {
            let holders = self.blocks.get_mut(&block).expect("blocks of entries are counted");
            *holders -= 1;
            if *holders == 0 {
                self.blocks.remove(&block);
                self.bytes -= size;
            }
        });
    }
}

#[cfg(test)]
#[path = "prefix_cache/tests.rs"]
mod tests;
