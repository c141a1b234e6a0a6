//! A toy vocabulary for the thinking-budget tests: token ids index a table of byte strings.

use std::sync::Arc;

use hybra_engine::{Insertion, Phase, Step, TagTexts, ThinkingBudget, ThinkingVocab};

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";
pub(crate) const TOOL: &str = "<TOOLCALL>[";

/// All single bytes (ids 0–255), then the given pieces.
pub(crate) struct Toy {
    pub(crate) pieces: Vec<Vec<u8>>,
}

impl Toy {
    pub(crate) fn new(extra: &[&[u8]]) -> Self {
        let singles = (0..=255u8).map(|b| vec![b]);
        Self { pieces: singles.chain(extra.iter().map(|e| e.to_vec())).collect() }
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        &self.pieces[id as usize]
    }

    /// Longest-match encoding, so that insertions use pieces that merge over the tag's borders.
    pub(crate) fn encode(&self, text: &[u8]) -> Vec<u32> {
        let (mut ids, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let fits = |id: &u32| {
                let piece = self.bytes(*id);
                !piece.is_empty() && text[at..].starts_with(piece)
            };
            let id =
                (0..self.pieces.len() as u32).filter(fits).max_by_key(|&id| self.bytes(id).len());
            ids.push(id.unwrap());
            at += self.bytes(ids[ids.len() - 1]).len();
        }
        ids
    }

    pub(crate) fn vocab(&self) -> Arc<ThinkingVocab> {
        let texts = TagTexts {
            open: OPEN.as_bytes(),
            close: CLOSE.as_bytes(),
            tool_open: TOOL.as_bytes(),
            separator: b"\n\n",
        };
        let whole = format!("{CLOSE}\n\n");
        let rests = (1..CLOSE.len()).map(|j| self.encode(&whole.as_bytes()[j..])).collect();
        let size = self.pieces.len() as u32;
        Arc::new(ThinkingVocab::new(texts, rests, size, |id| self.bytes(id)).unwrap())
    }

    pub(crate) fn insertion(&self, vocab: &ThinkingVocab, message: &str) -> Arc<Insertion> {
        let encode = |newline| {
            self.encode(&Insertion::text(CLOSE.as_bytes(), message.as_bytes(), newline, b"\n\n"))
        };
        let (message, bytes) = (message.as_bytes(), |id| self.bytes(id));
        Arc::new(Insertion::new(vocab, message, encode(true), encode(false), bytes).unwrap())
    }
}

/// Collects what a client would see.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) thinking: Vec<u8>,
    pub(crate) tag: Vec<u8>,
    pub(crate) answer: Vec<u8>,
    pub(crate) tool: Vec<u8>,
    pub(crate) held: Vec<u8>,
}

impl Output {
    pub(crate) fn add(&mut self, phase: Phase, bytes: &[u8]) {
        match phase {
            Phase::Thinking => self.thinking.extend_from_slice(bytes),
            Phase::Tag => self.tag.extend_from_slice(bytes),
            Phase::Answer => self.answer.extend_from_slice(bytes),
            Phase::Tool => self.tool.extend_from_slice(bytes),
        }
    }

    pub(crate) fn push(&mut self, machine: &mut ThinkingBudget, id: u32, bytes: &[u8]) -> Step {
        let step = machine.push(id, bytes);
        self.held.extend_from_slice(bytes);
        let mut held = std::mem::take(&mut self.held);
        step.runs.drain(&mut held, |phase, bytes| self.add(phase, bytes));
        self.held = held;
        step
    }
}
