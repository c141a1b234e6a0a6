//! The loss of the GRPO family: sampled tokens, weighted by how much better their answer was.
//!
//! With r = π/π_old of a token and A its advantage,
//! `L = −min(r·A, clip(r, 1 − ε_low, 1 + ε_high)·A) + β·(e^d − d − 1)`, `d = log π_ref − log π`; for
//! A < 0 the first term is at most −c·A (dual clip). The loss of a step is the mean over all sampled
//! tokens of all its answers (token level, global), so long answers weigh more than short ones.
//!
//! π is computed with the bits that the engine had when it sampled ([`Signals`]), so an update with
//! the weights that sampled has r = 1 exactly, without any correction.
//!
//! [`Signals`]: hybra_model::training::Signals
//!
//! Sources: Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO: clip-higher, token level), Schulman 2020
//! (the k3 estimator), Ye et al. 2020 (dual clip).

use crate::distil::Weighted;
use crate::objective::{LossSums, Objective};
use hybra_engine::logprob;
use hybra_kernels::ops::linear_cross_entropy::{HeadGradients, Labels, linear_cross_entropy};
use hybra_kernels::{Cpu, MatMut, MatRef};
use hybra_model::training::{PackedBatch, Tape, Trainable};
use serde::{Deserialize, Serialize};

/// `[loss]` of a GRPO run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// ε_low.
    pub clip_low: f64,
    /// ε_high.
    pub clip_high: f64,
    /// c; 0: none.
    pub dual_clip: f64,
    /// β, towards the weights that the run began from; 0: they are not run.
    pub kl: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.28, dual_clip: 3.0, kl: 0.0 }
    }
}

/// A token's loss, and its slope along the token's log-probability.
#[must_use]
pub fn token_loss(
    config: &ClipConfig,
    advantage: f64,
    logp: f64,
    old: f64,
    reference: Option<f64>,
) -> TokenLoss {
    let ratio = (logp - old).exp();
    let clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high);
    let (free, bound) = (ratio * advantage, clipped * advantage);
    let mut gain = free.min(bound);
    let mut moves = free <= bound;
    if advantage < 0.0 && config.dual_clip > 0.0 && gain < config.dual_clip * advantage {
        (gain, moves) = (config.dual_clip * advantage, false);
    }
    let d = reference.map_or(0.0, |reference| reference - logp);
    let kl = d.exp() - d - 1.0;
    let slope = if moves { -free } else { 0.0 } + config.kl * (1.0 - d.exp());
    TokenLoss { loss: config.kl * kl - gain, slope, kl, is_clipped: !moves }
}

/// What [`token_loss`] gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// In the loss.
    pub loss: f64,
    /// d loss / d log π.
    pub slope: f64,
    /// The estimate of the divergence, whatever β.
    pub kl: f64,
    /// The policy term has no slope.
    pub is_clipped: bool,
}

/// The objective.
pub struct PolicyGradient {
    model: Trainable,
    reference: Option<Weighted>,
    config: ClipConfig,
    tape: Tape,
    reference_tape: Tape,
    dnormed: Vec<f32>,
}

impl PolicyGradient {
    /// For a model of this shape; β above 0 needs the reference.
    ///
    /// # Panics
    /// If it lacks it.
    #[must_use]
    pub fn new(model: Trainable, reference: Option<Weighted>, config: ClipConfig) -> Self {
        assert!(config.kl == 0.0 || reference.is_some(), "a divergence from nothing");
        let (tape, reference_tape) = (Tape::default(), Tape::default());
        Self { model, reference, config, tape, reference_tape, dnormed: Vec::new() }
    }
}

impl Objective for PolicyGradient {
    fn micro_batch(
        &mut self,
        cpu: &Cpu,
        parameters: &[f32],
        batch: &PackedBatch,
        scale: f32,
        gradient: &mut [f32],
    ) -> LossSums {
        let signals = batch.signals.as_ref().expect("a batch with advantages");
        let (model, tape) = (&self.model, &mut self.tape);
        let reference = self.reference.as_ref().map(|reference| {
            let Weighted { model, parameters } = reference;
            model.forward(cpu, parameters, batch, &batch.weights, &mut self.reference_tape);
            sampled_logprobs(cpu, model, parameters, batch, &self.reference_tape)
        });
        model.forward(cpu, parameters, batch, &batch.weights, tape);
        let now = sampled_logprobs(cpu, model, parameters, batch, tape);
        let mut weights = vec![0.0; now.len()];
        let (mut loss, mut count) = (0.0, 0.0);
        let (mut kl, mut clipped, mut gap, mut surprise) = (0.0, 0.0, 0.0, 0.0);
        for t in (0..now.len()).filter(|&t| batch.weights[t] != 0.0) {
            let logp = f64::from(now[t]);
            let sampled = f64::from(signals.sampled[t]);
            let of = reference.as_ref().map(|reference| f64::from(reference[t]));
            let token =
                token_loss(&self.config, f64::from(signals.advantages[t]), logp, sampled, of);
            // The head's gradient is that of Σ weight · (−log π).
            weights[t] = -token.slope as f32;
            loss += token.loss;
            count += 1.0;
            kl += token.kl;
            clipped += f64::from(u8::from(token.is_clipped));
            gap += (logp - sampled).abs();
            surprise -= logp;
        }
        let side = (model, parameters, batch);
        learn(cpu, side, tape, (&weights, scale), &mut self.dnormed, gradient);
        let metrics = vec![
            ("kl", kl, if reference.is_some() { count } else { 0.0 }),
            ("clipped", clipped, count),
            ("logprob_gap", gap, count),
            ("surprise", surprise, count),
        ];
        LossSums { loss, weight: self.weight(batch), metrics }
    }

    /// Answers that are all as good teach nothing.
    fn may_rest(&self) -> bool {
        true
    }
}

/// Logits of a block of rows.
const LOGITS: usize = 1 << 21;

/// As [`logprobs`], after a forward pass over a batch with signals: the bits that the engine gave
/// the tokens when these weights sampled them. NaN where a logit is not finite.
fn sampled_logprobs(
    cpu: &Cpu,
    model: &Trainable,
    parameters: &[f32],
    batch: &PackedBatch,
    tape: &Tape,
) -> Vec<f32> {
    let (h, vocab) = (model.config().hidden_size, model.config().vocab_size);
    let learned: Vec<usize> =
        (0..batch.tokens.len()).filter(|&t| batch.weights[t] != 0.0).collect();
    let mut found = vec![0.0; batch.tokens.len()];
    let (mut x, mut logits, mut of_rows) = (Vec::new(), Vec::new(), Vec::new());
    for rows in learned.chunks((LOGITS / vocab).max(1)) {
        x.clear();
        rows.iter().for_each(|t| x.extend_from_slice(&tape.normed()[t * h..][..h]));
        logits.resize(rows.len() * vocab, 0.0);
        model.logits(cpu, parameters, MatRef::new(&x, h), MatMut::new(&mut logits, vocab));
        of_rows.resize(rows.len(), 0.0);
        let to = MatMut::new(&mut of_rows, 1).tiles(1, 1);
        cpu.pool().for_parts(to, |i, mut of_row| {
            let row = &logits[i * vocab..][..vocab];
            of_row.row_mut(0)[0] = logprob(row, batch.labels[rows[i]]).unwrap_or(f32::NAN);
        });
        rows.iter().zip(&of_rows).for_each(|(&t, value)| found[t] = *value);
    }
    found
}

/// Log-probabilities of the labels where they are learned, after a forward pass.
pub(crate) fn logprobs(
    cpu: &Cpu,
    model: &Trainable,
    parameters: &[f32],
    batch: &PackedBatch,
    tape: &Tape,
) -> Vec<f32> {
    let mut found = vec![0.0; batch.tokens.len()];
    let x = MatRef::new(tape.normed(), model.config().hidden_size);
    let labels = Labels { ids: &batch.labels, weights: &batch.weights };
    linear_cross_entropy(cpu, x, model.head(parameters), labels, 1.0, &mut found, None);
    found
}

/// Adds the gradient of `scale` · Σ weight · (−log π) over the labels, after a forward pass.
pub(crate) fn learn(
    cpu: &Cpu,
    (model, parameters, batch): (&Trainable, &[f32], &PackedBatch),
    tape: &mut Tape,
    (weights, scale): (&[f32], f32),
    dnormed: &mut Vec<f32>,
    gradient: &mut [f32],
) {
    let h = model.config().hidden_size;
    dnormed.resize(tape.normed().len(), 0.0);
    let g = HeadGradients { x: MatMut::new(dnormed, h), w: model.head_gradient(gradient) };
    let labels = Labels { ids: &batch.labels, weights };
    let (x, w) = (MatRef::new(tape.normed(), h), model.head(parameters));
    let mut unused = vec![0.0; weights.len()];
    linear_cross_entropy(cpu, x, w, labels, scale, &mut unused, Some(g));
    model.backward(cpu, parameters, batch, tape, dnormed, gradient);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_the_derivative_on_both_sides_of_every_clip() {
        let config = ClipConfig { kl: 0.3, ..ClipConfig::default() };
        for advantage in [-1.5, 0.7] {
            for old in [-4.0, -1.25, -1.0, -0.9, -0.2] {
                let at = |logp: f64| token_loss(&config, advantage, logp, old, Some(-1.7));
                let h = 1e-6;
                let slope = (at(-1.0 + h).loss - at(-1.0 - h).loss) / (2.0 * h);
                assert!((at(-1.0).slope - slope).abs() < 1e-5, "{advantage} {old}");
            }
        }
    }

    #[test]
    fn on_policy_nothing_is_clipped_and_the_divergence_from_itself_is_none() {
        let config = ClipConfig::default();
        let token = token_loss(&config, -2.0, -3.0, -3.0, Some(-3.0));
        assert_eq!((token.loss, token.slope, token.kl, token.is_clipped), (2.0, 2.0, 0.0, false));
        // A better answer that became much likelier, and a worse one much likelier still.
        assert!(token_loss(&config, 1.0, -1.0, -2.0, None).is_clipped);
        let dual = token_loss(&config, -1.0, -0.1, -4.0, None);
        assert_eq!((dual.loss, dual.slope), (3.0, 0.0));
    }
}
