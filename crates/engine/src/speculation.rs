//! How much a sequence drafts: nothing where drafts fail, up to the limit where they hold.
//!
//! [`Pace`] decides from what became of earlier drafts. The limit begins at the configured N.
//! - All k drafted tokens accepted: the limit doubles, up to N.
//! - Some accepted: the limit becomes the larger of half of it and one more than were accepted.
//! - None accepted: the limit halves, down to 1, and the next 1, 2, 4, … [`LONGEST_PAUSE`] steps
//!   do not draft; the first accepted token ends that sequence of pauses.
//!
//! So a sequence whose drafts always fail drafts 2N + O(log) tokens and then one token every
//! [`LONGEST_PAUSE`] + 1 steps.

use crate::prompt_lookup::Drafter;

/// Largest accepted [`EngineConfig::num_speculative_tokens`](crate::EngineConfig).
pub const MAX_SPECULATIVE_TOKENS: usize = 32;
/// Most steps without a draft after a failed one.
const LONGEST_PAUSE: usize = 64;

/// What drafts brought.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct SpeculationReport {
    /// Tokens that were guessed and read.
    pub drafted: usize,
    /// Those that were also the sequence's tokens.
    pub accepted: usize,
}

/// Drafts of one sequence.
pub(crate) struct Speculation {
    drafter: Box<dyn Drafter>,
    pace: Pace,
    vocab_size: usize,
    /// The guess that is being judged; empty in a step without one.
    draft: Vec<u32>,
    /// Tokens of it that came true so far.
    accepted: usize,
    report: SpeculationReport,
}

impl Speculation {
    /// Drafts of at most `most` tokens below `vocab_size`.
    pub(crate) fn new(drafter: Box<dyn Drafter>, most: usize, vocab_size: usize) -> Self {
        let (draft, report) = (Vec::with_capacity(most), SpeculationReport::default());
        Self { drafter, pace: Pace::new(most), vocab_size, draft, accepted: 0, report }
    }

    /// Guesses at most `room` tokens after `tokens`; called once for each step.
    pub(crate) fn propose(&mut self, tokens: &[u32], room: usize) {
        if !self.draft.is_empty() {
            self.pace.judged(self.draft.len(), self.accepted);
        }
        self.draft.clear();
        self.accepted = 0;
        let most = self.pace.most().min(room);
        if most > 0 {
            self.drafter.draft(tokens, most, &mut self.draft);
            let is_token = |id: &&u32| (**id as usize) < self.vocab_size;
            let sound = self.draft.iter().take(most).take_while(is_token).count();
            self.draft.truncate(sound);
            self.report.drafted += sound;
        }
    }

    /// The guess of this step.
    pub(crate) fn draft(&self) -> &[u32] {
        &self.draft
    }

    /// How much of it came true so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted
    }

    /// Takes the next token of the sequence. The first one that differs from the guess is the last
    /// of its step.
    pub(crate) fn observe(&mut self, token: u32) {
        if self.draft.get(self.accepted) == Some(&token) {
            self.accepted += 1;
            self.report.accepted += 1;
        }
    }

    /// The counts so far.
    pub(crate) fn report(&self) -> SpeculationReport {
        self.report
    }
}

/// The rule of the file header.
struct Pace {
    /// N.
    most: usize,
    limit: usize,
    /// Steps to go without a draft.
    pause: usize,
    /// The next pause.
    next_pause: usize,
}

impl Pace {
    fn new(most: usize) -> Self {
        Self { most, limit: most, pause: 0, next_pause: 1 }
    }

    /// Tokens that this step may draft.
    fn most(&mut self) -> usize {
        if self.pause == 0 {
            return self.limit;
        }
        self.pause -= 1;
        0
    }

    fn judged(&mut self, drafted: usize, accepted: usize) {
        if accepted == 0 {
            self.limit = (self.limit / 2).max(1);
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
            return;
        }
        self.next_pause = 1;
        self.limit = match accepted == drafted {
            true => (2 * self.limit).min(self.most),
            false => (self.limit / 2).max(accepted + 1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drafts of `steps` steps whose first `good(step)` tokens hold.
    fn drafts(most: usize, steps: usize, good: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut pace = Pace::new(most);
        (0..steps)
            .map(|step| {
                let drafted = pace.most();
                if drafted > 0 {
                    pace.judged(drafted, good(step).min(drafted));
                }
                drafted
            })
            .collect()
    }

    #[test]
    fn drafts_that_always_fail_cost_little() {
        for most in [1, 2, 8, 32] {
            let drafts = drafts(most, 10_000, |_| 0);
            let total: usize = drafts.iter().sum();
            assert!(total <= 2 * most + 7 + 10_000 / (LONGEST_PAUSE + 1), "N = {most}: {total}");
            // It never gives up for good.
            assert!(drafts[9_900..].contains(&1));
        }
    }

    #[test]
    fn drafts_that_hold_stay_long_and_recover_fast() {
        assert_eq!(drafts(8, 4, |_| 8), [8; 4]);
        let bad_then_good = drafts(8, 400, |step| if step < 200 { 0 } else { 8 });
        let first = (200..400).find(|&i| bad_then_good[i] > 0).unwrap();
        assert!(first <= 200 + LONGEST_PAUSE, "{first}");
        assert_eq!(bad_then_good[first..first + 5], [1, 2, 4, 8, 8]);
    }

    #[test]
    fn drafts_shrink_to_what_holds() {
        assert_eq!(drafts(8, 6, |_| 1), [8, 4, 2, 2, 2, 2]);
        assert_eq!(drafts(8, 5, |_| 5), [8, 6, 6, 6, 6]);
        assert_eq!(drafts(8, 6, |step| if step == 0 { 0 } else { 8 }), [8, 0, 4, 8, 8, 8]);
    }

    #[test]
    fn what_came_true_is_counted_and_sets_the_pace() {
        let mut speculation = Speculation::new(Box::new(Careless), 4, 10);
        speculation.propose(&[1], 8);
        [3, 4, 5].into_iter().for_each(|token| speculation.observe(token));
        assert_eq!(speculation.accepted(), 2);
        speculation.propose(&[1, 3, 4, 5], 8);
        assert_eq!(speculation.draft(), [3, 4, 9]);
        speculation.observe(7);
        for pause in [true, false] {
            speculation.propose(&[1, 3, 4, 5, 7], 8);
            assert_eq!(speculation.draft().is_empty(), pause);
        }
        assert_eq!(speculation.report(), SpeculationReport { drafted: 8, accepted: 2 });
    }

    /// A source that proposes too much, and what is no token.
    struct Careless;

    impl Drafter for Careless {
        fn draft(&mut self, _: &[u32], _: usize, draft: &mut Vec<u32>) {
            draft.extend([3, 4, 9, 4, 5, 6]);
        }
    }

    #[test]
    fn drafts_are_cut_to_size_and_vocabulary() {
        for (room, vocab_size, want) in [
            (8, 10, &[3, 4, 9, 4][..]),
            (2, 10, &[3, 4]),
            (8, 9, &[3, 4]),
            (8, 3, &[]),
            (0, 10, &[]),
        ] {
            let mut speculation = Speculation::new(Box::new(Careless), 4, vocab_size);
            speculation.propose(&[1], room);
            assert_eq!(speculation.draft(), want, "room {room}, vocabulary {vocab_size}");
            assert_eq!(speculation.report().drafted, want.len());
        }
    }
}
