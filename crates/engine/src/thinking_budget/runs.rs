//! How the bytes of generated tokens split into phases.
//!
//! Invariant: over a sequence, the lengths of all runs plus the bytes held at the end equal the
//! bytes of all tokens, in order. Held bytes are at most one byte shorter than the longest tag.

/// What a token or a byte belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phase {
    /// Text of the thinking section, including an inserted message.
    #[default]
    Thinking,
    /// `<think>`, `</think>`, and up to two newlines directly after `</think>`: never shown.
    Tag,
    /// Text for the reader.
    Answer,
    /// From `<TOOLCALL>[` to the end of the sequence (only when the request has tools).
    Tool,
}

/// Consecutive bytes of one phase.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Run {
    /// What the bytes are.
    pub phase: Phase,
    /// How many.
    pub len: usize,
}

/// The bytes released by one step: first those held back from earlier tokens, then the new token's.
///
/// Bytes that may still become a tag are not released; [`Runs::held`] counts them. Within one step
/// the order is at most answer, tag, thinking, tag, answer, tool, so six runs suffice.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Runs {
    runs: [Run; 6],
    len: usize,
    /// Bytes of this and earlier tokens that wait for the next token to decide.
    pub held: usize,
}

impl Runs {
    /// The runs in order; none is empty and neighbours differ in phase.
    pub fn as_slice(&self) -> &[Run] {
        &self.runs[..self.len]
    }

    /// Takes the released bytes off the front of `buffer`, handing each run to `sink`.
    ///
    /// `buffer` holds the bytes held before this step followed by the token's bytes; afterwards it
    /// holds exactly the `held` bytes. A buffer that is too short is the caller's bug and panics.
    pub fn drain(&self, buffer: &mut Vec<u8>, mut sink: impl FnMut(Phase, &[u8])) {
        let mut start = 0;
        for run in self.as_slice() {
            sink(run.phase, &buffer[start..start + run.len]);
            start += run.len;
        }
        buffer.drain(..start);
        assert_eq!(buffer.len(), self.held, "bytes in the buffer after a step against bytes held");
    }

    pub(super) fn add(&mut self, phase: Phase, len: usize) {
        if len == 0 {
            return;
        }
        if self.len > 0 && self.runs[self.len - 1].phase == phase {
            self.runs[self.len - 1].len += len;
        } else {
            self.runs[self.len] = Run { phase, len };
            self.len += 1;
        }
    }

    pub(super) fn has(&self, phase: Phase) -> bool {
        self.as_slice().iter().any(|run| run.phase == phase)
    }
}
