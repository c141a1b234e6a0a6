//! The TOML file of a run, with the command line's changes.
//!
//! An unknown key is an error, as is a value out of range; both name file and key. `[data]` and
//! `[eval]` belong to the data and to the evaluation, which read them with the same care.

mod model;

pub use model::{ModelConfig, TokenIds};

use crate::distil::DistilConfig;
use crate::dpo::DpoConfig;
use crate::grpo::GrpoConfig;
use crate::lora::LoraConfig;
use crate::optimizer::OptimizerConfig;
use crate::rollout::RolloutConfig;
use crate::schedule::Schedule;
use hybra_model::training::Precision;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Of random weights and of the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Arithmetic of forward and backward; weights, gradients and moments are f32 in each.
    #[serde(default)]
    pub precision: Precision,
    /// Whether blocks keep their inputs alone and run once more on the way back: less memory, the
    /// same bits.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// What is trained.
    pub model: ModelConfig,
    /// What it is trained on; read by the source of batches.
    pub data: Table,
    /// A low-rank adapter is trained in place of the weights; of any stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// AdamW and clipping.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// What is kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is written down.
    #[serde(default)]
    pub log: LogConfig,
    /// What a student learns from; of `hybra train distil` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distil: Option<DistilConfig>,
    /// How the model answers what it then learns from; of `grpo`, `pairs`, and of `distil` on the
    /// student's own samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutConfig>,
    /// Of `hybra train grpo` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpo: Option<GrpoConfig>,
    /// Of `hybra train dpo` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<DpoConfig>,
    /// Parts of the run with data of their own shape, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseConfig>,
    /// What is measured in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
}

/// One of `[[phases]]`: what it says replaces what `[data]` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// Steps; all phases together have the run's.
    pub steps: u64,
    /// Tokens of a pack: the longest context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack_len: Option<usize>,
    /// Packs of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps from one checkpoint to the next; the last step has one anyway.
    pub every: u64,
    /// How many are kept.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Steps from one line to the next; the last step has one anyway.
    pub every: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every: 1 }
    }
}

/// `[eval]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// Steps from one evaluation to the next.
    pub every: u64,
    /// Read by the evaluation.
    #[serde(flatten)]
    pub settings: Table,
}

/// Why a run file is refused.
#[derive(Debug, thiserror::Error)]
pub enum RunConfigError {
    /// It cannot be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is no TOML.
    #[error("{}: {cause}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        cause: toml::de::Error,
    },
    /// A key that is unknown or missing, or a value of another type.
    #[error("{}: at `{key}`: {cause}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Where, such as `optimizer.lr`; `.` for the file itself.
        key: String,
        /// What.
        cause: String,
    },
    /// A value out of range.
    #[error("{}: `{key}`: expected {expected}, found {found}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would do.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A change on the command line that is none.
    #[error("`--set {change}`: {defect}; expected KEY=VALUE such as optimizer.lr=3e-4")]
    Change {
        /// As given.
        change: String,
        /// What is wrong.
        defect: String,
    },
}

impl RunConfig {
    /// Reads a file and applies `changes`, each `key.of.table=value`; a number in the key counts in
    /// a list. A value that is no TOML is text.
    ///
    /// # Errors
    /// [`RunConfigError`].
    pub fn read(path: &Path, changes: &[String]) -> Result<Self, RunConfigError> {
        let io = |cause| RunConfigError::Io { path: path.to_owned(), cause };
        let text = std::fs::read_to_string(path).map_err(io)?;
        Self::parse(&text, path, changes)
    }

    /// [`Self::read`] of a text; `path` is for messages.
    ///
    /// # Errors
    /// [`RunConfigError`].
    pub fn parse(text: &str, path: &Path, changes: &[String]) -> Result<Self, RunConfigError> {
        let syntax = |cause| RunConfigError::Syntax { path: path.to_owned(), cause };
        let mut table = Value::Table(toml::from_str::<Table>(text).map_err(syntax)?);
        for change in changes {
            let wrong = |defect| RunConfigError::Change { change: change.clone(), defect };
            set(&mut table, change).map_err(wrong)?;
        }
        let config: Self = serde_path_to_error::deserialize(table).map_err(|error| {
            let (key, cause) = (error.path().to_string(), error.inner().to_string());
            let cause = cause.trim_end().replace('\n', " ");
            RunConfigError::Key { path: path.to_owned(), key, cause }
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), RunConfigError> {
        let wrong = |key: &str, expected: &str, found: &dyn ToString| {
            let (key, expected) = (key.to_owned(), expected.to_owned());
            RunConfigError::Value { path: path.to_owned(), key, expected, found: found.to_string() }
        };
        if self.steps == 0 {
            return Err(wrong("steps", "at least 1", &self.steps));
        }
        if self.checkpoint.every == 0 {
            return Err(wrong("checkpoint.every", "at least 1", &0));
        }
        if self.checkpoint.keep == 0 {
            return Err(wrong("checkpoint.keep", "at least 1", &0));
        }
        if self.log.every == 0 {
            return Err(wrong("log.every", "at least 1", &0));
        }
        let phases: u64 = self.phases.iter().map(|phase| phase.steps).sum();
        if !self.phases.is_empty() && phases != self.steps {
            let expected = format!("steps that sum to the run's {}", self.steps);
            return Err(wrong("phases", &expected, &phases));
        }
        if let Some((key, expected, found)) = self.distil.as_ref().and_then(DistilConfig::defect) {
            return Err(wrong(&format!("distil.{key}"), expected, &found));
        }
        if let Some((key, expected, found)) = self.rollout.as_ref().and_then(RolloutConfig::defect)
        {
            return Err(wrong(&format!("rollout.{key}"), &expected, &found));
        }
        if let Some((key, expected, found)) = self.grpo.as_ref().and_then(GrpoConfig::defect) {
            return Err(wrong(&format!("grpo.{key}"), expected, &found));
        }
        if let Some((key, expected, found)) = self.dpo.as_ref().and_then(DpoConfig::defect) {
            return Err(wrong(&format!("dpo.{key}"), expected, &found));
        }
        if let Some((key, expected, found)) = self.lora.as_ref().and_then(LoraConfig::defect) {
            return Err(wrong(&format!("lora.{key}"), expected, &found));
        }
        if self.lora.is_some() && self.model.from.is_none() {
            return Err(wrong("lora", "`model.from`, which the adapter belongs to", &"none"));
        }
        if self.rollout.is_some() && !self.phases.is_empty() {
            return Err(wrong("phases", "none beside [rollout]", &self.phases.len()));
        }
        if self.eval.as_ref().is_some_and(|eval| eval.every == 0) {
            return Err(wrong("eval.every", "at least 1", &0));
        }
        if let Some((key, expected, found)) = self.optimizer.defect() {
            return Err(wrong(&format!("optimizer.{key}"), &expected, &found));
        }
        if let Some((key, expected, found)) = self.schedule.defect(self.optimizer.lr, self.steps) {
            return Err(wrong(&format!("schedule.{key}"), &expected, &found));
        }
        self.model.check(path)
    }

    /// The file's text with every default spelled out: what a run keeps to know itself again.
    ///
    /// # Panics
    /// Never: every value has a form in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration that was read can be written")
    }

    /// BLAKE3 of [`Self::to_toml`], in hex.
    #[must_use]
    pub fn hash(&self) -> String {
        blake3::hash(self.to_toml().as_bytes()).to_hex().to_string()
    }
}

/// Applies one change.
fn set(root: &mut Value, change: &str) -> Result<(), String> {
    let (key, value) = change.split_once('=').ok_or("there is no `=`")?;
    let (key, text) = (key.trim(), value.trim());
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok();
    let value = parsed.and_then(|mut table| table.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    let mut at = root;
    for part in key.split('.') {
        if part.is_empty() {
            return Err(format!("the key `{key}` has an empty part"));
        }
        at = match at {
            Value::Table(table) => {
                let fresh = Value::Table(Table::new());
                table.entry(part).or_insert(fresh)
            }
            Value::Array(items) => {
                let len = items.len();
                let item = part.parse().ok().and_then(|index: usize| items.get_mut(index));
                item.ok_or_else(|| format!("`{part}` is no index into a list of {len}"))?
            }
            _ => return Err(format!("`{part}` of `{key}` lies in a value that has no keys")),
        };
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "steps = 10\n[model]\npreset = \"micro\"\n[data]\npack_len = 64\n\
                       [[data.sources]]\ntask = \"chainbox\"\n";

    fn parse(text: &str, changes: &[&str]) -> Result<RunConfig, RunConfigError> {
        let changes: Vec<_> = changes.iter().map(|change| (*change).to_owned()).collect();
        RunConfig::parse(text, Path::new("run.toml"), &changes)
    }

    #[test]
    fn changes_apply_and_the_whole_is_written_and_read_again() {
        let changes = [
            "optimizer.lr=3e-4",
            "schedule.kind=wsd",
            "schedule.decay_steps=2",
            "data.sources.0.weight=2",
            "eval.every=5",
            "eval.task=chainbox",
        ];
        let config = parse(RUN, &changes).unwrap();
        assert_eq!(config.optimizer.lr, 3e-4);
        assert_eq!(config.data["sources"][0]["weight"].as_integer(), Some(2));
        assert_eq!(config.eval.as_ref().unwrap().settings["task"].as_str(), Some("chainbox"));
        assert_eq!(parse(&config.to_toml(), &[]).unwrap(), config);
        assert_ne!(parse(RUN, &[]).unwrap().hash(), config.hash());
    }

    #[test]
    fn errors_name_file_and_key() {
        let long = format!("{RUN}[optimizer]\nlearning_rate = 1\n");
        for (text, change, part) in [
            (long.as_str(), "seed=1", "`optimizer.learning_rate`"),
            (RUN, "optimizer.lr=\"a\"", "`optimizer.lr`"),
            (RUN, "optimizer.lr=0", "`optimizer.lr`: expected a number above 0, found 0"),
            (RUN, "optimizer.betas=[0.9, 1.0]", "`optimizer.betas`"),
            (RUN, "schedule.warmup_steps=11", "`schedule.warmup_steps`: expected at most 10"),
            (RUN, "checkpoint.keep=0", "`checkpoint.keep`"),
            (RUN, "speed=1", "unknown field `speed`"),
            (RUN, "model.from=x", "`model.preset`"),
            ("steps = 1\n", "seed=1", "missing field `model`"),
        ] {
            let message = parse(text, &[change]).unwrap_err().to_string();
            assert!(message.starts_with("run.toml: ") && message.contains(part), "{message}");
        }
        for change in ["lr", "steps.x=1", "data.sources.7.weight=1", "a..b=1"] {
            let message = parse(RUN, &[change]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("`--set {change}`: ")), "{message}");
        }
        assert!(parse("steps = ", &[]).unwrap_err().to_string().contains("line 1"));
    }
}
