//! Settings of the data of a run, as they stand in its TOML file.

use super::error::DataError;
use super::mixture::MAX_SOURCES;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The sources of a run, and how their documents become packs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Order of the data and all random choices in it.
    #[serde(default)]
    pub seed: u64,
    /// Most tokens of a pack.
    pub pack_len: usize,
    /// Packs of a step, over all ranks and accumulation steps.
    #[serde(default = "one")]
    pub batch_size: usize,
    /// Documents to choose from when a pack is filled.
    #[serde(default = "default_pool")]
    pub pool: usize,
    /// Where records come from.
    pub sources: Vec<SourceConfig>,
}

/// One source. Either `path` or `task` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// A JSONL or Parquet file.
    pub path: Option<PathBuf>,
    /// Name of a generator.
    pub task: Option<String>,
    /// Arguments of the generator.
    pub args: Map<String, Value>,
    /// Share of the samples, relative to the other sources.
    pub weight: f64,
    /// Share of the traces that are dropped: prompt with thinking off, answer learned.
    pub p_off: f64,
    /// Share of the traces that are cut at a random budget.
    pub p_truncate: f64,
    /// Share of the cuts that fall inside a line instead of at its end.
    pub p_mid_step: f64,
    /// Most tokens of a document; at most `pack_len`, which is the default.
    pub max_len: Option<usize>,
    /// What happens to longer ones.
    pub too_long: TooLong,
    /// Columns that are no part of the conversation.
    pub ignore: Vec<String>,
}

/// What happens to a document longer than `max_len`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It ends the run with an error.
    #[default]
    Error,
    /// It is left out and counted.
    Drop,
}

fn one() -> usize {
    1
}

fn default_pool() -> usize {
    64
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            path: None,
            task: None,
            args: Map::new(),
            weight: 1.0,
            p_off: 0.0,
            p_truncate: 0.0,
            p_mid_step: 0.2,
            max_len: None,
            too_long: TooLong::Error,
            ignore: Vec::new(),
        }
    }
}

impl DataConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn validate(&self) -> Result<(), DataError> {
        let least = [
            ("pack_len", self.pack_len, 2, "at least 2"),
            ("batch_size", self.batch_size, 1, "at least 1"),
            ("pool", self.pool, 1, "at least 1"),
        ];
        for (field, found, least, expected) in least {
            if found < least {
                return Err(wrong(field.to_owned(), expected, found));
            }
        }
        let num_sources = self.sources.len();
        if !(1..=MAX_SOURCES).contains(&num_sources) {
            return Err(wrong("sources".to_owned(), "1 to 32 sources", num_sources));
        }
        for (index, source) in self.sources.iter().enumerate() {
            self.validate_source(index, source)?;
        }
        Ok(())
    }

    fn validate_source(&self, index: usize, source: &SourceConfig) -> Result<(), DataError> {
        let field = |name: &str| format!("sources[{index}].{name}");
        if source.path.is_some() == source.task.is_some() {
            let found = if source.path.is_some() { "both" } else { "neither" };
            return Err(wrong(field("path"), "either `path` or `task`", found));
        }
        if source.path.is_some() && !source.args.is_empty() {
            return Err(wrong(field("args"), "no arguments for a file", "some"));
        }
        if !(source.weight > 0.0 && source.weight <= 1e6) {
            return Err(wrong(field("weight"), "a number above 0, at most 1e6", source.weight));
        }
        let shares = [
            ("p_off", source.p_off),
            ("p_truncate", source.p_truncate),
            ("p_mid_step", source.p_mid_step),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(wrong(field(name), "a share from 0 to 1", share));
            }
        }
        if source.p_off + source.p_truncate > 1.0 {
            let sum = source.p_off + source.p_truncate;
            return Err(wrong(field("p_truncate"), "p_off + p_truncate of at most 1", sum));
        }
        match source.max_len {
            Some(len) if len < 2 || len > self.pack_len => {
                Err(wrong(field("max_len"), "2 to `pack_len`", len))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(field: String, expected: &'static str, found: impl ToString) -> DataError {
    DataError::Config { field, expected, found: found.to_string() }
}
