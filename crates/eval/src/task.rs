//! The tasks, and examples as pure functions of (task, options, seed, index).

use crate::error::TaskError;
use crate::example::Example;
use crate::random::Random;
use crate::split::{Phrasing, Split, hash};
use crate::{about, arithmetic, chainbox, format, judge, recall, tools};
use hybra_tokenizer::Message;
use serde_json::Value;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Share of sentences in mixed phrasing, in percent.
const NATURAL_PERCENT: usize = 40;
/// Draws for one example. The rarest structures are one in five, so that so many never run out.
const MOST_DRAWS: usize = 10_000;

/// A family of examples with a verifier.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Task {
    /// Chains of definitions modulo 10, shuffled among others. Difficulty: length of the chain.
    Chainbox,
    /// Integers added, subtracted, multiplied digit by digit. Difficulty: digits.
    Arithmetic,
    /// Calls whose argument another call looks up. Difficulty: calls and functions to choose from.
    Tools,
    /// One of many key–value pairs. Difficulty: pairs.
    Recall,
    /// Small problems whose answer must have a form. Difficulty: the problem's, or two forms.
    Format,
    /// Questions about the model, small talk, and what it cannot know. Difficulty: questions.
    About,
    /// Two answers of which one may be better. Difficulty: the problem's.
    Judge,
}

/// What examples are made of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TaskOptions {
    /// The set.
    pub split: Split,
    /// The wording.
    pub phrasing: Phrasing,
    /// No example is more difficult.
    pub max_difficulty: Option<u32>,
}

/// An example as its task makes it.
pub(crate) struct Draft {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<Value>,
    pub(crate) answer: String,
    pub(crate) structure: String,
}

/// What a task makes a draft from.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) difficulty: u32,
    /// Sentences instead of symbols.
    pub(crate) natural: bool,
    /// Out of the range of training.
    pub(crate) hard: bool,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Chainbox,
        Self::Arithmetic,
        Self::Tools,
        Self::Recall,
        Self::Format,
        Self::About,
        Self::Judge,
    ];

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chainbox => "chainbox",
            Self::Arithmetic => "arithmetic",
            Self::Tools => "tools",
            Self::Recall => "recall",
            Self::Format => "format",
            Self::About => "about",
            Self::Judge => "judge",
        }
    }

    /// Difficulties of a split; train and test have the same.
    #[must_use]
    pub fn difficulties(self, split: Split) -> RangeInclusive<u32> {
        let (usual, hard) = match self {
            Self::Chainbox => (1..=8, 9..=10),
            Self::Arithmetic => (1..=4, 5..=6),
            Self::Tools => (1..=3, 4..=4),
            Self::Recall => (2..=24, 25..=40),
            Self::Format => (1..=3, 4..=4),
            Self::About => (1..=1, 2..=2),
            Self::Judge => (1..=3, 4..=4),
        };
        if split == Split::Hard { hard } else { usual }
    }

    /// Example `index` of `seed`.
    ///
    /// # Errors
    /// A greatest difficulty below the least of the split.
    pub fn example(
        self,
        options: TaskOptions,
        seed: u64,
        index: u64,
    ) -> Result<Example, TaskError> {
        let difficulties = self.range(options)?;
        let domain = hash(&format!("{self}/{}", options.split));
        let mut random = Random::new(seed, domain, index);
        for _ in 0..MOST_DRAWS {
            let (low, high) = (*difficulties.start(), *difficulties.end());
            let difficulty = random.between(u64::from(low), u64::from(high)) as u32;
            let natural = match options.phrasing {
                Phrasing::Terse => false,
                Phrasing::Natural => true,
                Phrasing::Mixed => random.percent(NATURAL_PERCENT),
            };
            let hard = options.split == Split::Hard;
            let draft = self.draft(&mut random, &Plan { difficulty, natural, hard });
            if hard || Split::of(&draft.structure) == options.split {
                let Draft { messages, tools, answer, structure } = draft;
                let task = Some(self);
                return Ok(Example { task, messages, tools, answer, difficulty, structure });
            }
        }
        panic!("{self}: no structure of {options:?} in {MOST_DRAWS} draws");
    }

    /// The difficulties that options leave.
    fn range(self, options: TaskOptions) -> Result<RangeInclusive<u32>, TaskError> {
        let all = self.difficulties(options.split);
        let most = options.max_difficulty.unwrap_or(u32::MAX);
        if most < *all.start() {
            return Err(TaskError::Difficulty {
                task: self.name(),
                split: options.split.name(),
                low: *all.start(),
                high: *all.end(),
                found: most,
            });
        }
        Ok(*all.start()..=most.min(*all.end()))
    }

    pub(crate) fn draft(self, random: &mut Random, plan: &Plan) -> Draft {
        match self {
            Self::Chainbox => chainbox::draft(random, plan),
            Self::Arithmetic => arithmetic::draft(random, plan),
            Self::Tools => tools::draft(random, plan),
            Self::Recall => recall::draft(random, plan),
            Self::Format => format::draft(random, plan),
            Self::About => about::draft(random, plan),
            Self::Judge => judge::draft(random, plan),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = TaskError;

    fn from_str(text: &str) -> Result<Self, TaskError> {
        Self::ALL.into_iter().find(|task| task.name() == text).ok_or_else(|| TaskError::Unknown {
            expected: Self::ALL.map(Self::name).join(", "),
            found: text.chars().take(64).collect(),
        })
    }
}
