//! Why a run ends early.

use crate::checkpoint_store::StoreError;
use crate::comm::CommError;
use crate::objective::BoxError;
use std::io;
use std::path::PathBuf;

/// Why a run ended early. Checkpoints that were saved stay.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Another rank ended.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data gave an error.
    #[error("data: {0}")]
    Data(BoxError),
    /// The evaluation gave an error.
    #[error("evaluation: {0}")]
    Eval(BoxError),
    /// The stage has nothing that evaluates.
    #[error("the run file has [eval], and this stage cannot evaluate: take the table out")]
    NoEvaluator,
    /// A log cannot be written.
    #[error("{}: {cause}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A log lost lines that the checkpoint knows of.
    #[error(
        "{}: is shorter than the {expected} bytes it had at the checkpoint: put it back, or begin \
         anew with --force",
        path.display()
    )]
    ShortLog {
        /// The file.
        path: PathBuf,
        /// Bytes.
        expected: u64,
    },
    /// Some rank would have nothing to do.
    #[error("step {step} has {found} micro-batches, expected one for each of {ranks} ranks")]
    TooFewBatches {
        /// From 1.
        step: u64,
        /// Micro-batches.
        found: usize,
        /// Ranks.
        ranks: usize,
    },
    /// Every token of a step is masked.
    #[error("step {step} has nothing to learn: the weights of its tokens sum to {weight}")]
    NothingToLearn {
        /// From 1.
        step: u64,
        /// The sum.
        weight: f64,
    },
    /// The objective reaches no parameter.
    #[error("the first step gave no gradient to any tensor: nothing would be learned")]
    NoGradient,
    /// NaN or infinity in loss or gradient.
    #[error(
        "step {step}: loss {loss}, gradient norm {norm}: not finite, first in {}; no weight was \
         changed, the step's batches are in {}; a lower learning rate or more clipping may help",
        tensor.as_deref().unwrap_or("the loss"),
        path.display()
    )]
    NotFinite {
        /// From 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// Of the gradient.
        norm: f64,
        /// The first tensor with such a value, in the model's order; none if only the loss is bad.
        tensor: Option<String>,
        /// The file of this rank.
        path: PathBuf,
    },
}
