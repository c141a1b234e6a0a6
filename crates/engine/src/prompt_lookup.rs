//! Prompt lookup: guesses what followed the last tokens when they appeared before.
//!
//! The text after an earlier place of the sequence, prompt or output, is proposed as its
//! continuation. The place stays as long as what follows it agrees with the sequence; once it does
//! not, the latest earlier place of the last [`NGRAM`] tokens is looked up. Where the proposal runs
//! into the end of the sequence it goes on with itself, so that a loop is proposed as a loop. No
//! model is involved.
//!
//! Staying finds the longest match wherever a passage is copied, as when code is edited; the last
//! tokens alone would jump to the latest place that resembles them.
//!
//! Invariant: each token enters the index once and is compared once, so a proposal costs
//! O(new tokens), whatever the length of the sequence.
//!
//! Source: Saxena 2023, "Prompt Lookup Decoding"; the n-gram proposer of vLLM.

use std::collections::HashMap;

/// Tokens that an earlier place must have in common with the end of the sequence.
const NGRAM: usize = 3;

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
    followers: HashMap<[u32; NGRAM], usize>,
    /// Tokens whose n-grams are in the index.
    indexed: usize,
    /// Where the text goes on like the sequence, if it does.
    source: Option<usize>,
    /// Tokens that the source was compared with, or found for.
    seen: usize,
}

impl PromptLookup {
    /// Adds all n-grams that have a token after them.
    fn index(&mut self, tokens: &[u32]) {
        while self.indexed + 1 < tokens.len() {
            self.indexed += 1;
            if let Some(ngram) = ngram(&tokens[..self.indexed]) {
                self.followers.insert(ngram, self.indexed);
            }
        }
    }

    /// Moves the source past the new tokens, or drops it at one that differs.
    fn follow(&mut self, tokens: &[u32]) {
        for at in self.seen..tokens.len() {
            self.source = self.source.filter(|&s| tokens[s] == tokens[at]).map(|s| s + 1);
        }
        self.seen = tokens.len();
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, tokens: &[u32], most: usize, draft: &mut Vec<u32>) {
        self.index(tokens);
        self.follow(tokens);
        if self.source.is_none() {
            self.source = ngram(tokens).and_then(|key| self.followers.get(&key).copied());
        }
        let Some(from) = self.source else { return };
        for at in from..from + most {
            let token = tokens.get(at).copied().unwrap_or_else(|| draft[at - tokens.len()]);
            draft.push(token);
        }
    }
}

/// The last tokens.
fn ngram(tokens: &[u32]) -> Option<[u32; NGRAM]> {
    tokens.last_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(lookup: &mut PromptLookup, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        lookup.draft(tokens, most, &mut draft);
        draft
    }

    fn fresh(tokens: &[u32], most: usize) -> Vec<u32> {
        draft(&mut PromptLookup::default(), tokens, most)
    }

    #[test]
    fn the_latest_place_of_three_tokens_is_found() {
        assert_eq!(fresh(&[1, 2, 3, 4, 5, 0, 1, 2, 3], 2), [4, 5]);
        assert_eq!(fresh(&[1, 2, 3, 8, 1, 2, 3, 9, 0, 1, 2, 3], 1), [9]);
        // Two tokens are no match.
        assert!(fresh(&[2, 3, 8, 0, 2, 3], 3).is_empty());
        assert!(fresh(&[5], 3).is_empty() && fresh(&[], 3).is_empty());
    }

    #[test]
    fn a_loop_goes_on_with_itself() {
        assert_eq!(fresh(&[9, 1, 2, 3, 1, 2, 3], 7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(fresh(&[4, 4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn a_place_stays_until_it_disagrees() {
        let mut lookup = PromptLookup::default();
        // The second 2 3 4 is the latest place of these tokens, but not the one in use.
        let mut tokens = vec![7, 8, 9, 2, 3, 4, 5, 0, 2, 3, 4, 6, 0, 7, 8, 9];
        assert_eq!(draft(&mut lookup, &tokens, 4), [2, 3, 4, 5]);
        tokens.extend([2, 3, 4]);
        assert_eq!(draft(&mut lookup, &tokens, 2), [5, 0]);
        assert_eq!(fresh(&tokens, 2), [6, 0]);
        tokens.push(6);
        assert_eq!(draft(&mut lookup, &tokens, 3), [0, 7, 8]);
    }

    /// Asked at every length, or now and then, the index answers like a search.
    #[test]
    fn the_index_agrees_with_a_search() {
        let mut state = 1u64;
        let tokens: Vec<u32> = (0..600)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u32 % 4
            })
            .collect();
        for stride in [1, 2, 7, 100] {
            let (mut lookup, mut found, mut stayed) = (PromptLookup::default(), 0, 0);
            // End of the source and of the sequence at the last call.
            let mut source: Option<(usize, usize)> = None;
            for len in (0..=tokens.len()).step_by(stride) {
                source = source.and_then(|(from, then)| {
                    let new = len - then;
                    (tokens[from..from + new] == tokens[then..len]).then_some((from + new, len))
                });
                stayed += usize::from(source.is_some());
                source = source.or_else(|| {
                    let same = |end: &usize| tokens[end - NGRAM..*end] == tokens[len - NGRAM..len];
                    (NGRAM..len).rev().find(same).map(|end| (end, len))
                });
                let text = source.map_or(&[][..], |(from, _)| &tokens[from..len]);
                let want: Vec<_> = text.iter().copied().cycle().take(6).collect();
                assert_eq!(draft(&mut lookup, &tokens[..len], 6), want, "{len} tokens");
                found += usize::from(!want.is_empty());
            }
            assert!(found > 4 && (stayed > 4 || stride > 2), "{found} found, {stayed} stayed");
            assert_eq!(lookup.indexed, tokens.len() / stride * stride - 1);
        }
    }
}
