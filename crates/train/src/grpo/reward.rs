//! What an answer is worth: its verifier's word, and rules about its form and length.

use crate::rollout::{Prompt, Rollout};
use serde::{Deserialize, Serialize};

/// `[grpo.reward]` of a run file: what each property adds, or takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// For a right answer.
    pub right: f64,
    /// Taken where close tags and opened sections are not as many.
    pub malformed: f64,
    /// Taken for a call of a function that there is not, or whose arguments are no JSON object.
    pub invalid_call: f64,
    /// Taken for an answer that `max_tokens` cut off.
    pub overlong: f64,
    /// Tokens before `max_tokens` over which that grows from nothing.
    pub overlong_buffer: u32,
    /// Taken for an answer of `max_tokens`, in proportion for shorter ones.
    pub length: f64,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            right: 1.0,
            malformed: 0.5,
            invalid_call: 0.5,
            overlong: 0.5,
            overlong_buffer: 0,
            length: 0.0,
        }
    }
}

/// A verdict.
pub(super) struct Judged {
    pub(super) reward: f64,
    /// What of the reward comes from the judge.
    pub(super) by_judge: f64,
    pub(super) right: bool,
}

impl Judged {
    pub(super) fn add(&mut self, by_judge: f64) {
        self.reward += by_judge;
        self.by_judge += by_judge;
    }
}

impl RewardConfig {
    pub(super) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        let all = [
            ("reward.right", self.right),
            ("reward.malformed", self.malformed),
            ("reward.invalid_call", self.invalid_call),
            ("reward.overlong", self.overlong),
            ("reward.length", self.length),
        ];
        let bad = all.into_iter().find(|(_, value)| !(0.0..=1000.0).contains(value));
        bad.map(|(key, value)| (key, "0 to 1000", value.to_string()))
    }

    /// Judges an answer to the prompt; answers have at most `max_tokens`.
    pub(super) fn judge(&self, prompt: &Prompt, rollout: &Rollout, max_tokens: u32) -> Judged {
        let calls = rollout.calls();
        let right =
            rollout.finished && prompt.example.verify_turn(prompt.turn, &rollout.answer, &calls);
        let invalid = rollout.calls.iter().any(|(name, arguments)| {
            let known = prompt.example.tools.iter().any(|tool| {
                tool["function"]["name"].as_str().or(tool["name"].as_str()) == Some(name)
            });
            !known || serde_json::from_str::<serde_json::Map<_, _>>(arguments).is_err()
        });
        let given = |holds: bool, value: f64| if holds { value } else { 0.0 };
        let length = rollout.tokens.len() as f64;
        let reward = given(right, self.right)
            - given(!rollout.well_formed, self.malformed)
            - given(invalid, self.invalid_call)
            - self.overlong * self.excess(length, f64::from(max_tokens), rollout.finished)
            - self.length * length / f64::from(max_tokens);
        Judged { reward, by_judge: 0.0, right }
    }

    /// 0 to 1: how far an answer is into the last `overlong_buffer` tokens; 1 where it did not end.
    fn excess(&self, length: f64, max_tokens: f64, finished: bool) -> f64 {
        let buffer = f64::from(self.overlong_buffer);
        match finished {
            false => 1.0,
            true if buffer > 0.0 => ((length - (max_tokens - buffer)) / buffer).clamp(0.0, 1.0),
            true => 0.0,
        }
    }
}
