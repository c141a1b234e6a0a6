//! Runs the prompts of a reference through the model and compares on the way.
//!
//! The B sequences of a prompt tensor go through as one batch, in one pass or in pieces of equal
//! length. Hidden states are compared as the layers give them out and are never collected.

use super::difference::Difference;
use super::divergence::Divergence;
use super::reference::{Case, Tensor};
use crate::progress::Progress;
use anyhow::Result;
use hybra_kernels::Cpu;
use hybra_kernels::ops::attention::KvDtype;
use hybra_model::{
    Activations, Batch, BlockActivations, LogitsFor, NemotronH, NoObserver, Observer, SequenceState,
};
use std::collections::BTreeMap;

/// How prompts are run.
pub(crate) struct Runner<'a> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) model: &'a NemotronH,
    pub(crate) kv_dtype: KvDtype,
    /// Tokens of each sequence in a pass; all of them where absent.
    pub(crate) chunk: Option<usize>,
}

/// What one case's comparison gave.
pub(crate) struct Compared {
    pub(crate) logits: Option<Difference>,
    /// Of the same logits as distributions.
    pub(crate) divergence: Divergence,
    /// By layer.
    pub(crate) hidden: BTreeMap<usize, Difference>,
    /// One for each sequence; empty where the reference has no greedy tokens.
    pub(crate) greedy: Vec<Greedy>,
}

/// Greedy tokens of one sequence.
#[derive(Debug, PartialEq)]
pub(crate) struct Greedy {
    /// Tokens in the reference.
    pub(crate) total: usize,
    /// The first that differs; what follows it says nothing.
    pub(crate) first: Option<Mismatch>,
}

/// A greedy token that differs.
#[derive(Debug, PartialEq)]
pub(crate) struct Mismatch {
    /// Its number after the prompt, from 0.
    pub(crate) position: usize,
    pub(crate) expected: u32,
    pub(crate) found: u32,
    /// Hybra's logits of the two: how near a tie it was.
    pub(crate) expected_logit: f32,
    pub(crate) found_logit: f32,
}

impl Greedy {
    /// Tokens before the first difference.
    pub(crate) fn agreeing(&self) -> usize {
        self.first.as_ref().map_or(self.total, |first| first.position)
    }

    /// Takes in the next token's logits and returns Hybra's choice.
    fn next(&mut self, position: usize, expected: u32, logits: &[f32]) -> u32 {
        let found = argmax(logits);
        if found != expected && self.first.is_none() {
            let (expected_logit, found_logit) = (logits[expected as usize], logits[found as usize]);
            self.first = Some(Mismatch { position, expected, found, expected_logit, found_logit });
        }
        found
    }
}

/// The most probable token; of equal ones the first.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

impl Runner<'_> {
    /// Compares everything that `case` holds.
    pub(crate) fn run(&self, case: &Case<'_>) -> Result<Compared> {
        let sequences = case.input_ids.len();
        let mut states: Vec<_> =
            (0..sequences).map(|_| self.model.new_state(self.kv_dtype)).collect();
        let mut act = Activations::new();
        let (compared, last) = self.prompt(case, &mut states, &mut act)?;
        let greedy = match &case.greedy {
            Some(expected) => self.greedy(expected, last, &mut states, &mut act)?,
            None => Vec::new(),
        };
        Ok(Compared { greedy, ..compared })
    }

    /// Feeds the prompt; also returns the logits of each sequence's last token, `[B, V]`.
    fn prompt(
        &self,
        case: &Case<'_>,
        states: &mut [SequenceState],
        act: &mut Activations,
    ) -> Result<(Compared, Vec<f32>)> {
        let (len, vocab) = (case.prompt_len(), self.model.config().vocab_size);
        let chunk = self.chunk.unwrap_or(len).min(len);
        let layers = self.model.config().layers.len();
        let bar = Progress::pieces("comparing", (layers * len.div_ceil(chunk)) as u64);
        let mut watch = Watch::new(case, self.model.config().hidden_size, bar);
        let mut logits = case.logits.map(|_| Difference::default());
        let mut divergence = Divergence::default();
        let mut last = Vec::new();
        for start in (0..len).step_by(chunk) {
            let end = len.min(start + chunk);
            let batch = piece(case, start, end);
            (watch.start, watch.end) = (start, end);
            let mut refs: Vec<_> = states.iter_mut().collect();
            let found = self.model.forward(self.cpu, &batch, &mut refs, act, &mut watch)?;
            let rows = found.len() / vocab / case.input_ids.len();
            for (sequence, found) in found.chunks(rows.max(1) * vocab).enumerate() {
                if let (Some(difference), Some(expected)) = (&mut logits, case.logits) {
                    let at = (sequence, end - rows, len);
                    compare_rows(difference, &mut divergence, expected, at, found);
                }
                if end == len {
                    last.extend_from_slice(&found[found.len() - vocab..]);
                }
            }
        }
        let (hidden, greedy) = (watch.differences, Vec::new());
        let compared = Compared { logits, divergence, hidden, greedy };
        Ok((compared, last))
    }

    /// Continues every sequence with its own most probable tokens; `logits` are `[B, V]`.
    fn greedy(
        &self,
        expected: &[Vec<u32>],
        mut logits: Vec<f32>,
        states: &mut [SequenceState],
        act: &mut Activations,
    ) -> Result<Vec<Greedy>> {
        let vocab = self.model.config().vocab_size;
        let total = expected[0].len();
        let mut results: Vec<_> = expected.iter().map(|_| Greedy { total, first: None }).collect();
        for position in 0..total {
            let mut batch = Batch::default();
            for ((result, tokens), row) in
                results.iter_mut().zip(expected).zip(logits.chunks(vocab))
            {
                let next = result.next(position, tokens[position], row);
                batch.push(&[next], LogitsFor::Last);
            }
            if position + 1 < total {
                let mut refs: Vec<_> = states.iter_mut().collect();
                let found =
                    self.model.forward(self.cpu, &batch, &mut refs, act, &mut NoObserver)?;
                logits.copy_from_slice(found);
            }
        }
        Ok(results)
    }
}

/// The tokens `start .. end` of every sequence, with logits where the reference has some.
fn piece(case: &Case<'_>, start: usize, end: usize) -> Batch {
    let compared = case.logits.map_or(0, |logits| logits.shape[1]);
    let logits = match case.prompt_len() {
        len if end + compared > len && compared > 0 => LogitsFor::All,
        len if end == len => LogitsFor::Last,
        _ => LogitsFor::None,
    };
    let mut batch = Batch::default();
    for ids in &case.input_ids {
        batch.push(&ids[start..end], logits);
    }
    batch
}

/// Compares the logits of the tokens `from ..` of `len` of one sequence with a reference that
/// holds the last ones.
fn compare_rows(
    difference: &mut Difference,
    divergence: &mut Divergence,
    expected: Tensor<'_>,
    (sequence, from, len): (usize, usize, usize),
    found: &[f32],
) {
    let &[_, kept, vocab] = expected.shape else { unreachable!("checked when it was read") };
    let first_kept = len - kept;
    let skip = first_kept.saturating_sub(from).min(found.len() / vocab);
    let found = &found[skip * vocab..];
    if !found.is_empty() {
        let at = (sequence * kept + from + skip - first_kept) * vocab;
        difference.add(at, found, expected.values(at, found.len()));
        for (row, found) in found.chunks(vocab).enumerate() {
            divergence.add(expected.values(at + row * vocab, vocab), found);
        }
    }
}

/// Compares the residual stream as the layers give it out.
struct Watch<'a, 'c> {
    case: &'a Case<'c>,
    width: usize,
    /// Tokens of each sequence in the running pass.
    start: usize,
    end: usize,
    differences: BTreeMap<usize, Difference>,
    bar: Progress,
}

impl<'a, 'c> Watch<'a, 'c> {
    fn new(case: &'a Case<'c>, width: usize, bar: Progress) -> Self {
        Self { case, width, start: 0, end: 0, differences: BTreeMap::new(), bar }
    }
}

impl Observer for Watch<'_, '_> {
    fn block(&mut self, layer: usize, seen: &BlockActivations) {
        let hidden = seen.output;
        self.bar.advance(1);
        let Some(expected) = self.case.hidden.get(&layer) else { return };
        let difference = self.differences.entry(layer).or_default();
        let len = (self.end - self.start) * self.width;
        for (sequence, found) in hidden.chunks(len).enumerate() {
            let at = (sequence * self.case.prompt_len() + self.start) * self.width;
            difference.add(at, found, expected.values(at, len));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_token_is_kept_with_both_logits() {
        let mut greedy = Greedy { total: 3, first: None };
        assert_eq!(greedy.next(0, 1, &[0.0, 2.0, 2.0]), 1, "of equal logits the first");
        assert_eq!(greedy.agreeing(), 3);
        assert_eq!(greedy.next(1, 0, &[0.5, -1.0, 0.75]), 2);
        greedy.next(2, 1, &[1.0, 0.0, 0.0]);
        assert_eq!(greedy.agreeing(), 1);
        let first = greedy.first.unwrap();
        assert_eq!((first.position, first.expected, first.found), (1, 0, 2));
        assert_eq!((first.expected_logit, first.found_logit), (0.5, 0.75));
    }
}
