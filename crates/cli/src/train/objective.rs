//! The parts of a stage, made from a run file: what is minimized, and on what.

use anyhow::{Result, bail};
use hybra_model::config::Config;
use hybra_train::{Batches, ModelFiles, Objective, RunConfig};

/// Next-token cross entropy of a model of this shape.
pub(crate) fn sft(_: &Config) -> Result<Box<dyn Objective>> {
    bail!("train sft: this build has no objective");
}

/// The micro-batches that `[data]` describes.
pub(crate) fn batches(_: &RunConfig, _: &ModelFiles) -> Result<Box<dyn Batches>> {
    bail!("train sft: this build has no source of data");
}
