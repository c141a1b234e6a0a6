//! AdamW over the flat parameters, each rank with the moments of its own shard (ZeRO-1).
//!
//! Shards are cut at multiples of the block of [`sum_of_squares`], and a value's update depends on
//! that value alone, so any number of ranks gives the same bits. Weight decay applies where
//! [`Slot::decays`] says so.
//!
//! [`sum_of_squares`]: hybra_kernels::ops::adamw::sum_of_squares
//! [`Slot::decays`]: hybra_model::parameters::Slot::decays

use hybra_kernels::Cpu;
use hybra_kernels::ops::adamw::{AdamWStep, BLOCK, adamw};
use hybra_model::parameters::Layout;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `[optimizer]` of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f32,
    /// β₁ and β₂.
    pub betas: (f32, f32),
    /// ε.
    pub eps: f32,
    /// λ, of matrices except the embedding.
    pub weight_decay: f32,
    /// Largest norm of the gradient; 0 for no clipping.
    pub clip: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

impl OptimizerConfig {
    /// What is wrong with the settings: key, what is expected, and what was found.
    pub(crate) fn defect(&self) -> Option<(&'static str, String, String)> {
        let Self { lr, betas, eps, weight_decay, clip } = *self;
        let beta = |beta: f32| (0.0..1.0).contains(&beta);
        let at_least_0 = |value: f32| value >= 0.0 && value.is_finite();
        let (key, expected, found) = if !(lr > 0.0 && lr.is_finite()) {
            ("lr", "a number above 0", lr.to_string())
        } else if !(beta(betas.0) && beta(betas.1)) {
            ("betas", "two numbers from 0 to below 1", format!("{betas:?}"))
        } else if !(eps > 0.0 && eps.is_finite()) {
            ("eps", "a number above 0", eps.to_string())
        } else if !at_least_0(weight_decay) {
            ("weight_decay", "a number from 0", weight_decay.to_string())
        } else if !at_least_0(clip) {
            ("clip", "a number from 0 (0: none)", clip.to_string())
        } else {
            return None;
        };
        Some((key, expected.to_owned(), found))
    }

    /// The factor that brings a gradient of this norm to at most `clip`, as PyTorch's
    /// `clip_grad_norm_`.
    #[must_use]
    pub fn clip_factor(&self, norm: f64) -> f32 {
        if self.clip == 0.0 { 1.0 } else { (f64::from(self.clip) / (norm + 1e-6)).min(1.0) as f32 }
    }
}

/// The shards of `size` ranks over `len` values: whole blocks, as even as those allow.
#[must_use]
pub fn shards(len: usize, size: usize) -> Vec<Range<usize>> {
    let blocks = len.div_ceil(BLOCK);
    let start = |rank: usize| len.min(blocks * rank / size * BLOCK);
    (0..size).map(|rank| start(rank)..start(rank + 1)).collect()
}

/// The optimizer of one shard.
pub struct AdamW {
    config: OptimizerConfig,
    shard: Range<usize>,
    /// Runs of values that decay or do not, from the shard's start.
    runs: Vec<(Range<usize>, bool)>,
    /// m.
    exp_avg: Vec<f32>,
    /// v.
    exp_avg_sq: Vec<f32>,
}

impl AdamW {
    /// An optimizer that has seen no gradient.
    #[must_use]
    pub fn new(layout: &Layout, config: &OptimizerConfig, shard: Range<usize>) -> Self {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        for slot in layout.slots() {
            let from = slot.range.start.max(shard.start);
            let to = slot.range.end.min(shard.end);
            if from >= to {
                continue;
            }
            let (range, decays) = (from - shard.start..to - shard.start, slot.decays());
            match runs.last_mut() {
                Some((last, same)) if *same == decays => last.end = range.end,
                _ => runs.push((range, decays)),
            }
        }
        let zeros = vec![0.0; shard.len()];
        let (exp_avg, exp_avg_sq) = (zeros.clone(), zeros);
        Self { config: config.clone(), shard, runs, exp_avg, exp_avg_sq }
    }

    /// The shard's range in the flat vector.
    #[must_use]
    pub fn shard(&self) -> Range<usize> {
        self.shard.clone()
    }

    /// m and v of the shard.
    #[must_use]
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.exp_avg, &self.exp_avg_sq)
    }

    /// Takes the shard's part of m and v of all parameters.
    ///
    /// # Panics
    /// If they are shorter than the layout.
    pub fn restore(&mut self, exp_avg: &[f32], exp_avg_sq: &[f32]) {
        self.exp_avg.copy_from_slice(&exp_avg[self.shard.clone()]);
        self.exp_avg_sq.copy_from_slice(&exp_avg_sq[self.shard.clone()]);
    }

    /// Step number `step` (from 1) of the shard's parameters, with the shard's gradient.
    ///
    /// # Panics
    /// If a length is not the shard's.
    pub fn step(
        &mut self,
        cpu: &Cpu,
        parameters: &mut [f32],
        gradient: &[f32],
        step: u64,
        lr: f32,
        gradient_scale: f32,
    ) {
        assert_eq!([parameters.len(), gradient.len()], [self.shard.len(); 2], "a shard");
        let OptimizerConfig { betas, eps, weight_decay, .. } = self.config;
        for (range, decays) in &self.runs {
            let weight_decay = if *decays { weight_decay } else { 0.0 };
            let hyper = AdamWStep { lr, betas, eps, weight_decay, step, gradient_scale };
            let of = || range.clone();
            let (m, v) = (&mut self.exp_avg[of()], &mut self.exp_avg_sq[of()]);
            adamw(cpu, &hyper, &mut parameters[of()], &gradient[of()], m, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_kernels::Isa;
    use hybra_model::presets::preset;

    #[test]
    fn shards_are_whole_blocks_and_change_no_bit() {
        let layout = Layout::new(&preset("micro").unwrap());
        let cpu = Cpu::new(Isa::best(), 2);
        let config = OptimizerConfig::default();
        let gradient: Vec<f32> =
            (0..layout.len()).map(|i| ((i % 89) as f32 - 44.0) / 9.0).collect();
        let run = |size: usize| {
            let mut parameters: Vec<f32> = (0..layout.len()).map(|i| (i % 13) as f32).collect();
            for shard in shards(layout.len(), size) {
                assert!(shard.start % BLOCK == 0 && !shard.is_empty());
                let mut adamw = AdamW::new(&layout, &config, shard.clone());
                for step in 1..4 {
                    let (p, g) = (&mut parameters[shard.clone()], &gradient[shard.clone()]);
                    adamw.step(&cpu, p, g, step, 0.01, 0.5);
                }
            }
            parameters
        };
        let one = run(1);
        assert_eq!(run(2), one);
        assert_eq!(run(7), one);
    }

    #[test]
    fn only_matrices_decay_and_not_the_embedding() {
        let layout = Layout::new(&preset("micro").unwrap());
        let config = OptimizerConfig { weight_decay: 0.5, ..OptimizerConfig::default() };
        let mut adamw = AdamW::new(&layout, &config, 0..layout.len());
        let mut parameters = vec![1.0; layout.len()];
        let zeros = vec![0.0; layout.len()];
        adamw.step(&Cpu::new(Isa::best(), 1), &mut parameters, &zeros, 1, 0.1, 1.0);
        for slot in layout.slots() {
            let name = &slot.spec.name;
            let is_plain = ["norm", "A_log", ".D", "dt_bias", "conv1d", "embeddings"];
            let decays = !is_plain.iter().any(|part| name.contains(part));
            let want = if decays { 0.95 } else { 1.0 };
            assert!(parameters[slot.range.clone()].iter().all(|v| *v == want), "{name}");
        }
    }

    #[test]
    fn clipping_keeps_small_gradients() {
        let config = OptimizerConfig { clip: 2.0, ..OptimizerConfig::default() };
        assert_eq!(config.clip_factor(1.9), 1.0);
        assert!((config.clip_factor(8.0) - 0.25).abs() < 1e-6);
        assert_eq!(OptimizerConfig { clip: 0.0, ..config }.clip_factor(1e9), 1.0);
    }
}
