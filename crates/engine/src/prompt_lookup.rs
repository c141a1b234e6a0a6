//! Prompt lookup: what followed the last tokens the last time they appeared in the sequence.
//!
//! The longest suffix of [`MAX_NGRAM`] to [`MIN_NGRAM`] tokens that appeared before, in prompt or
//! output, is looked up, and the tokens after its latest appearance are proposed; where they run
//! into the end of the sequence they go on with themselves, so that a loop is proposed as a loop.
//! No model is involved.
//!
//! Invariant: each token enters the index once, so a proposal costs O(new tokens), whatever the
//! length of the sequence.
//!
//! Source: Saxena 2023, "Prompt Lookup Decoding"; the n-gram proposer of vLLM.

use std::collections::HashMap;

/// Longest suffix looked for.
const MAX_NGRAM: usize = 4;
/// Shortest suffix looked for.
const MIN_NGRAM: usize = 2;
/// Fills the keys of short n-grams: no vocabulary has this id.
const NO_TOKEN: u32 = u32::MAX;

/// A source of drafts for one sequence. Whatever it proposes, the output stays the same.
pub trait Drafter: Send {
    /// Appends at most `most` tokens that may follow `tokens` to the empty `draft`. From call to
    /// call, `tokens` only grows.
    fn draft(&mut self, tokens: &[u32], most: usize, draft: &mut Vec<u32>);
}

/// The index of one sequence.
#[derive(Debug, Default)]
pub struct PromptLookup {
    /// An n-gram and where the tokens after its latest appearance begin.
    followers: HashMap<[u32; MAX_NGRAM], usize>,
    /// Tokens whose n-grams are in the index.
    indexed: usize,
}

impl PromptLookup {
    /// Adds all n-grams that have a token after them.
    fn index(&mut self, tokens: &[u32]) {
        while self.indexed + 1 < tokens.len() {
            self.indexed += 1;
            for n in MIN_NGRAM..=MAX_NGRAM.min(self.indexed) {
                self.followers.insert(key(&tokens[self.indexed - n..self.indexed]), self.indexed);
            }
        }
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, tokens: &[u32], most: usize, draft: &mut Vec<u32>) {
        self.index(tokens);
        let len = tokens.len();
        let suffixes = (MIN_NGRAM..=MAX_NGRAM.min(len)).rev().map(|n| key(&tokens[len - n..]));
        let Some(&from) = suffixes.filter_map(|k| self.followers.get(&k)).next() else { return };
        for at in from..from + most {
            let token = if at < len { tokens[at] } else { draft[at - len] };
            draft.push(token);
        }
    }
}

fn key(ngram: &[u32]) -> [u32; MAX_NGRAM] {
    let mut key = [NO_TOKEN; MAX_NGRAM];
    key[..ngram.len()].copy_from_slice(ngram);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(lookup: &mut PromptLookup, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        lookup.draft(tokens, most, &mut draft);
        draft
    }

    /// The definition, by search: the longest suffix, its latest earlier place.
    fn search(tokens: &[u32], most: usize) -> Vec<u32> {
        let len = tokens.len();
        for n in (MIN_NGRAM..=MAX_NGRAM.min(len)).rev() {
            let ends = (n..len).rev();
            let mut found = ends.filter(|&end| tokens[end - n..end] == tokens[len - n..]);
            if let Some(end) = found.next() {
                return tokens[end..].iter().copied().cycle().take(most).collect();
            }
        }
        Vec::new()
    }

    #[test]
    fn the_longest_suffix_and_its_latest_place_decide() {
        let fresh = |tokens: &[u32], most| draft(&mut PromptLookup::default(), tokens, most);
        // 1 2 3 4 is longer than the later 3 4.
        assert_eq!(fresh(&[1, 2, 3, 4, 5, 6, 3, 4, 7, 1, 2, 3, 4], 2), [5, 6]);
        // Of two equal places the later one counts.
        assert_eq!(fresh(&[1, 2, 8, 1, 2, 9, 0, 1, 2], 1), [9]);
        // One token alone is no match.
        assert!(fresh(&[5, 6, 7, 5], 3).is_empty());
        assert!(fresh(&[5], 3).is_empty() && fresh(&[], 3).is_empty());
    }

    #[test]
    fn a_loop_goes_on_with_itself() {
        let mut lookup = PromptLookup::default();
        assert_eq!(draft(&mut lookup, &[9, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(draft(&mut PromptLookup::default(), &[4, 4, 4], 3), [4, 4, 4]);
    }

    /// Asked at every length, or now and then, the index answers like a search.
    #[test]
    fn the_index_agrees_with_a_search() {
        let mut state = 1u64;
        let tokens: Vec<u32> = (0..600)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u32 % 5
            })
            .collect();
        for stride in [1, 7, 100] {
            let mut lookup = PromptLookup::default();
            let mut found = 0;
            for len in (0..=tokens.len()).step_by(stride) {
                let got = draft(&mut lookup, &tokens[..len], 6);
                assert_eq!(got, search(&tokens[..len], 6), "{len} tokens");
                found += usize::from(!got.is_empty());
            }
            assert!(found > 4, "{found}");
            assert_eq!(lookup.indexed, (tokens.len() - tokens.len() % stride).max(1) - 1);
        }
    }
}
