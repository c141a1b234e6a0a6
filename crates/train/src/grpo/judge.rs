//! A generative reward model as judge: answers of a group are compared in a circle.
//!
//! Verdict i compares answer i with answer i + 1, the last with the first, so every answer is read
//! twice, once in either place, and a judge that favours a place favours nobody. An answer's score
//! is the mean of its two. The judge is a model like any other, with a thinking budget of its own; it
//! decodes greedily, so a score is a function of the two texts. Its own weights are not trained.
//!
//! Source: the circular comparison of NVIDIA's NeMo-Gym (`genrm_compare`), n verdicts for n answers.

use crate::comm::Comm;
use crate::objective::BoxError;
use crate::rollout::{Ask, Prompt, Roller, Rollout, budget};
use hybra_chat::ChatInput;
use hybra_eval::Budget;
use hybra_eval::judge::{Verdict, answered, question};
use hybra_model::nemotron_h::NemotronH;
use hybra_tokenizer::Message;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What either answer is worth where the verdict cannot be read: the middle of the scale.
const UNREAD: [f64; 2] = [3.0; 2];

/// `[grpo.judge]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// The judge's checkpoint, trained on the task `judge` or in its form.
    pub model: PathBuf,
    /// What a score of 5 adds to a reward over a score of 1.
    #[serde(default = "one")]
    pub weight: f64,
    /// How much it thinks: a number of tokens, "off" or "inf".
    #[serde(default = "inf")]
    pub budget: toml::Value,
    /// Most tokens of a verdict, thinking included.
    #[serde(default = "most")]
    pub max_tokens: u32,
}

fn one() -> f64 {
    1.0
}

fn inf() -> toml::Value {
    "inf".into()
}

fn most() -> u32 {
    512
}

impl JudgeConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(super) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        if !(self.weight > 0.0 && self.weight <= 1000.0) {
            return Some(("judge.weight", "above 0, to 1000", self.weight.to_string()));
        }
        if budget(&self.budget).is_none() {
            let expected = "a number of tokens, \"off\" or \"inf\"";
            return Some(("judge.budget", expected, self.budget.to_string()));
        }
        (self.max_tokens == 0).then(|| ("judge.max_tokens", "at least 1", "0".to_owned()))
    }
}

/// The judge, loaded.
pub struct Judge {
    model: Arc<NemotronH>,
    roller: Roller,
    config: JudgeConfig,
    budget: Budget,
    hash: String,
}

/// What the judge said of several groups.
pub(super) struct Comparison {
    /// Added to the rewards of each group.
    pub(super) rewards: Vec<Vec<f64>>,
    /// Share of the verdicts that could not be read.
    pub(super) unread: f64,
}

impl Judge {
    /// `roller` answers greedily, of at most `max_tokens`; `hash` is that of the judge's weights.
    #[must_use]
    pub fn new(model: Arc<NemotronH>, roller: Roller, config: JudgeConfig, hash: String) -> Self {
        let budget = budget(&config.budget).unwrap_or(Budget::Unlimited);
        Self { model, roller, config, budget, hash }
    }

    /// What changes its verdicts.
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        let JudgeConfig { weight, budget, max_tokens, .. } = &self.config;
        serde_json::to_vec(&(&self.hash, weight, budget, max_tokens)).expect("settings are JSON")
    }

    /// Rewards for the answers of each group; the same on all ranks. An error where no verdict at all
    /// can be read.
    pub(super) fn compare(
        &self,
        comm: &dyn Comm,
        groups: &[(&Prompt, &[Rollout])],
    ) -> Result<Comparison, BoxError> {
        let circles: Vec<Vec<String>> = groups.iter().map(|(p, own)| questions(p, own)).collect();
        // Answers of a group are often the same: a question is asked once.
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut asks = Vec::new();
        for text in circles.iter().flatten() {
            places.entry(text).or_insert_with(|| {
                asks.push(self.ask(text));
                asks.len() - 1
            });
        }
        let named =
            |error: BoxError| format!("grpo.judge: {}: {error}", self.config.model.display());
        let said = self.roller.answer(&self.model, comm, &asks).map_err(named)?;
        let verdict = |text: &String| Verdict::parse(&said[places[text.as_str()]].answer);
        let verdicts: Vec<Vec<_>> =
            circles.iter().map(|circle| circle.iter().map(verdict).collect()).collect();
        let all = verdicts.iter().flatten();
        let unread = all.clone().filter(|verdict| verdict.is_none()).count();
        if unread == circles.iter().map(Vec::len).sum::<usize>() {
            return Err(self.speechless(unread, &said));
        }
        let rewards = verdicts.iter().map(|circle| {
            let scores = scores(circle).into_iter();
            scores.map(|score| self.config.weight * (score - 1.0) / 4.0).collect()
        });
        Ok(Comparison {
            rewards: rewards.collect(),
            unread: unread as f64 / all.count().max(1) as f64,
        })
    }

    /// Why a run cannot go on with this judge: a reward that is the same for all teaches nothing.
    fn speechless(&self, count: usize, said: &[Rollout]) -> BoxError {
        let model = self.config.model.display();
        let found = said.first().map_or("", |rollout| rollout.answer.trim());
        let found: String = found.chars().take(80).collect();
        format!(
            "grpo.judge: {model}: expected two scores from 1 to 5 and a ranking from 1 to 6, found none \
             in {count} verdicts; the first says {found:?}. `hybra data judge` makes what a judge \
             is trained on; a verdict may also need more `grpo.judge.max_tokens` ({})",
            self.config.max_tokens
        )
        .into()
    }

    fn ask(&self, text: &str) -> Ask {
        let messages = vec![Message::new("user", text)];
        let input = ChatInput { messages, ..ChatInput::default() };
        Ask { input, budget: self.budget, seed: 0 }
    }
}

/// Question i is about answers i and i + 1.
fn questions(prompt: &Prompt, own: &[Rollout]) -> Vec<String> {
    let answers: Vec<String> = own.iter().map(|r| answered(&r.answer, &r.calls())).collect();
    let turns = &prompt.example.messages[..prompt.turn];
    let next = answers.iter().cycle().skip(1);
    answers.iter().zip(next).map(|(one, two)| question(turns, one, two)).collect()
}

/// The mean score of each answer of a circle.
fn scores(circle: &[Option<Verdict>]) -> Vec<f64> {
    let mut scores = vec![0.0; circle.len()];
    for (i, verdict) in circle.iter().enumerate() {
        let [first, second] = verdict.map_or(UNREAD, Verdict::worth);
        scores[i] += first / 2.0;
        scores[(i + 1) % circle.len()] += second / 2.0;
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(texts: &[&str]) -> Vec<f64> {
        let verdicts: Vec<_> = texts.iter().map(|text| Verdict::parse(text)).collect();
        scores(&verdicts)
    }

    #[test]
    fn an_answer_has_the_mean_of_its_two_scores() {
        // Answers A, B, C: B beats A, B beats C, C is as bad as A, and shorter.
        assert_eq!(circle(&["1 5 6", "5 1 1", "1 1 3"]), [0.75, 5.0, 1.25]);
        // Two answers are compared in either order.
        assert_eq!(circle(&["5 1 1", "1 5 6"]), [5.0, 1.0]);
    }

    #[test]
    fn a_judge_that_favours_a_place_favours_nobody_and_one_that_says_nothing_neither() {
        assert_eq!(circle(&["5 1 1"; 4]), [3.0; 4]);
        assert_eq!(circle(&["", "no", "9 9 9"]), [3.0; 3]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let read = |text: &str| toml::from_str::<JudgeConfig>(text).unwrap().defect();
        assert_eq!(read("model = 'm'"), None);
        for (text, key) in [
            ("model = 'm'\nweight = 0.0", "judge.weight"),
            ("model = 'm'\nbudget = 'much'", "judge.budget"),
            ("model = 'm'\nmax_tokens = 0", "judge.max_tokens"),
        ] {
            assert_eq!(read(text).unwrap().0, key);
        }
    }
}
