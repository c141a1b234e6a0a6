//! Log-probabilities of a prompt's own tokens.
//!
//! Every row of logits of the prompt is needed, so such a request uses no cached state and reads
//! one scan chunk per step, and one such request reads at a time: a step holds at most
//! [`SCAN_CHUNK`](hybra_model::SCAN_CHUNK) rows for it. Chunks and company change no bit; a token
//! has the log-probability that it has when it is generated up to the rounding between reading in
//! chunks and reading token by token.

use crate::error::RequestError;
use crate::request::{MAX_TOP_LOGPROBS, SamplingParams};
use crate::row::{Row, RowError};
use crate::sampler::{Sampler, TokenLogprob};
use crate::sequence::{Sequence, SequenceId};
use hybra_model::LogitRow;

/// Log-probabilities of a piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// Whose prompt.
    pub sequence: SequenceId,
    /// Place of the first of [`Self::tokens`]; the prompt's first token follows nothing and has
    /// none.
    pub start: usize,
    /// The prompt's tokens in order, each with the most probable tokens at its place.
    pub tokens: Vec<(TokenLogprob, Vec<TokenLogprob>)>,
}

/// Checks the field; with it, `max_tokens` may be 0: the prompt is scored and nothing generated.
pub(crate) fn validate(
    wanted: Option<u32>,
    sampling: &SamplingParams,
    vocab_size: usize,
) -> Result<(), RequestError> {
    match wanted {
        Some(top) if top > MAX_TOP_LOGPROBS => {
            let (field, expected) = ("prompt_logprobs", "0 to 20");
            Err(RequestError::OutOfRange { field, expected, found: top.to_string() })
        }
        Some(_) if sampling.max_tokens == Some(0) => {
            SamplingParams { max_tokens: None, ..sampling.clone() }.validate(vocab_size)
        }
        _ => sampling.validate(vocab_size),
    }
}

/// Scores what the `rows` of a piece of the prompt say about the tokens after each of them; the
/// state has just read the piece.
pub(crate) fn score<'r>(
    sequence: &Sequence,
    top_n: u32,
    rows: impl ExactSizeIterator<Item = LogitRow<'r>>,
    sampler: &mut Sampler,
) -> Result<PromptLogprobs, RowError> {
    let start = sequence.state().len() - rows.len() + 1;
    let prompt = &sequence.tokens[..sequence.prompt_len];
    let mut tokens = Vec::with_capacity(rows.len());
    for (row, &token) in rows.zip(prompt.get(start..).unwrap_or_default()) {
        let mut top = Vec::new();
        let mut row = Row::new(row, sampler);
        let logprob = row.logprobs(sampler, token, top_n as usize, &mut top);
        row.end(sampler);
        let logprob = logprob?;
        tokens.push((TokenLogprob { token, logprob }, top));
    }
    Ok(PromptLogprobs { sequence: sequence.id, start, tokens })
}
