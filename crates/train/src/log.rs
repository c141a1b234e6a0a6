//! The lines of a run: `log.jsonl`, a function of configuration and data, and `timing.jsonl`.
//!
//! Both are cut back to their length at a checkpoint when a run goes on from there, so the log of a
//! run that was killed is the log of one that was not.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// A line of `log.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// Steps done, from 1.
    pub step: u64,
    /// Σ weight·loss / Σ weight over the step, before its update.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f32,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read by the run so far.
    pub tokens: u64,
    /// Tokens learned by the run so far.
    pub learned_tokens: u64,
    /// What the objective adds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// What an evaluation after the step measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub eval: BTreeMap<String, f64>,
}

/// A line of `timing.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTiming {
    /// Steps done, from 1.
    pub step: u64,
    /// Of this step.
    pub seconds: f64,
    /// Of this step, all ranks together.
    pub tokens_per_second: f64,
}

/// A file of JSON lines that is only added to.
pub(crate) struct Lines {
    file: File,
    len: u64,
}

impl Lines {
    /// Opens a file at its first `len` bytes; the rest goes. Gives `None` if it has fewer.
    pub(crate) fn open(path: &Path, len: u64) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).open(path)?;
        if file.metadata()?.len() < len {
            return Ok(None);
        }
        file.set_len(len)?;
        Ok(Some(Self { file, len }))
    }

    /// Adds a line.
    pub(crate) fn push(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.len += text.len() as u64;
        Ok(())
    }

    /// Bytes so far, all of them on disk.
    pub(crate) fn sync(&mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        Ok(self.len)
    }
}
