//! What the model is asked: examples of tasks, turn by turn, each at a thinking budget.
//!
//! Prompt i of a run is a function of seed and i: which source, which example, which of its turns,
//! which budget. The turns before it stand as they should have been.

use super::Ask;
use crate::data::draw::{Draws, Purpose};
use crate::data::mixture::{MAX_SOURCES, Mixture};
use crate::data::{DataError, task_examples};
use hybra_chat::ChatInput;
use hybra_eval::{Budget, Example, read_questions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use toml::Value as Toml;

/// `[rollout]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Prompts of a step.
    pub prompts: usize,
    /// Answers to each.
    pub group: usize,
    /// Numbers of tokens, "off" and "inf"; each prompt draws one.
    pub budgets: Vec<Toml>,
    /// Whether every answer draws a budget of its own. Its reward is then compared with those of
    /// other budgets.
    pub budget_per_answer: bool,
    /// Of sampling.
    pub temperature: f32,
    /// Most tokens of an answer, thinking included.
    pub max_tokens: u32,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            prompts: 16,
            group: 8,
            budgets: vec![Toml::from("inf")],
            budget_per_answer: false,
            temperature: 1.0,
            max_tokens: 256,
        }
    }
}

impl RolloutConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(crate) fn defect(&self) -> Option<(&'static str, String, String)> {
        let wrong = |key, expected: &str, found: &dyn ToString| {
            Some((key, expected.to_owned(), found.to_string()))
        };
        if self.prompts == 0 {
            return wrong("prompts", "at least 1", &self.prompts);
        }
        if self.group == 0 {
            return wrong("group", "at least 1", &self.group);
        }
        if !(0.0..=10.0).contains(&self.temperature) {
            return wrong("temperature", "0 to 10", &self.temperature);
        }
        if self.max_tokens == 0 {
            return wrong("max_tokens", "at least 1", &self.max_tokens);
        }
        let bad = self.budgets.iter().find(|value| budget(value).is_none());
        match (bad, self.budgets.is_empty()) {
            (Some(value), _) => wrong("budgets", "numbers of tokens, \"off\" and \"inf\"", value),
            (None, true) => wrong("budgets", "at least one budget", &"none"),
            (None, false) => None,
        }
    }
}

/// A budget as run files write it.
pub(crate) fn budget(value: &Toml) -> Option<Budget> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().ok()
}

/// `[data]` of a run that makes its own answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptConfig {
    /// Which examples come, and in which order.
    #[serde(default)]
    pub seed: u64,
    /// Most tokens of a micro-batch, and of a prompt with its answer.
    pub pack_len: usize,
    /// Where examples come from.
    pub sources: Vec<PromptSource>,
}

/// A source: either `task` or `path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptSource {
    /// A task with a verifier.
    pub task: Option<String>,
    /// Arguments of the task.
    pub args: Map<String, Value>,
    /// A JSONL file of examples, as `hybra data` writes them, or of conversations that end with a
    /// question (`messages` or `prompt`).
    pub path: Option<PathBuf>,
    /// Share of the prompts, relative to the other sources.
    pub weight: f64,
}

impl Default for PromptSource {
    fn default() -> Self {
        Self { task: None, args: Map::new(), path: None, weight: 1.0 }
    }
}

/// Gives an example by index.
type Examples = Box<dyn Fn(u64) -> Example + Send + Sync>;

/// The prompts of a run.
pub struct Prompts {
    config: PromptConfig,
    rollout: RolloutConfig,
    sources: Vec<Examples>,
    mixture: Mixture,
    budgets: Vec<Budget>,
    without_answer: Option<PathBuf>,
    fingerprint: String,
}

/// A prompt with what is right.
pub struct Prompt {
    /// The example.
    pub example: Example,
    /// The assistant's turn that is asked for, an index into its messages.
    pub turn: usize,
    /// Its answers to come.
    pub asks: Vec<Ask>,
}

impl Prompts {
    /// Opens the sources.
    ///
    /// # Errors
    /// An unknown task, a file that is no examples, a weight that is none.
    pub fn open(config: &PromptConfig, rollout: &RolloutConfig) -> Result<Self, DataError> {
        let wrong =
            |field: String, expected, found: String| DataError::Config { field, expected, found };
        let count = config.sources.len();
        if !(1..=MAX_SOURCES).contains(&count) {
            return Err(wrong("sources".to_owned(), "1 to 32 sources", count.to_string()));
        }
        let (mut sources, mut shares) = (Vec::new(), Vec::new());
        let (mut hash, mut without_answer) = (blake3::Hasher::new(), None);
        for (index, source) in config.sources.iter().enumerate() {
            let field = |name: &str| format!("sources[{index}].{name}");
            if !(source.weight > 0.0 && source.weight <= 1e6) {
                let expected = "a number above 0, at most 1e6";
                return Err(wrong(field("weight"), expected, source.weight.to_string()));
            }
            let (examples, num): (Examples, _) = match (&source.task, &source.path) {
                (Some(name), None) => {
                    let expected = "a known task with its arguments";
                    let made = task_examples(name, &source.args);
                    (made.map_err(|found| wrong(field("task"), expected, found))?, None)
                }
                (None, Some(path)) => {
                    let io = |cause| DataError::Io { path: path.clone(), cause };
                    let text = std::fs::read(path).map_err(io)?;
                    hash.update(&text);
                    let examples = read_questions(&text[..], &path.to_string_lossy());
                    let expected = "a file of examples or questions";
                    let examples = examples
                        .map_err(|error| wrong(field("path"), expected, error.to_string()))?;
                    if examples.iter().any(Example::is_question) {
                        without_answer.get_or_insert_with(|| path.clone());
                    }
                    let num = examples.len() as u64;
                    (Box::new(move |at| examples[at as usize].clone()), Some(num))
                }
                _ => {
                    let found = if source.task.is_some() { "both" } else { "neither" };
                    return Err(wrong(field("task"), "either `task` or `path`", found.to_owned()));
                }
            };
            sources.push(examples);
            shares.push((source.weight, num));
        }
        let mut named = config.clone();
        named.sources.iter_mut().for_each(|source| source.path = None);
        hash.update(&serde_json::to_vec(&(&named, rollout)).expect("settings are JSON"));
        Ok(Self {
            mixture: Mixture::new(config.seed, &shares),
            budgets: rollout.budgets.iter().filter_map(budget).collect(),
            config: config.clone(),
            rollout: rollout.clone(),
            sources,
            without_answer,
            fingerprint: hash.finalize().to_hex().to_string(),
        })
    }

    /// A checksum of examples and settings.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A file with questions of which no answer is known: what is right cannot be told.
    #[must_use]
    pub fn without_answer(&self) -> Option<&Path> {
        self.without_answer.as_deref()
    }

    /// Most tokens of a pack.
    #[must_use]
    pub fn pack_len(&self) -> usize {
        self.config.pack_len
    }

    /// How prompts are answered.
    #[must_use]
    pub fn rollout(&self) -> &RolloutConfig {
        &self.rollout
    }

    /// Prompt `index` of the run.
    #[must_use]
    pub fn prompt(&self, index: u64) -> Prompt {
        let pick = self.mixture.pick(index);
        let example = self.sources[pick.source](pick.record);
        let draws = |part| Draws::new(self.config.seed, Purpose::Rollout, index, part);
        let mut of_prompt = draws(0);
        let turns = example.asked_turns();
        let turn = turns[of_prompt.below(turns.len())];
        let input = ChatInput {
            messages: example.messages[..turn].to_vec(),
            tools: example.tools.clone(),
            ..ChatInput::default()
        };
        let shared = self.budgets[of_prompt.below(self.budgets.len())];
        let ask = |answer: usize| {
            let mut draws = draws(1 + answer as u64);
            let seed = draws.next_u64();
            let own = self.budgets[draws.below(self.budgets.len())];
            let budget = if self.rollout.budget_per_answer { own } else { shared };
            Ask { input: input.clone(), budget, seed }
        };
        let asks = (0..self.rollout.group).map(ask).collect();
        Prompt { example, turn, asks }
    }
}
