//! Choosing a token from a row of logits.
//!
//! Order (that of vLLM): the constraint's mask and processors ([`process_logits`]), temperature,
//! min-p, top-k, top-p, draw.
//! With weights wᵢ = exp((lᵢ − l_max)/T) (f32; sums in f64):
//! - **min-p** keeps wᵢ ≥ min_p (arXiv 2407.01082);
//! - **top-k** keeps exactly the k largest;
//! - **top-p** keeps, in descending order, every token before which less than top_p of the mass that
//!   top-k left lies (arXiv 1904.09751); at least one;
//! - **draw**: inverse transform with one uniform number per token.
//!
//! Equal weights rank by token id, lowest first, everywhere: greedy, top-k, top-p. The random number
//! is word 0 of the ChaCha8 stream with key = seed and stream id = position, so a choice depends on
//! (logits, parameters, history, seed, position) and on nothing else.
//!
//! **Log-probabilities** are of the raw model distribution: log-softmax of the untouched logits,
//! accumulated in f64, before every processor and temperature (vLLM's default, `raw_logprobs`).
//!
//! Of a row on a GPU the largest logits are enough in most cases ([`Sampler::sample_top`]).
//!
//! Nothing is allocated per step once the buffers have grown; nothing is sorted beyond what is kept.

mod select;
mod top;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::SamplingError;
use crate::logits_processor::{TokenHistory, process_logits};
use crate::request::SamplingParams;
use select::{Candidate, largest, mass_prefix, nucleus};

/// Where a choice's randomness comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Draw {
    /// Key of the sequence.
    pub seed: u64,
    /// Index of the token in the generated text, counting inserted tokens.
    pub position: u64,
}

impl Draw {
    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(self) -> f64 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_stream(self.position);
        (stream.next_u64() >> 11) as f64 * (-53f64).exp2()
    }
}

/// Everything a choice depends on beside the logits.
#[derive(Clone, Copy, Debug)]
pub struct SampleInput<'a> {
    /// Validated parameters.
    pub params: &'a SamplingParams,
    /// Prompt and sampled tokens; only read when there are penalties.
    pub history: &'a TokenHistory,
    /// What a constraint leaves; `None`: everything.
    pub allowed: Option<Allowed<'a>>,
    /// Sets of tokens that must not be chosen now.
    pub forbidden: &'a [&'a [u32]],
    /// Source of randomness.
    pub draw: Draw,
}

/// A set of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// One bit per id, 32 to a word; ids past the end are not in the set.
    pub mask: &'a [u32],
    /// Ids that are in the set whatever their bit is.
    pub beside: &'a [u32],
}

impl Allowed<'_> {
    /// Whether the bit of `id` is set.
    pub fn has(&self, id: u32) -> bool {
        self.mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Puts what is not in the set at −infinity; `logits` are the values of `row` before.
    fn apply(&self, row: &mut [f32], logits: &[f32]) {
        for (at, chunk) in row.chunks_mut(32).enumerate() {
            match self.mask.get(at).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    let out = chunk.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    out.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
        for &id in self.beside {
            row[id as usize] = logits[id as usize];
        }
    }
}

/// A token and its log-probability (natural logarithm).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability under the raw model distribution.
    pub logprob: f32,
}

/// Chooses tokens; holds the scratch buffers of one thread.
#[derive(Debug, Default)]
pub struct Sampler {
    logits: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Rows that were on a GPU, for whoever fetches them; and how many were.
    pub(crate) fetched: Vec<f32>,
    pub(crate) num_fetched: u64,
}

impl Sampler {
    /// Empty buffers; they grow with the first row.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next token for the raw `logits` \[V\].
    ///
    /// Errors: a NaN or +infinite logit, or no token left. Either ends this sequence only.
    pub fn sample(&mut self, logits: &[f32], input: SampleInput<'_>) -> Result<u32, SamplingError> {
        check_finite(logits)?;
        let params = input.params;
        let untouched = params.logit_bias.is_empty()
            && !params.has_penalties()
            && input.allowed.is_none()
            && input.forbidden.iter().all(|set| set.is_empty());
        let mut buffer = std::mem::take(&mut self.logits);
        let row = if untouched {
            logits
        } else {
            buffer.clear();
            buffer.extend_from_slice(logits);
            if let Some(allowed) = input.allowed {
                allowed.apply(&mut buffer, logits);
            }
            process_logits(&mut buffer, params, input.history, input.forbidden);
            &buffer
        };
        // A tiny repetition penalty can carry a large logit to infinity.
        let finite = if untouched { Ok(()) } else { check_finite(row) };
        let chosen = finite.and_then(|()| self.choose(row, params, input.draw));
        self.logits = buffer;
        chosen
    }

    fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        draw: Draw,
    ) -> Result<u32, SamplingError> {
        let max = maximum(logits);
        if max == f32::NEG_INFINITY {
            return Err(SamplingError::NoCandidate { vocab_size: logits.len() });
        }
        if params.is_greedy() {
            let best = logits.iter().position(|&l| l == max);
            return Ok(best.expect("the maximum is in the row") as u32);
        }
        let scale = 1.0 / params.temperature;
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&l| ((l - max) * scale).exp()));
        if params.min_p > 0.0 {
            self.weights.iter_mut().filter(|w| **w < params.min_p).for_each(|w| *w = 0.0);
        }
        let uniform = draw.uniform();
        let kept = match usize::try_from(params.top_k).unwrap_or(0) {
            0 if params.top_p >= 1.0 => {
                let weights = self.weights.iter().enumerate();
                return Ok(pick(weights.map(|(i, &weight)| (weight, i as u32)), uniform));
            }
            0 => nucleus(&self.weights, params.top_p, &mut self.candidates),
            k => {
                largest(&self.weights, k, &mut self.candidates);
                self.candidates.sort_unstable_by(Candidate::rank);
                mass_prefix(&self.candidates, params.top_p)
            }
        };
        Ok(pick(self.candidates[..kept].iter().map(|c| (c.value, c.token)), uniform))
    }

    /// Log-probability of `token` under the raw `logits` \[V\]; `top` receives the `top_n` most
    /// probable tokens in descending order (fewer where fewer have a logit above −infinity).
    pub fn logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        top_n: usize,
        top: &mut Vec<TokenLogprob>,
    ) -> Result<f32, SamplingError> {
        let log_sum = log_sum(logits)?;
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        largest(logits, top_n, &mut self.candidates);
        self.candidates.sort_unstable_by(Candidate::rank);
        top.clear();
        top.extend(
            self.candidates
                .iter()
                .map(|c| TokenLogprob { token: c.token, logprob: logprob(c.value) }),
        );
        Ok(logprob(logits[token as usize]))
    }
}

/// Log-probability of `token` under the raw `logits` \[V\]: the bits of [`Sampler::logprobs`].
///
/// # Panics
/// If the token is not below V.
pub fn logprob(logits: &[f32], token: u32) -> Result<f32, SamplingError> {
    Ok((f64::from(logits[token as usize]) - log_sum(logits)?) as f32)
}

/// Logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> Result<f64, SamplingError> {
    check_finite(logits)?;
    let max = maximum(logits);
    if max == f32::NEG_INFINITY {
        return Err(SamplingError::NoCandidate { vocab_size: logits.len() });
    }
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    Ok(f64::from(max) + sum.ln())
}

fn check_finite(logits: &[f32]) -> Result<(), SamplingError> {
    // No early exit: the loop over sound rows stays free of branches.
    let sound = |value: f32| value < f32::INFINITY;
    if logits.iter().fold(true, |all, &value| all & sound(value)) {
        return Ok(());
    }
    let at = logits.iter().position(|&value| !sound(value)).expect("a value failed the check");
    Err(SamplingError::NotFinite { token: at as u32, value: logits[at] })
}

/// The largest value of a row without NaN; −infinity for an empty one.
fn maximum(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    // Independent lanes, so that the loop is not one chain of comparisons.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Inverse transform: the first token at which the running mass exceeds `uniform` · total.
fn pick(weights: impl Iterator<Item = (f32, u32)> + Clone, uniform: f64) -> u32 {
    let total: f64 = weights.clone().map(|(weight, _)| f64::from(weight)).sum();
    let target = uniform * total;
    let (mut mass, mut chosen) = (0.0, 0);
    for (weight, token) in weights.filter(|&(weight, _)| weight > 0.0) {
        mass += f64::from(weight);
        chosen = token;
        if mass > target {
            break;
        }
    }
    chosen
}
