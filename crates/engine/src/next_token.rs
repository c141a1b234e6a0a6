//! What rows of logits become: forced tokens, or sampled ones, and the end of a sequence.
//!
//! Invariant: a row is judged with everything that the tokens before it changed (history, budget,
//! position, constraint), whether it comes alone or as part of a draft; so drafts change no token,
//! no log-probability and no count.

use crate::constraint::{Arming, Verdict};
use crate::engine::TokenTable;
use crate::error::SamplingError;
use crate::prompt_logprobs::score;
use crate::row::{Row, RowError};
use crate::sampler::{Draw, SampleInput, Sampler, TokenLogprob};
use crate::sequence::{EndToken, Event, FinishReason, Sequence, TokenEvent};
use crate::thinking_budget::{EosAction, FinishCause};
use hybra_model::LogitRow;

/// Decides the tokens after a segment from its `rows` of logits: the first row follows a known
/// token, each further one a guess and counts only if that guess came true. True if the sequence
/// is over.
pub(crate) fn next_tokens<'r>(
    sequence: &mut Sequence,
    rows: impl Iterator<Item = LogitRow<'r>>,
    sampler: &mut Sampler,
    table: &dyn TokenTable,
    events: &mut Vec<Event>,
) -> bool {
    for (i, row) in rows.enumerate() {
        let mut row = Row::new(row, sampler);
        let is_over = next_token(sequence, &mut row, sampler, table, events);
        row.end(sampler);
        if is_over {
            return true;
        }
        if sequence.accepted() == i {
            break;
        }
    }
    false
}

/// Scores a piece of a prompt from its `rows` of logits, one per token, and decides the first token
/// after the whole prompt. True if the sequence is over.
pub(crate) fn score_prompt<'r>(
    sequence: &mut Sequence,
    rows: impl ExactSizeIterator<Item = LogitRow<'r>> + Clone,
    sampler: &mut Sampler,
    table: &dyn TokenTable,
    events: &mut Vec<Event>,
) -> bool {
    match score(sequence, sequence.scores().unwrap_or(0), rows.clone(), sampler) {
        Ok(scored) => events.push(Event::PromptLogprobs(scored)),
        Err(error) => {
            events.push(sequence.fail(error.to_string()));
            return true;
        }
    }
    if !sequence.pending().is_empty() {
        return false;
    }
    if sequence.max_len == sequence.prompt_len {
        return end(sequence, FinishCause::MaxTokens, FinishReason::Length, events);
    }
    let last = rows.len() - 1;
    next_tokens(sequence, rows.skip(last), sampler, table, events)
}

/// Decides the token after a row of logits; true if the sequence is over.
fn next_token(
    sequence: &mut Sequence,
    logits: &mut Row<'_>,
    sampler: &mut Sampler,
    table: &dyn TokenTable,
    events: &mut Vec<Event>,
) -> bool {
    let token = match choose(sequence, logits, sampler) {
        Ok(Some(token)) => token,
        Ok(None) => return end(sequence, FinishCause::Eos, FinishReason::Stop, events),
        Err(error) => {
            let runs = sequence.budget.finish(FinishCause::Cancel);
            let error = Some(error);
            let event = sequence.finish_event(FinishReason::Failed, error, runs);
            events.push(Event::Finish(event));
            return true;
        }
    };
    let stops = sequence.budget.stops_apply();
    let step = sequence.budget.push(token, table.bytes(token));
    let (logprob, top_logprobs) = logprobs(sequence, logits, token, sampler);
    if !step.forced && sequence.sampling.has_penalties() {
        sequence.history.observe(token);
    }
    sequence.push(token);
    let stopped = sequence.stop.as_mut().is_some_and(|stop| stop.push(table.bytes(token), &step));
    events.push(Event::Token(TokenEvent {
        sequence: sequence.id,
        token,
        logprob,
        top_logprobs,
        step,
    }));
    let stop_token = stops && !step.forced && sequence.sampling.stop_token_ids.contains(&token);
    let complete = sequence.constraint.as_mut().is_some_and(Arming::is_complete);
    if stopped || stop_token || complete {
        return end(sequence, FinishCause::Stop, FinishReason::Stop, events);
    }
    if sequence.tokens.len() >= sequence.max_len {
        return end(sequence, FinishCause::MaxTokens, FinishReason::Length, events);
    }
    false
}

/// The forced token, or a sampled one; `None` at the end of the sequence.
fn choose(
    sequence: &mut Sequence,
    logits: &mut Row<'_>,
    sampler: &mut Sampler,
) -> Result<Option<u32>, String> {
    if let Some(token) = sequence.budget.forced_next() {
        return Ok(Some(token));
    }
    if let Some(constraint) = &mut sequence.constraint
        && constraint.arm(&sequence.budget)?
    {
        return Ok(None);
    }
    let Some(token) = sample(sequence, logits, sampler)? else { return Ok(None) };
    if !sequence.sampling.ignore_eos && sequence.eos.contains(&token) {
        return match sequence.budget.on_eos() {
            EosAction::Finish => {
                let logprob = logprobs(sequence, logits, token, sampler).0;
                sequence.eos_sampled = Some(EndToken { token, logprob });
                Ok(None)
            }
            EosAction::CloseAndContinue => Ok(sequence.budget.forced_next()),
        };
    }
    if let Some(constraint) = &mut sequence.constraint {
        constraint.push(token, &sequence.budget)?;
    }
    Ok(Some(token))
}

/// A token of the model's distribution without what must not come now. `None`: the constraint
/// leaves nothing but the end, which `min_tokens` and `ignore_eos` can then not forbid.
fn sample(
    sequence: &mut Sequence,
    logits: &mut Row<'_>,
    sampler: &mut Sampler,
) -> Result<Option<u32>, String> {
    let position = sequence.output_len();
    let params = &sequence.sampling;
    let verdict = match &mut sequence.constraint {
        Some(constraint) => constraint.verdict(&sequence.budget)?,
        None => Verdict::default(),
    };
    let below_minimum = position < params.min_tokens as usize;
    let ordinary_eos = verdict.allowed.is_some() && params.ignore_eos;
    let no_eos = below_minimum || ordinary_eos || sequence.budget.forbids_eos();
    let eos: &[u32] = if no_eos { &sequence.eos } else { &[] };
    let stop: &[u32] = if below_minimum { &params.stop_token_ids } else { &[] };
    let [first, second] = verdict.forbidden;
    let input = SampleInput {
        params,
        history: &sequence.history,
        allowed: verdict.allowed,
        forbidden: &[sequence.budget.forbidden(), eos, stop, first, second],
        draw: Draw { seed: params.seed.unwrap_or(0), position: position as u64 },
    };
    match logits.sample(sampler, input) {
        Ok(token) => Ok(Some(token)),
        Err(RowError::Sampling(SamplingError::NoCandidate { .. })) if verdict.allows_any(eos) => {
            Ok(None)
        }
        Err(RowError::Sampling(SamplingError::NoCandidate { .. })) if verdict.allowed.is_some() => {
            Err(format!("constraint: a dead end: no token may follow token {position}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn logprobs(
    sequence: &Sequence,
    logits: &mut Row<'_>,
    token: u32,
    sampler: &mut Sampler,
) -> (Option<f32>, Vec<TokenLogprob>) {
    let Some(top) = sequence.sampling.logprobs else { return (None, Vec::new()) };
    let mut most = Vec::new();
    // A forced token needs no sound logits; a row that is not finite has no log-probabilities.
    (logits.logprobs(sampler, token, top as usize, &mut most).ok(), most)
}

fn end(
    sequence: &mut Sequence,
    cause: FinishCause,
    reason: FinishReason,
    events: &mut Vec<Event>,
) -> bool {
    let runs = sequence.budget.finish(cause);
    events.push(Event::Finish(sequence.finish_event(reason, None, runs)));
    true
}
