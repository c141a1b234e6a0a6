//! A row of logits at hand: whole, or its largest, as long as they tell what the row would tell.
//!
//! Invariant: a token is that which the whole row gives; where the largest do not prove it the row
//! is fetched, once.

use crate::error::SamplingError;
use crate::sampler::{SampleInput, Sampler, TokenLogprob};
use hybra_model::{ForwardError, LogitRow};

/// A row, and what was fetched of it.
pub(crate) struct Row<'a> {
    given: LogitRow<'a>,
    fetched: Vec<f32>,
    is_fetched: bool,
}

/// Why a row gives nothing.
pub(crate) enum RowError {
    /// It cannot be sampled from.
    Sampling(SamplingError),
    /// It cannot be fetched.
    Fetching(ForwardError),
}

impl std::fmt::Display for RowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sampling(error) => error.fmt(f),
            Self::Fetching(error) => error.fmt(f),
        }
    }
}

impl<'a> Row<'a> {
    /// A row that may be fetched into the sampler's memory.
    pub(crate) fn new(given: LogitRow<'a>, sampler: &mut Sampler) -> Self {
        Self { given, fetched: std::mem::take(&mut sampler.fetched), is_fetched: false }
    }

    /// Gives the sampler its memory back.
    pub(crate) fn end(self, sampler: &mut Sampler) {
        sampler.fetched = self.fetched;
        sampler.num_fetched += u64::from(self.is_fetched);
    }

    /// As [`Sampler::sample`].
    pub(crate) fn sample(
        &mut self,
        sampler: &mut Sampler,
        input: SampleInput<'_>,
    ) -> Result<u32, RowError> {
        if let LogitRow::Top(top) = &self.given
            && !self.is_fetched
            && let Some(token) = sampler.sample_top(top, input)
        {
            return Ok(token);
        }
        sampler.sample(self.whole()?, input).map_err(RowError::Sampling)
    }

    /// As [`Sampler::logprobs`].
    pub(crate) fn logprobs(
        &mut self,
        sampler: &mut Sampler,
        token: u32,
        top_n: usize,
        most: &mut Vec<TokenLogprob>,
    ) -> Result<f32, RowError> {
        if let LogitRow::Top(top) = &self.given
            && !self.is_fetched
            && let Some(logprob) = sampler.logprobs_top(top, token, top_n, most)
        {
            return Ok(logprob);
        }
        sampler.logprobs(self.whole()?, token, top_n, most).map_err(RowError::Sampling)
    }

    fn whole(&mut self) -> Result<&[f32], RowError> {
        match &self.given {
            LogitRow::Whole(logits) => Ok(logits),
            LogitRow::Top(top) => {
                if !self.is_fetched {
                    top.fetch(&mut self.fetched).map_err(RowError::Fetching)?;
                    self.is_fetched = true;
                }
                Ok(&self.fetched)
            }
        }
    }
}
