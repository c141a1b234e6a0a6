//! Group relative policy optimization: the model answers, a verifier or a judge says how well, better
//! answers become likelier.
//!
//! A step asks prompts, several answers each, and compares every answer with the others of its group.
//! Groups whose answers are all as good teach nothing: they are counted, and replaced by further
//! prompts while `dynamic` allows. With `updates` above 1 the answers of one round are split over so
//! many steps, of which only the first is on-policy.
//!
//! The state of a run holds the answers that wait, so that a run that goes on sees the same ones.
//!
//! Sources: Shao et al. 2024 (GRPO), Ahmadian et al. 2024 (leave-one-out), Yu et al. 2025 (DAPO:
//! dynamic sampling, soft punishment of overlong answers).

mod judge;
mod reward;
mod tally;

pub use judge::{Judge, JudgeConfig};
pub use reward::RewardConfig;

use crate::objective::{Batches, BoxError, Policy};
use crate::policy_gradient::ClipConfig;
use crate::rollout::{Prompt, Prompts, Roller, Rollout, pack};
use hybra_model::training::{PackedBatch, Signals};
use reward::Judged;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tally::Tally;

/// Rounds of prompts in which a step looks for groups that teach something.
const MOST_ROUNDS: u64 = 4;
const EPSILON: f64 = 1e-6;

/// `[grpo]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// What an answer is compared with.
    pub baseline: Baseline,
    /// Whether advantages are divided by the group's standard deviation.
    pub scale: bool,
    /// Whether groups without variance are replaced.
    pub dynamic: bool,
    /// Steps that share the answers of one round.
    pub updates: u64,
    /// Clipping and divergence.
    pub loss: ClipConfig,
    /// What an answer is worth.
    pub reward: RewardConfig,
    /// A generative reward model whose scores are added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeConfig>,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            baseline: Baseline::LeaveOneOut,
            scale: true,
            dynamic: true,
            updates: 1,
            loss: ClipConfig::default(),
            reward: RewardConfig::default(),
            judge: None,
        }
    }
}

impl GrpoConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(crate) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        let ClipConfig { clip_low, clip_high, dual_clip, kl } = self.loss;
        if self.updates == 0 {
            return Some(("updates", "at least 1", "0".to_owned()));
        }
        for (key, value, range) in [
            ("loss.clip_low", clip_low, 0.0..=1.0),
            ("loss.clip_high", clip_high, 0.0..=10.0),
            ("loss.dual_clip", dual_clip, 0.0..=100.0),
            ("loss.kl", kl, 0.0..=10.0),
        ] {
            if !range.contains(&value) {
                return Some((key, "a number of at least 0, within reason", value.to_string()));
            }
        }
        self.reward.defect().or_else(|| self.judge.as_ref()?.defect())
    }
}

/// What an answer's reward is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the other answers of its group.
    #[default]
    LeaveOneOut,
    /// The mean of its group.
    Group,
}

/// Advantages of the answers of a group.
#[must_use]
pub fn advantages(rewards: &[f64], baseline: Baseline, scale: bool) -> Vec<f64> {
    let n = rewards.len() as f64;
    let sum: f64 = rewards.iter().sum();
    let mean = sum / n;
    let deviation = (rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
    let divisor = if scale { deviation + EPSILON } else { 1.0 };
    let of = |&reward: &f64| match baseline {
        _ if rewards.len() < 2 => 0.0,
        Baseline::Group => (reward - mean) / divisor,
        Baseline::LeaveOneOut => (reward - (sum - reward) / (n - 1.0)) / divisor,
    };
    rewards.iter().map(of).collect()
}

/// An answer with its advantage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scored {
    rollout: Rollout,
    advantage: f64,
}

/// Where the next step begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    next_prompt: u64,
    /// Answers of the last round that no step has seen.
    waiting: Vec<Scored>,
    fingerprint: String,
}

/// The micro-batches of a run: its own answers.
pub struct GrpoBatches {
    prompts: Prompts,
    roller: Roller,
    config: GrpoConfig,
    judge: Option<Judge>,
    state: State,
    metrics: Vec<(String, f64)>,
}

impl GrpoBatches {
    /// At the beginning of a run.
    #[must_use]
    pub fn new(prompts: Prompts, roller: Roller, config: GrpoConfig) -> Self {
        let fingerprint = prompts.fingerprint().to_owned();
        let state = State { fingerprint, ..State::default() };
        Self { prompts, roller, config, judge: None, state, metrics: Vec::new() }
    }

    /// With the model of `config.judge`.
    #[must_use]
    pub fn with_judge(mut self, judge: Judge) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(self.state.fingerprint.as_bytes()).update(&judge.fingerprint());
        self.state.fingerprint = hash.finalize().to_hex().to_string();
        self.judge = Some(judge);
        self
    }

    /// Asks prompts until there are groups that teach something; they wait then.
    fn round(&mut self, policy: &Policy) -> Result<(), BoxError> {
        let wanted = self.prompts.rollout().prompts;
        let mut tally = Tally::default();
        let mut groups: Vec<Vec<Scored>> = Vec::new();
        for round in 0..MOST_ROUNDS {
            let missing = wanted - groups.len();
            let from = self.state.next_prompt;
            let prompts: Vec<_> =
                (from..from + missing as u64).map(|index| self.prompts.prompt(index)).collect();
            self.state.next_prompt += missing as u64;
            for (own, judged) in self.answers(policy, &prompts, &mut tally)? {
                let rewards: Vec<f64> = judged.iter().map(|judged| judged.reward).collect();
                own.iter().zip(&judged).for_each(|(rollout, judged)| tally.add(rollout, judged));
                let flat = rewards.iter().all(|reward| (reward - rewards[0]).abs() < EPSILON);
                tally.group(flat);
                // The last round takes what it gets: a step needs answers.
                if flat && self.config.dynamic && round + 1 < MOST_ROUNDS {
                    continue;
                }
                let advantages = advantages(&rewards, self.config.baseline, self.config.scale);
                let scored = own.into_iter().zip(advantages);
                groups.push(
                    scored.map(|(rollout, advantage)| Scored { rollout, advantage }).collect(),
                );
            }
            if groups.len() >= wanted {
                break;
            }
        }
        self.metrics = tally.metrics(self.judge.is_some());
        // Each update sees answers of all groups.
        let updates = self.config.updates as usize;
        let mut waiting: Vec<(usize, Scored)> = Vec::new();
        for scored in groups.into_iter().flatten() {
            waiting.push((waiting.len() % updates, scored));
        }
        waiting.sort_by_key(|(update, _)| *update);
        self.state.waiting = waiting.into_iter().map(|(_, scored)| scored).collect();
        Ok(())
    }

    /// The answers to each prompt, with what they are worth.
    fn answers(
        &self,
        policy: &Policy,
        prompts: &[Prompt],
        tally: &mut Tally,
    ) -> Result<Vec<(Vec<Rollout>, Vec<Judged>)>, BoxError> {
        let asks: Vec<_> = prompts.iter().flat_map(|prompt| prompt.asks.clone()).collect();
        let mut rollouts = self.roller.roll(policy, &asks)?.into_iter();
        let most = self.prompts.rollout().max_tokens;
        let group = |prompt: &Prompt| {
            let own: Vec<Rollout> = rollouts.by_ref().take(prompt.asks.len()).collect();
            let judged = own.iter().map(|r| self.config.reward.judge(prompt, r, most)).collect();
            (own, judged)
        };
        let mut answers: Vec<(Vec<Rollout>, Vec<Judged>)> = prompts.iter().map(group).collect();
        if let Some(judge) = &self.judge {
            let groups: Vec<_> =
                prompts.iter().zip(&answers).map(|(p, (own, _))| (p, &own[..])).collect();
            let comparison = judge.compare(policy.comm, &groups)?;
            tally.verdicts(comparison.unread);
            for ((_, judged), scores) in answers.iter_mut().zip(comparison.rewards) {
                judged.iter_mut().zip(scores).for_each(|(judged, score)| judged.add(score));
            }
        }
        Ok(answers)
    }
}

impl Batches for GrpoBatches {
    fn step(&mut self, policy: &Policy) -> Result<Vec<PackedBatch>, BoxError> {
        if self.state.waiting.is_empty() {
            self.round(policy)?;
        } else {
            self.metrics.clear();
        }
        let whole = self.prompts.rollout().prompts * self.prompts.rollout().group;
        let part = whole.div_ceil(self.config.updates as usize).min(self.state.waiting.len());
        let taken: Vec<Scored> = self.state.waiting.drain(..part).collect();
        let rollouts: Vec<&Rollout> = taken.iter().map(|scored| &scored.rollout).collect();
        let packs = pack(&rollouts, self.prompts.pack_len(), policy.comm.size())?;
        let signal = |(mut batch, members): (PackedBatch, Vec<usize>)| {
            let mut signals = Signals::default();
            for scored in members.into_iter().map(|at| &taken[at]) {
                push(&mut signals, scored);
            }
            batch.signals = Some(signals);
            batch
        };
        Ok(packs.into_iter().map(signal).collect())
    }

    fn fingerprint(&self) -> String {
        self.state.fingerprint.clone()
    }

    fn state(&self) -> Value {
        json!(self.state)
    }

    fn restore(&mut self, state: &Value) -> Result<(), BoxError> {
        let state: State = serde_json::from_value(state.clone())?;
        if state.fingerprint != self.state.fingerprint {
            let (expected, found) = (&self.state.fingerprint, &state.fingerprint);
            return Err(
                format!("prompts or judge: expected those of {expected}, found {found}").into()
            );
        }
        self.state = state;
        Ok(())
    }

    fn metrics(&self) -> &[(String, f64)] {
        &self.metrics
    }
}

/// A document's signals, aligned with the tokens that predict.
fn push(signals: &mut Signals, Scored { rollout, advantage }: &Scored) {
    signals.prompts.push(rollout.prompt.len());
    let prompt = rollout.prompt.len() - 1;
    signals.advantages.extend(std::iter::repeat_n(0.0, prompt));
    signals.sampled.extend(std::iter::repeat_n(0.0, prompt));
    for token in &rollout.tokens {
        signals.advantages.push(if token.sampled { *advantage as f32 } else { 0.0 });
        signals.sampled.push(token.logprob());
    }
    signals.advantages.push(0.0);
    signals.sampled.push(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_of_a_group_sum_to_zero_and_those_of_a_flat_one_are_none() {
        let rewards = [1.0, 0.0, 0.0, 0.5];
        for baseline in [Baseline::LeaveOneOut, Baseline::Group] {
            for scale in [true, false] {
                let found = advantages(&rewards, baseline, scale);
                assert!(found.iter().sum::<f64>().abs() < 1e-12, "{found:?}");
                assert!(found[0] > found[3] && found[3] > found[1]);
                assert_eq!(advantages(&[1.0; 4], baseline, scale), [0.0; 4]);
                assert_eq!(advantages(&[1.0], baseline, scale), [0.0]);
            }
        }
        assert_eq!(advantages(&[1.0, 0.0], Baseline::LeaveOneOut, false), [1.0, -1.0]);
        assert_eq!(advantages(&[1.0, 0.0], Baseline::Group, false), [0.5, -0.5]);
    }
}
