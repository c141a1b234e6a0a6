//! What the training loop needs to know of a stage: a loss with its gradient, and data.
//!
//! Both are deterministic: an objective's result depends on parameters and batch alone, and a
//! source of batches that is restored to a state gives what followed that state before.

use crate::comm::Comm;
use hybra_kernels::Cpu;
use hybra_model::training::PackedBatch;
use serde_json::Value;

/// Any error of a stage's own parts.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sums over the learned tokens of a micro-batch, unscaled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossSums {
    /// Σ weight·loss.
    pub loss: f64,
    /// Σ weight.
    pub weight: f64,
    /// More to log: name, sum and count; the log has sum / count over the step. The same names in
    /// the same order for every micro-batch.
    pub metrics: Vec<(&'static str, f64, f64)>,
}

impl LossSums {
    /// All sums, in order.
    pub(crate) fn numbers(&self) -> Vec<f64> {
        let metrics = self.metrics.iter().flat_map(|&(_, sum, count)| [sum, count]);
        [self.loss, self.weight].into_iter().chain(metrics).collect()
    }

    /// The same names with other sums.
    pub(crate) fn with_numbers(&self, numbers: &[f64]) -> Self {
        let pairs = numbers[2..].chunks(2).zip(&self.metrics);
        let metrics = pairs.map(|(pair, (name, ..))| (*name, pair[0], pair[1])).collect();
        Self { loss: numbers[0], weight: numbers[1], metrics }
    }
}

/// What a stage minimizes.
pub trait Objective {
    /// Adds d(`scale` · Σ weight·loss) / d parameters of one micro-batch to `gradient` (flat, in
    /// layout order) and gives its sums.
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums;

    /// The weight that [`Self::micro_batch`] will count: the loss of a step is divided by its sum
    /// over all micro-batches of all ranks. By default that of the learned tokens.
    fn weight(&self, batch: &PackedBatch) -> f64 {
        batch.weights.iter().map(|&weight| f64::from(weight)).sum()
    }

    /// Whether a step without any gradient can be right; else it ends a run that begins with one.
    fn may_rest(&self) -> bool {
        false
    }
}

/// The model under training, for data that it makes itself.
pub struct Policy<'a> {
    /// Its weights, flat, in layout order.
    pub parameters: &'a [f32],
    /// The ranks.
    pub comm: &'a dyn Comm,
}

/// Where micro-batches come from. Every rank sees those of all ranks and computes its share.
pub trait Batches {
    /// The micro-batches of the next step, at least one for every rank.
    ///
    /// # Errors
    /// Whatever is wrong with the data.
    fn step(&mut self, policy: &Policy) -> Result<Vec<PackedBatch>, BoxError>;

    /// A checksum of all that decides what the steps are, the tokenizer included.
    fn fingerprint(&self) -> String;

    /// Where the next step begins, for a checkpoint.
    fn state(&self) -> Value;

    /// Goes to where [`Self::state`] was taken.
    ///
    /// # Errors
    /// A state of other data.
    fn restore(&mut self, state: &Value) -> Result<(), BoxError>;

    /// What the last step's data were like, for the log; the same on all ranks.
    fn metrics(&self) -> &[(String, f64)] {
        &[]
    }
}

/// Measures a model in the middle of a run.
pub trait Evaluator {
    /// Names and values for the log; deterministic.
    ///
    /// # Errors
    /// Whatever is wrong with the evaluation.
    fn evaluate(&mut self, cpu: &Cpu, parameters: &[f32]) -> Result<Vec<(String, f64)>, BoxError>;
}
