//! What changes a row of logits before a token is chosen, for greedy decoding as for sampling.
//!
//! Order (that of vLLM): masks, `logit_bias`, then penalties: repetition (prompt and output),
//! frequency (output), presence (output). For a logit l of a token seen before:
//! `l ← l > 0 ? l / repetition : l · repetition` (Keskar et al., arXiv 1909.05858, as Hugging Face
//! and vLLM compute it), then `l ← l − frequency · count`, then `l ← l − presence` (OpenAI), the last
//! two only where count > 0. A masked token is at −infinity and stays there.

use std::collections::HashMap;

use crate::request::SamplingParams;

/// The tokens of a sequence, as penalties see them. Tokens that the engine inserted are not
/// observed: they were not chosen.
#[derive(Clone, Debug, Default)]
pub struct TokenHistory {
    /// For each token of prompt or output, how often it was sampled.
    counts: HashMap<u32, u32>,
}

impl TokenHistory {
    /// The history before the first generated token.
    pub fn new(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|&token| (token, 0)).collect() }
    }

    /// Adds a sampled token.
    pub fn observe(&mut self, token: u32) {
        *self.counts.entry(token).or_insert(0) += 1;
    }
}

/// Changes `logits` \[V\] in place. Ids out of range are the caller's bug and panic (requests are
/// validated). O(changed entries).
pub fn process_logits(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &TokenHistory,
    forbidden: &[&[u32]],
) {
    for &token in forbidden.iter().copied().flatten() {
        logits[token as usize] = f32::NEG_INFINITY;
    }
    for &(token, bias) in &params.logit_bias {
        logits[token as usize] += bias;
    }
    if !params.has_penalties() {
        return;
    }
    for (&token, &count) in &history.counts {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0.0 {
            *logit / params.repetition_penalty
        } else {
            *logit * params.repetition_penalty
        };
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_by_hand() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            logit_bias: vec![(0, 1.0), (4, -1.0)],
            ..SamplingParams::default()
        };
        let mut history = TokenHistory::new(&[0, 1]);
        for token in [1, 2, 2, 2, 5] {
            history.observe(token);
        }
        let mut logits = [3.0, -1.0, 4.0, 8.0, 2.0, 9.0];
        process_logits(&mut logits, &params, &history, &[&[5], &[]]);
        // 0: biased, in the prompt only; 1: once in the output; 2: three times; 3: unseen;
        // 4: biased; 5: forbidden.
        let expected = [
            (3.0 + 1.0) / 2.0,
            -2.0 - 0.5 - 0.25,
            4.0 / 2.0 - 1.5 - 0.25,
            8.0,
            1.0,
            f32::NEG_INFINITY,
        ];
        assert_eq!(logits, expected);
    }

    #[test]
    fn neutral_parameters_change_nothing() {
        let mut history = TokenHistory::new(&[0, 1, 2]);
        history.observe(1);
        let mut logits = [1.5, -2.5, 0.0];
        process_logits(&mut logits, &SamplingParams::default(), &history, &[]);
        assert_eq!(logits, [1.5, -2.5, 0.0]);
    }
}
