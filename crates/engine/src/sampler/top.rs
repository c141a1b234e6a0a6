//! Choosing from the largest logits of a row, where that provably gives the token of the whole row.
//!
//! What is known of the other tokens: none has a greater logit than the last candidate, and a GPU
//! gave the sum S of all weights, but for its rounding. So
//! - the best candidate that may be chosen is the best token of the row that may;
//! - candidates that weigh more than the last one are all tokens of such weight: top-k and min-p
//!   that cut among them cut as in the whole row;
//! - top-p cuts at a share of the mass: where it cuts behind the same candidate for the least and
//!   the greatest mass that S allows, it does so in the whole row.
//!
//! Penalties, biases, and draws that no cut confines to the candidates take the whole row.

use super::select::{Candidate, mass_prefix, prefix};
use super::{SampleInput, Sampler, TokenLogprob, pick};
use crate::request::SamplingParams;
use hybra_model::TopLogits;

/// Two computations of a power, or of a sum of them, differ by less, relatively.
const ROUNDING: f64 = 1e-5;

/// What is known of the weights of tokens that are not among the candidates.
struct Unseen {
    /// None is greater.
    most: f64,
    /// Bounds of the mass of all tokens that may be chosen, before min-p; unknown where what the sum
    /// was taken from must not be chosen.
    mass: Option<(f64, f64)>,
}

impl Sampler {
    /// The token that [`Self::sample`] would choose from the whole row, whose scale is one over the
    /// temperature; `None`: the candidates do not tell, or it would be an error.
    pub fn sample_top(&mut self, row: &TopLogits<'_>, input: SampleInput<'_>) -> Option<u32> {
        let params = input.params;
        let (known, sum) = (row.record().candidates(), row.record().scaled_sum());
        // The sum is NaN where a logit is, or the largest is infinite.
        if !params.logit_bias.is_empty() || params.has_penalties() || sum.is_nan() {
            return None;
        }
        let may_be = |token: u32| {
            let allowed = input.allowed.is_none_or(|a| a.has(token) || a.beside.contains(&token));
            allowed && !input.forbidden.iter().any(|set| set.contains(&token))
        };
        let (_, largest) = known.clone().next()?;
        let (best, max) = known.clone().find(|(token, _)| may_be(*token))?;
        if params.is_greedy() {
            return (max > f32::NEG_INFINITY).then_some(best);
        }
        let scale = 1.0 / params.temperature;
        let weight = |logit: f32| ((logit - max) * scale).exp();
        let last = known.clone().last().map_or(0.0, |(_, logit)| f64::from(weight(logit)));
        let most = match known.len() == row.vocab_size() {
            true => f64::NEG_INFINITY,
            false => last * (1.0 + ROUNDING),
        };
        let (mut seen, mut gone) = (0.0, 0.0);
        self.candidates.clear();
        for (token, logit) in known {
            let value = weight(logit);
            if !may_be(token) {
                gone += f64::from(value);
            } else if f64::from(value) > most {
                seen += f64::from(value);
                self.candidates.push(Candidate { value, token });
            }
        }
        let at_most = (sum - gone) + sum * ROUNDING;
        let at_least = match input.allowed {
            Some(_) => seen * (1.0 - ROUNDING),
            None => {
                let forbidden: usize = input.forbidden.iter().map(|set| set.len()).sum();
                (sum - gone) - sum * ROUNDING - forbidden as f64 * most.max(0.0)
            }
        };
        let mass = (largest == max).then_some((at_least, at_most));
        self.cut(params, &Unseen { most, mass })?;
        let candidates = self.candidates.iter().map(|c| (c.value, c.token));
        Some(pick(candidates, input.draw.uniform()))
    }

    /// Leaves of the candidates those of the whole row that are drawn from, in the order of the draw.
    fn cut(&mut self, params: &SamplingParams, unseen: &Unseen) -> Option<()> {
        let candidates = &mut self.candidates;
        let min_p = f64::from(params.min_p);
        // Whether nobody else is left after min-p.
        let is_complete = unseen.most == f64::NEG_INFINITY || min_p > unseen.most;
        candidates.retain(|c| c.value >= params.min_p);
        candidates.sort_unstable_by_key(|c| c.token);
        let mass: f64 = candidates.iter().map(|c| f64::from(c.value)).sum();
        let top_k = usize::try_from(params.top_k).unwrap_or(0);
        if top_k == 0 && params.top_p >= 1.0 {
            return is_complete.then_some(());
        }
        candidates.sort_unstable_by(Candidate::rank);
        let kept = match top_k {
            0 => {
                let (least, most) = match (is_complete, unseen.mass?) {
                    (true, _) => (mass, mass),
                    // Min-p takes an unknown part of the others' mass.
                    (false, (_, most)) if min_p > 0.0 => (mass * (1.0 - ROUNDING), most),
                    (false, bounds) => bounds,
                };
                let kept = |mass| prefix(candidates, &mut 0.0, f64::from(params.top_p) * mass);
                let is_inside =
                    is_complete || mass * (1.0 - ROUNDING) > f64::from(params.top_p) * most;
                (is_inside && kept(least) == kept(most)).then(|| kept(most))?
            }
            k => {
                if !is_complete && candidates.len() < k {
                    return None;
                }
                candidates.truncate(k);
                mass_prefix(candidates, params.top_p)
            }
        };
        candidates.truncate(kept);
        Some(())
    }

    /// As [`Self::logprobs`], to the rounding of a sum; `None`: the candidates do not tell.
    pub fn logprobs_top(
        &mut self,
        row: &TopLogits<'_>,
        token: u32,
        top_n: usize,
        top: &mut Vec<TokenLogprob>,
    ) -> Option<f32> {
        let (known, sum) = (row.record().candidates(), row.record().sum());
        if sum.is_nan() || top_n > known.len() && known.len() < row.vocab_size() {
            return None;
        }
        let (_, max) = known.clone().next()?;
        let (_, chosen) = known.clone().find(|(id, _)| *id == token)?;
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let known = known.filter(|(_, logit)| *logit > f32::NEG_INFINITY).take(top_n);
        top.clear();
        top.extend(known.map(|(token, logit)| TokenLogprob { token, logprob: logprob(logit) }));
        Some(logprob(chosen))
    }
}
