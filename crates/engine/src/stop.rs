//! Stop strings: where the first of several byte strings ends in a stream of bytes.
//!
//! [`StopMatcher`] is shared with whoever turns bytes into text, so that engine and text agree.
//!
//! Invariants: bytes are released as soon as no stop string can begin in them, in order and once;
//! the stop string itself never is. The result is a function of the bytes, not of how they are cut.

use crate::thinking_budget::{Phase, Step};

/// Finds stop strings in the bytes of one answer.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Vec<u8>>,
    /// Bytes that may be the beginning of a stop string.
    held: Vec<u8>,
}

impl StopMatcher {
    /// A matcher before the first byte. Empty strings never match.
    #[must_use]
    pub fn new(stops: &[Vec<u8>]) -> Self {
        let stops = stops.to_vec();
        Self { stops, held: Vec::new() }
    }

    /// Takes `bytes` and hands on what is released; the index of the stop string that is complete.
    /// Of several that are complete at the same byte the one that began first is taken. Bytes
    /// after it are dropped.
    pub fn push(&mut self, bytes: &[u8], mut released: impl FnMut(&[u8])) -> Option<usize> {
        if self.stops.is_empty() {
            released(bytes);
            return None;
        }
        for &byte in bytes {
            self.held.push(byte);
            let complete = |stop: &&Vec<u8>| !stop.is_empty() && self.held.ends_with(stop);
            let found = self.stops.iter().filter(complete).max_by_key(|stop| stop.len());
            if let Some(stop) = found {
                released(&self.held[..self.held.len() - stop.len()]);
                let index = self.stops.iter().position(|other| other == stop);
                self.held.clear();
                return index;
            }
            let keep = self.longest_beginning();
            let free = self.held.len() - keep;
            if free > 0 {
                released(&self.held[..free]);
                self.held.drain(..free);
            }
        }
        None
    }

    /// The stream is over: what was held is text after all.
    pub fn finish(&mut self, mut released: impl FnMut(&[u8])) {
        if !self.held.is_empty() {
            released(&std::mem::take(&mut self.held));
        }
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let begins = |len: &usize| {
            let end = &self.held[self.held.len() - len..];
            self.stops.iter().any(|stop| stop.len() > *len && stop.starts_with(end))
        };
        (1..=self.held.len()).rev().find(begins).unwrap_or(0)
    }
}

/// Watches the tokens of one sequence for its stop strings.
#[derive(Clone, Debug)]
pub(crate) struct StopWatch {
    matcher: StopMatcher,
    /// Bytes that no phase owns yet.
    held: Vec<u8>,
    in_thinking: bool,
    /// The stop string that was found.
    pub(crate) found: Option<usize>,
}

impl StopWatch {
    /// Watches the answer, and the thinking section too if `in_thinking`.
    pub(crate) fn new(stops: &[Vec<u8>], in_thinking: bool) -> Self {
        let matcher = StopMatcher::new(stops);
        Self { matcher, held: Vec::new(), in_thinking, found: None }
    }

    /// Takes a token's bytes; true if a stop string is complete. Text that is not watched, such as
    /// forced text, ends what was begun.
    pub(crate) fn push(&mut self, bytes: &[u8], step: &Step) -> bool {
        self.held.extend_from_slice(bytes);
        let Self { matcher, held, in_thinking, found } = self;
        step.runs.drain(held, |phase, bytes| {
            if !watched(phase, *in_thinking && !step.forced) {
                matcher.finish(|_| {});
            } else if found.is_none() {
                *found = matcher.push(bytes, |_| {});
            }
        });
        found.is_some()
    }
}

/// Whether stop strings are looked for in a phase.
fn watched(phase: Phase, thinking: bool) -> bool {
    match phase {
        Phase::Answer | Phase::Tool => true,
        Phase::Thinking => thinking,
        Phase::Tag => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let stops: Vec<_> = stops.iter().map(|s| s.as_bytes().to_vec()).collect();
        let (mut matcher, mut out) = (StopMatcher::new(&stops), Vec::new());
        for piece in pieces {
            if let Some(stop) = matcher.push(piece.as_bytes(), |b| out.extend_from_slice(b)) {
                return (String::from_utf8(out).unwrap(), Some(stop));
            }
        }
        matcher.finish(|b| out.extend_from_slice(b));
        (String::from_utf8(out).unwrap(), None)
    }

    #[test]
    fn stops_across_pieces() {
        for (stops, text, expected) in [
            (&["END"][..], "abENDcd", ("ab", Some(0))),
            (&["END"], "abEN", ("abEN", None)),
            (&["abab"], "aababab", ("a", Some(0))),
            (&["b", "abc"], "xabc", ("xa", Some(0))),
            (&["bc", "abc"], "xabc", ("x", Some(1))),
            (&[""], "abc", ("abc", None)),
            (&[], "abc", ("abc", None)),
        ] {
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let expected = (expected.0.to_owned(), expected.1);
            assert_eq!(run(stops, &[text]), expected, "{stops:?} {text}");
            assert_eq!(run(stops, &pieces), expected, "{stops:?} {text} byte by byte");
        }
    }
}
