//! What is kept of a step whose loss or gradient is not finite.
//!
//! The step is a function of the weights before it (the last checkpoint leads there) and of its
//! micro-batches: these are written to `RUN/failed/step-000123-rank0.json`, each rank its own.

use super::TrainError;
use crate::atomic;
use crate::comm::{Comm, CommError, share};
use hybra_model::parameters::Layout;
use hybra_model::training::PackedBatch;
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The step that failed.
pub(super) struct Step {
    /// From 1.
    pub(super) step: u64,
    /// Of the run.
    pub(super) seed: u64,
    /// Mean over the learned tokens.
    pub(super) loss: f64,
    /// Of the gradient.
    pub(super) norm: f64,
}

/// The first value that is not finite, by its place in the flat vector.
pub(super) fn first_bad(
    comm: &dyn Comm,
    gradient: &[f32],
    shard: Range<usize>,
) -> Result<Option<usize>, CommError> {
    let own = gradient.iter().position(|value| !value.is_finite());
    let own = own.map_or(u64::MAX, |at| (shard.start + at) as u64);
    let all = comm.all_gather(&own.to_le_bytes())?;
    let places = all.iter().filter_map(|bytes| bytes[..].try_into().ok().map(u64::from_le_bytes));
    Ok(places.min().filter(|at| *at != u64::MAX).map(|at| at as usize))
}

/// Writes the step down and gives the error that ends the run; `bad` is the place of the first
/// value of the gradient that is not finite.
pub(super) fn stop(
    dir: &Path,
    comm: &dyn Comm,
    seen: &Step,
    batches: &[PackedBatch],
    layout: &Layout,
    bad: Option<usize>,
) -> Result<TrainError, TrainError> {
    let tensor = bad.map(|at| layout.slot_of(at).spec.name.clone());
    let path = save(dir, comm, seen, batches, tensor.as_deref())?;
    let Step { step, loss, norm, .. } = *seen;
    Ok(TrainError::NotFinite { step, loss, norm, tensor, path })
}

/// Writes this rank's micro-batches; gives the file.
fn save(
    dir: &Path,
    comm: &dyn Comm,
    seen: &Step,
    batches: &[PackedBatch],
    tensor: Option<&str>,
) -> Result<PathBuf, TrainError> {
    let Step { step, seed, loss, .. } = *seen;
    let path = dir.join(format!("step-{step:06}-rank{}.json", comm.rank()));
    let own = share(0..batches.len(), comm.rank(), comm.size());
    let batches = own.map(|index| {
        let PackedBatch { tokens, documents, labels, weights, .. } = &batches[index];
        json!({
            "index": index, "tokens": tokens, "documents": documents,
            "labels": labels, "weights": weights,
        })
    });
    let value = json!({
        "step": step,
        "seed": seed,
        // JSON has no NaN.
        "loss": loss.to_string(),
        "tensor": tensor,
        "micro_batches": batches.collect::<Vec<_>>(),
    });
    let failed = |cause| TrainError::Log { path: path.clone(), cause };
    std::fs::create_dir_all(dir).map_err(failed)?;
    atomic::write(&path, format!("{value:#}\n").as_bytes()).map_err(failed)?;
    // The others' files, too, are there when this rank ends.
    comm.barrier()?;
    Ok(path)
}
