//! What the answers of a round were like, for the log.

use super::reward::Judged;
use crate::rollout::Rollout;

fn one(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// What a round's answers were like.
#[derive(Default)]
pub(super) struct Tally {
    answers: f64,
    reward: f64,
    judge: f64,
    right: f64,
    well_formed: f64,
    unfinished: f64,
    thinking: f64,
    tokens: f64,
    groups: f64,
    flat: f64,
    verdicts: f64,
    unread: f64,
}

impl Tally {
    pub(super) fn add(&mut self, rollout: &Rollout, judged: &Judged) {
        self.answers += 1.0;
        self.reward += judged.reward;
        self.judge += judged.by_judge;
        self.right += one(judged.right);
        self.well_formed += one(rollout.well_formed);
        self.unfinished += one(!rollout.finished);
        self.thinking += f64::from(rollout.thinking_tokens);
        self.tokens += rollout.tokens.len() as f64;
    }

    /// A group, and whether its rewards were all the same.
    pub(super) fn group(&mut self, flat: bool) {
        self.groups += 1.0;
        self.flat += one(flat);
    }

    /// Verdicts of a round, and the share of them that could not be read.
    pub(super) fn verdicts(&mut self, unread: f64) {
        self.verdicts += 1.0;
        self.unread += unread;
    }

    /// Names and means, for the log.
    pub(super) fn metrics(&self, has_judge: bool) -> Vec<(String, f64)> {
        let n = self.answers.max(1.0);
        let of_judge = [
            ("judge_reward", self.judge / n),
            ("judge_unread", self.unread / self.verdicts.max(1.0)),
        ];
        let of_judge = of_judge.into_iter().filter(|_| has_judge);
        [
            ("reward", self.reward / n),
            ("right", self.right / n),
            ("well_formed", self.well_formed / n),
            ("unfinished", self.unfinished / n),
            ("thinking_tokens", self.thinking / n),
            ("answer_length", self.tokens / n),
            ("flat_groups", self.flat / self.groups.max(1.0)),
        ]
        .into_iter()
        .chain(of_judge)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}
