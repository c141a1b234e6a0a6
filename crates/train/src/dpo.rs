//! Direct preference optimization: of two answers the better one becomes likelier.
//!
//! A pair is two documents of a batch, chosen then rejected. With the margin
//! `m = (π⁺ − ref⁺) − (π⁻ − ref⁻)` of log-probabilities summed over an answer's learned tokens (or
//! their means), the loss of a pair is
//!
//! ```text
//! sigmoid   −log σ(β·m)            ipo   (m − 1/(2β))²
//! + sft · mean of −log π over the chosen answer's tokens
//! ```
//! and that of a step the mean over its pairs. Where policy and reference agree m is exactly 0 and
//! the sigmoid loss exactly ln 2, whatever β: a run that begins with anything else is a bug.
//!
//! Sources: Rafailov et al. 2023 (DPO), Azar et al. 2024 (IPO).

mod pairs;
mod precompute;

pub use pairs::{Pair, PairBatches, PairConfig, PairError};

use crate::distil::Weighted;
use crate::objective::{LossSums, Objective};
use crate::policy_gradient::{learn, logprobs};
use hybra_kernels::Cpu;
use hybra_model::training::{PackedBatch, Tape, Trainable};
use serde::{Deserialize, Serialize};

/// `[dpo]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoConfig {
    /// β.
    pub beta: f64,
    /// Of the margin.
    pub loss: DpoLoss,
    /// Whether log-probabilities are means over an answer's tokens instead of sums.
    pub length_normalized: bool,
    /// Weight of the chosen answer's cross entropy.
    pub sft: f64,
    /// Whether the reference reads all pairs before the first step, and is gone then, instead of
    /// running beside the policy (TRL's name).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub precompute_ref_log_probs: bool,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: DpoLoss::Sigmoid,
            length_normalized: false,
            sft: 0.0,
            precompute_ref_log_probs: false,
        }
    }
}

impl DpoConfig {
    /// Key, what would do, and what it is, if a value is out of range.
    pub(crate) fn defect(&self) -> Option<(&'static str, &'static str, String)> {
        if !(self.beta > 0.0 && self.beta <= 100.0) {
            return Some(("beta", "a number above 0, at most 100", self.beta.to_string()));
        }
        let fits = (0.0..=100.0).contains(&self.sft);
        (!fits).then(|| ("sft", "0 to 100", self.sft.to_string()))
    }
}

/// What becomes of a margin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// −log σ(β·m).
    #[default]
    Sigmoid,
    /// (m − 1/(2β))².
    Ipo,
}

/// Loss of a margin, and its slope.
#[must_use]
pub fn dpo_loss(loss: DpoLoss, beta: f64, margin: f64) -> (f64, f64) {
    match loss {
        DpoLoss::Sigmoid => {
            let x = beta * margin;
            // −log σ(x) = ln(1 + e^−x), without overflow.
            let loss = (-x).max(0.0) + (-x.abs()).exp().ln_1p();
            (loss, -beta / (1.0 + x.exp()))
        }
        DpoLoss::Ipo => {
            let away = margin - 1.0 / (2.0 * beta);
            (away * away, 2.0 * away)
        }
    }
}

/// The objective.
pub struct Dpo {
    model: Trainable,
    /// `None`: batches bring what it said.
    reference: Option<Weighted>,
    /// Hash of the weights that the run began from, until others come.
    begun: Option<blake3::Hash>,
    config: DpoConfig,
    tape: Tape,
    reference_tape: Tape,
    dnormed: Vec<f32>,
}

/// Of the values: −0 is 0, which is what an adapter that adds nothing makes of it.
fn hash(parameters: &[f32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for values in parameters.chunks(1024) {
        let values: Vec<f32> = values.iter().map(|v| v + 0.0).collect();
        hasher.update(bytemuck::cast_slice(&values));
    }
    hasher.finalize()
}

impl Dpo {
    /// For a model of this shape that began as `reference`, which is kept unless batches bring what
    /// it said ([`PairBatches::with_reference`]).
    #[must_use]
    pub fn new(model: Trainable, reference: Weighted, config: DpoConfig) -> Self {
        let (tape, reference_tape) = (Tape::default(), Tape::default());
        let begun = Some(hash(&reference.parameters));
        let reference = (!config.precompute_ref_log_probs).then_some(reference);
        Self { model, reference, begun, config, tape, reference_tape, dnormed: Vec::new() }
    }

    fn of_reference(&mut self, cpu: &Cpu, batch: &PackedBatch) -> Vec<f32> {
        let Some(Weighted { model, parameters }) = &self.reference else {
            return batch.reference.clone().expect("a batch with what the reference said");
        };
        model.forward(cpu, parameters, batch, &batch.weights, &mut self.reference_tape);
        logprobs(cpu, model, parameters, batch, &self.reference_tape)
    }

    /// Policy and reference are equal until the first update, and only then.
    fn check_start(&mut self, parameters: &[f32], margins: f64) {
        if margins != 0.0 && self.begun.take().is_some_and(|own| own == hash(parameters)) {
            panic!("DPO: the margin of equal weights is {margins}, not 0");
        }
    }
}

/// An answer's tokens in a batch, and what they sum to.
struct Answer {
    rows: std::ops::Range<usize>,
    /// Learned tokens.
    count: f64,
    policy: f64,
    reference: f64,
}

impl Answer {
    /// What a log-probability of the answer is multiplied with.
    fn norm(&self, config: &DpoConfig) -> f64 {
        if config.length_normalized { 1.0 / self.count.max(1.0) } else { 1.0 }
    }

    fn gain(&self, config: &DpoConfig) -> f64 {
        (self.policy - self.reference) * self.norm(config)
    }
}

fn answers(batch: &PackedBatch, policy: &[f32], reference: &[f32]) -> Vec<Answer> {
    let mut from = 0;
    let answer = |&len: &usize| {
        let rows = from..from + len;
        from += len;
        let learned = |rows: &std::ops::Range<usize>| {
            rows.clone().filter(|&t| batch.weights[t] != 0.0).collect::<Vec<_>>()
        };
        let learned = learned(&rows);
        let sum = |values: &[f32]| learned.iter().map(|&t| f64::from(values[t])).sum();
        let count = learned.len() as f64;
        Answer { rows, count, policy: sum(policy), reference: sum(reference) }
    };
    batch.documents.iter().map(answer).collect()
}

impl Objective for Dpo {
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        let reference = self.of_reference(cpu, batch);
        let (model, tape) = (&self.model, &mut self.tape);
        model.forward(cpu, parameters, batch, &batch.weights, tape);
        let policy = logprobs(cpu, model, parameters, batch, tape);
        let answers = answers(batch, &policy, &reference);
        let mut weights = vec![0.0; policy.len()];
        let mut add = |answer: &Answer, weight: f64| {
            for t in answer.rows.clone().filter(|&t| batch.weights[t] != 0.0) {
                weights[t] += weight as f32;
            }
        };
        let (mut loss, mut pairs, mut margins, mut preferred) = (0.0, 0.0, 0.0, 0.0);
        let (mut chosen_logp, mut rejected_logp) = (0.0, 0.0);
        for pair in answers.chunks_exact(2) {
            let (chosen, rejected) = (&pair[0], &pair[1]);
            let margin = chosen.gain(&self.config) - rejected.gain(&self.config);
            let (of_pair, slope) = dpo_loss(self.config.loss, self.config.beta, margin);
            // The head's gradient is that of Σ weight · (−log π).
            add(chosen, -slope * chosen.norm(&self.config) + self.config.sft / chosen.count);
            add(rejected, slope * rejected.norm(&self.config));
            loss += of_pair - self.config.sft * chosen.policy / chosen.count;
            pairs += 1.0;
            margins += margin;
            preferred += f64::from(u8::from(margin > 0.0));
            chosen_logp += chosen.policy;
            rejected_logp += rejected.policy;
        }
        self.check_start(parameters, margins);
        let (model, tape) = (&self.model, &mut self.tape);
        let side = (model, parameters, batch);
        learn(cpu, side, tape, (&weights, scale), &mut self.dnormed, gradient);
        let metrics = vec![
            ("margin", margins, pairs),
            ("preferred", preferred, pairs),
            ("chosen_logp", chosen_logp, pairs),
            ("rejected_logp", rejected_logp, pairs),
        ];
        LossSums { loss, weight: pairs, metrics }
    }

    fn weight(&self, batch: &PackedBatch) -> f64 {
        (batch.documents.len() / 2) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_ln_2_and_its_slope_is_the_derivative() {
        assert_eq!(dpo_loss(DpoLoss::Sigmoid, 0.1, 0.0).0, std::f64::consts::LN_2);
        for loss in [DpoLoss::Sigmoid, DpoLoss::Ipo] {
            for m in [-900.0, -8.0, 0.0, 3.0, 900.0] {
                let at = |m: f64| dpo_loss(loss, 0.3, m);
                let h = 1e-5;
                let slope = (at(m + h).0 - at(m - h).0) / (2.0 * h);
                assert!((at(m).1 - slope).abs() < 1e-4, "{m}: {} {slope}", at(m).1);
            }
        }
    }
}
