//! Prefixes of prompts: their keys, and which of them were seen before.
//!
//! A prefix is as long as a multiple of [`SCAN_CHUNK`]: only there a prompt may be split without
//! changing a bit. Its key is a hash of salt and tokens; whoever finds something under a key
//! compares salt and tokens before using it.

use hybra_model::SCAN_CHUNK;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};

/// Prefixes that are remembered, at least; twice as many at most.
const MOST_SEEN: usize = 32 * 1024;

/// The tokens of a prompt with the keys of its prefixes of 64, 128, … tokens.
#[derive(Clone, Copy)]
pub(crate) struct Prefixes<'a> {
    /// Prompts of different salts have nothing in common.
    pub(crate) salt: u64,
    pub(crate) tokens: &'a [u32],
    pub(crate) keys: &'a [u64],
}

impl<'a> Prefixes<'a> {
    /// Only the prefixes of at most `len` tokens.
    pub(crate) fn up_to(self, len: usize) -> Self {
        let chunks = len.min(self.tokens.len()) / SCAN_CHUNK;
        Self { tokens: &self.tokens[..chunks * SCAN_CHUNK], keys: &self.keys[..chunks], ..self }
    }

    /// Every prefix as key and tokens, longest first.
    pub(crate) fn longest_first(self) -> impl Iterator<Item = (u64, &'a [u32])> {
        let key = move |(i, &key)| (key, &self.tokens[..(i + 1) * SCAN_CHUNK]);
        self.keys.iter().enumerate().rev().map(key)
    }
}

/// The keys of the prefixes of `tokens`.
pub(crate) fn prefix_keys(salt: u64, tokens: &[u32]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(salt);
    let key = |chunk: &[u32]| {
        chunk.iter().for_each(|&token| hasher.write_u32(token));
        hasher.finish()
    };
    tokens.chunks_exact(SCAN_CHUNK).map(key).collect()
}

/// The last place at which a prompt may be split: at least one token follows.
pub(crate) fn last_split(prompt_len: usize) -> usize {
    (prompt_len - 1) / SCAN_CHUNK * SCAN_CHUNK
}

/// Keys of prefixes seen lately: two generations, of which the older is forgotten whenever the
/// younger is full.
#[derive(Default)]
pub(crate) struct SeenPrefixes {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl SeenPrefixes {
    /// Adds the prefixes of a prompt; how many of them, from the shortest on, were known.
    pub(crate) fn note(&mut self, keys: &[u64]) -> usize {
        let is_known = |key: &&u64| self.young.contains(key) || self.old.contains(key);
        let known = keys.iter().take_while(is_known).count();
        for &key in keys {
            if self.young.len() >= MOST_SEEN {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(key);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_salt_and_tokens() {
        let tokens: Vec<u32> = (0..200).collect();
        let keys = prefix_keys(1, &tokens);
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[..2], prefix_keys(1, &tokens[..130]));
        assert_ne!(keys[0], prefix_keys(2, &tokens)[0]);
        let mut other = tokens.clone();
        other[100] = 7;
        let others = prefix_keys(1, &other);
        assert!(others[0] == keys[0] && others[1] != keys[1] && others[2] != keys[2]);
        let prefixes = Prefixes { salt: 1, tokens: &tokens, keys: &keys };
        let lens = |p: Prefixes| p.longest_first().map(|(_, t)| t.len()).collect::<Vec<_>>();
        assert_eq!(
            (lens(prefixes), lens(prefixes.up_to(191))),
            (vec![192, 128, 64], vec![128, 64])
        );
        assert_eq!([1, 64, 65, 128, 129].map(last_split), [0, 0, 64, 64, 128]);
    }

    #[test]
    fn what_is_seen_is_known_for_a_while() {
        let mut seen = SeenPrefixes::default();
        assert_eq!(seen.note(&[1, 2, 3]), 0);
        assert_eq!(seen.note(&[1, 2, 4, 3]), 2);
        let many = |from: u64| (from..from + MOST_SEEN as u64).collect::<Vec<_>>();
        seen.note(&many(1000));
        assert_eq!(seen.note(&[1, 2, 4]), 3);
        for generation in 1..4 {
            seen.note(&many(generation << 32));
        }
        assert_eq!(seen.note(&[1]), 0);
        assert!(seen.young.len() + seen.old.len() <= 2 * MOST_SEEN);
    }
}
