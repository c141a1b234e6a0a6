//! One model over whole runs: prompt read, output generated, for a batch of sequences.
//!
//! A run is not made but integrated: slices of the prompt and steps of the output are timed at a
//! few depths and the time between is interpolated. At a depth, caches are filled without
//! reading ([`pretend_read`](hybra_model::SequenceState::pretend_read)), each sequence in memory
//! of its own, so a step touches the bytes that it would touch in a real run.

use super::fit::{Fit, Room};
use super::integrate::{Sample, integral, positions};
use super::points::RunPoint;
use crate::bench::measure::{Bencher, SAMPLE_SECONDS};
use crate::bench::plan::Spread;
use anyhow::Result;
use hybra_model::memory::{MemoryModel, MemoryPlan};
use serde::Serialize;
use std::time::Instant;

/// How a run is sampled.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sampling {
    /// Depths in the prompt, and as many in the output.
    pub(super) depths: usize,
    /// Tokens of a timed slice of the prompt.
    pub(super) slice: usize,
    /// Timed steps at a depth of the output.
    pub(super) steps: usize,
}

/// One model at one point.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Measured(Box<Run>),
    Skipped { skipped: String },
}

impl Outcome {
    /// The run, where it was measured.
    pub(super) fn run(&self) -> Option<&Run> {
        match self {
            Self::Measured(run) => Some(run),
            Self::Skipped { .. } => None,
        }
    }
}

/// A run as integrated. Tokens are those of all sequences together.
#[derive(Serialize)]
pub(super) struct Run {
    #[serde(flatten)]
    pub(super) fit: Fit,
    pub(super) memory: MemoryPlan,
    /// Generated tokens over the time of prompts and output.
    pub(super) tokens_per_second: f64,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
    pub(super) prefill_seconds: f64,
    pub(super) decode_seconds: f64,
    /// Seconds per token of one prompt.
    pub(super) prefill_samples: Vec<Sample>,
    /// Seconds per step of the whole batch.
    pub(super) decode_samples: Vec<Sample>,
}

/// A model under comparison.
pub(super) struct Runner<'m> {
    pub(super) bencher: Bencher<'m>,
    pub(super) memory: MemoryModel<'m>,
    pub(super) sampling: Sampling,
    pub(super) room: Room,
    /// Bytes per second that this machine reads, for estimates.
    pub(super) memory_rate: f64,
    /// Seconds per token of a prompt and per step of one sequence, near the start.
    pub(super) pace: (f64, f64),
}

impl Runner<'_> {
    /// Measures `point` unless its estimate exceeds the `left` seconds.
    pub(super) fn run(&mut self, point: RunPoint, left: Option<f64>) -> Result<Outcome> {
        let fit = match self.room.fit(&self.memory, point.context() as u64) {
            Ok(fit) => fit,
            Err(skipped) => return Ok(Outcome::Skipped { skipped }),
        };
        let estimate = self.estimate(point, fit.batch as usize);
        if let Some(left) = left.filter(|&left| estimate > left) {
            let more = (estimate - left.max(0.0)).ceil();
            let skipped =
                format!("takes about {estimate:.0} s, {more:.0} more than --seconds left");
            return Ok(Outcome::Skipped { skipped });
        }
        let prefill_samples = self.prefill(point)?;
        let decode_samples = self.decode(point, fit.batch as usize)?;
        let (prompt, context) = (point.prompt as f64, point.context() as f64);
        let prefill_seconds = fit.batch as f64 * integral(&prefill_samples, 0.0, prompt);
        let decode_seconds = integral(&decode_samples, prompt, context);
        let tokens = fit.batch as f64 * point.output as f64;
        Ok(Outcome::Measured(Box::new(Run {
            fit,
            memory: self.memory.plan(point.context() as u64, fit.batch),
            tokens_per_second: tokens / (prefill_seconds + decode_seconds),
            prefill_tokens_per_second: fit.batch as f64 * prompt / prefill_seconds,
            decode_tokens_per_second: tokens / decode_seconds,
            prefill_seconds,
            decode_seconds,
            prefill_samples,
            decode_samples,
        })))
    }

    /// Seconds that sampling takes, about: a step reads what a step of one sequence reads, and
    /// computes and reads its batch on top.
    fn estimate(&self, point: RunPoint, batch: usize) -> f64 {
        /// Bytes of caches filled in a second.
        const FILL_RATE: f64 = 1e9;
        let Sampling { depths, slice, steps } = self.sampling;
        let plan = self.memory.plan(point.context() as u64, batch as u64);
        let batch_bytes = (plan.kv + 2 * plan.state) as f64;
        let (token, step) = self.pace;
        let prefill = 1.5 * token * slice.min(point.prompt) as f64;
        let decode = step + batch as f64 * token + batch_bytes / self.memory_rate;
        depths as f64 * (prefill + (steps + 1) as f64 * decode) + plan.kv as f64 / FILL_RATE
    }

    /// Seconds per token of one prompt, at depths from its start to its end.
    fn prefill(&mut self, point: RunPoint) -> Result<Vec<Sample>> {
        let slice = self.sampling.slice.min(point.prompt);
        let mut state = self.bencher.pretended_state(0);
        let mut samples = Vec::new();
        for start in positions(0, point.prompt - slice, self.sampling.depths) {
            state.pretend_read(self.bencher.cpu(), start - state.len());
            // Not timed: on a GPU the first read after pretended ones takes pages for all of them.
            let mut ready = state.clone();
            self.bencher.read_slice(&mut ready, 1)?;
            let (mut times, started) = (Vec::new(), Instant::now());
            while times.is_empty() || started.elapsed().as_secs_f64() < SAMPLE_SECONDS {
                times.push(self.bencher.read_slice(&mut ready.clone(), slice)? / slice as f64);
            }
            samples.push(sample(start as f64 + slice as f64 / 2.0, &times));
        }
        Ok(samples)
    }

    /// Seconds per step of `batch` sequences, at depths from the start of the output to its end.
    fn decode(&mut self, point: RunPoint, batch: usize) -> Result<Vec<Sample>> {
        let steps = self.sampling.steps;
        let mut states: Vec<_> =
            (0..batch).map(|_| self.bencher.pretended_state(point.prompt)).collect();
        let last = point.context().saturating_sub(steps + 1);
        let mut samples = Vec::new();
        for depth in positions(point.prompt, last.max(point.prompt), self.sampling.depths) {
            let Some(missing) = depth.checked_sub(states[0].len()) else {
                // The steps at the depth before have gone past it.
                continue;
            };
            let cpu = self.bencher.cpu();
            states.iter_mut().for_each(|state| state.pretend_read(cpu, missing));
            // Not timed: the first step at a depth finds the caches cold.
            self.bencher.step(&mut states, depth)?;
            let first = states[0].len();
            let mut times = Vec::with_capacity(steps);
            for step in 0..steps {
                let started = Instant::now();
                self.bencher.step(&mut states, first + step)?;
                times.push(started.elapsed().as_secs_f64());
            }
            samples.push(sample(first as f64 + steps as f64 / 2.0, &times));
        }
        Ok(samples)
    }
}

fn sample(depth: f64, times: &[f64]) -> Sample {
    let seconds = Spread::of(times).expect("something was timed").median;
    Sample { depth, seconds }
}
