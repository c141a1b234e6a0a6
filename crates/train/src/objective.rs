//! What a stage minimizes: losses of a model over packed documents, with their gradients.

use hybra_kernels::Cpu;
use hybra_model::training::PackedBatch;

/// Sums over the learned tokens of a micro-batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossSums {
    /// Σ weight · loss, in nats.
    pub loss: f64,
    /// Σ weight.
    pub weight: f64,
    /// Other sums by name, each with the sum of its weights.
    pub metrics: Vec<(&'static str, f64, f64)>,
}

/// A loss of flat parameters.
pub trait Objective {
    /// Adds the gradient of `scale · Σ weight · loss` over the batch to `gradient`, which like
    /// `parameters` is in the order of the model's layout, and returns the sums without `scale`.
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums;
}
