//! A model of which an adapter is trained: its whole weights, and room for their gradient.
//!
//! The weights are always those of the base with the adapter that was given last.

use crate::lora::Lora;
use crate::objective::{LossSums, Objective};
use hybra_kernels::Cpu;
use hybra_model::training::PackedBatch;

/// Weights and gradient of the whole model.
pub(super) struct Adapted<'a> {
    lora: &'a Lora,
    weights: Vec<f32>,
    gradient: Vec<f32>,
}

impl<'a> Adapted<'a> {
    /// The base with this adapter.
    pub(super) fn new(lora: &'a Lora, adapter: &[f32]) -> Self {
        let zeros = vec![0.0; lora.model_len()];
        let mut adapted = Self { lora, weights: zeros.clone(), gradient: zeros };
        adapted.set(adapter);
        adapted
    }

    /// Takes another adapter.
    pub(super) fn set(&mut self, adapter: &[f32]) {
        self.lora.merge(adapter, &mut self.weights);
    }

    /// The model's weights.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// [`Objective::micro_batch`] with the gradient of the adapter.
    pub(super) fn micro_batch(
        &mut self,
        (objective, cpu): (&mut dyn Objective, &Cpu),
        adapter: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        self.gradient.fill(0.0);
        let sums = objective.micro_batch(cpu, &self.weights, batch, scale, &mut self.gradient);
        self.lora.project(adapter, &self.gradient, gradient);
        sums
    }
}
