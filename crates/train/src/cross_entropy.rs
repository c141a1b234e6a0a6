//! Cross entropy of the next token: SFT, and pretraining on plain text.

use crate::objective::{LossSums, Objective};
use hybra_kernels::ops::linear_cross_entropy::{HeadGradients, Labels, linear_cross_entropy};
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::training::{PackedBatch, Tape, Trainable};

/// The loss of one model.
pub struct CrossEntropy {
    model: Trainable,
    tape: Tape,
    dnormed: Vec<f32>,
    logprobs: Vec<f32>,
}

impl CrossEntropy {
    /// The objective for this model.
    #[must_use]
    pub fn new(model: Trainable) -> Self {
        Self { model, tape: Tape::default(), dnormed: Vec::new(), logprobs: Vec::new() }
    }

    /// Log-probabilities of the last batch's labels where they are learned.
    #[must_use]
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }
}

impl Objective for CrossEntropy {
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        let (model, tape) = (&self.model, &mut self.tape);
        model.forward(cpu, parameters, batch, &batch.weights, tape);
        let h = model.config().hidden_size;
        self.dnormed.resize(tape.normed().len(), 0.0);
        self.logprobs.clear();
        self.logprobs.resize(batch.tokens.len(), 0.0);
        let g = HeadGradients {
            x: MatMut::new(&mut self.dnormed, h),
            w: model.head_gradient(gradient),
        };
        let labels = Labels { ids: &batch.labels, weights: &batch.weights };
        let (x, w) = (MatRef::new(tape.normed(), h), model.head(parameters));
        let loss = linear_cross_entropy(cpu, x, w, labels, scale, &mut self.logprobs, Some(g));
        model.backward(cpu, parameters, batch, tape, &self.dnormed, gradient);
        LossSums { loss, weight: self.weight(batch), metrics: Vec::new() }
    }
}
