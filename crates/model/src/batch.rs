//! The input of a forward pass: the new tokens of several sequences, one after another.
//!
//! Invariant: segments are not empty, do not overlap and cover the tokens in order; segment i
//! belongs to state i of the call.

/// For which tokens of a segment logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: a part of a prompt that is not its end.
    None,
    /// The last token.
    Last,
    /// Every token.
    All,
}

/// The new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First token in the batch.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Which of them get logits.
    pub logits: LogitsFor,
    /// A factor of its logits, one over a temperature: a GPU sums their powers at it.
    pub scale: f32,
    /// They are read as single steps, and [`crate::NemotronH::accept`] says how many stay.
    pub draft: bool,
}

impl Segment {
    /// Rows of logits it gets: of its last tokens.
    #[must_use]
    pub fn num_logits(&self) -> usize {
        match self.logits {
            LogitsFor::None => 0,
            LogitsFor::Last => 1,
            LogitsFor::All => self.len,
        }
    }
}

/// New tokens of several sequences.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
}

impl Batch {
    /// A batch of one sequence.
    #[must_use]
    pub fn single(tokens: &[u32], logits: LogitsFor) -> Self {
        let mut batch = Self::default();
        batch.push(tokens, logits);
        batch
    }

    /// Adds the new tokens of one more sequence.
    ///
    /// # Panics
    /// If there are none.
    pub fn push(&mut self, tokens: &[u32], logits: LogitsFor) {
        assert!(!tokens.is_empty(), "a segment has at least one token");
        let (start, len) = (self.tokens.len(), tokens.len());
        self.segments.push(Segment { start, len, logits, scale: 1.0, draft: false });
        self.tokens.extend_from_slice(tokens);
    }

    /// Adds a draft of one more sequence: its last known token and a guess at those after it. Each
    /// gets logits, with the bits that feeding them one by one would give.
    pub fn push_draft(&mut self, last: u32, guess: &[u32]) {
        let (start, len) = (self.tokens.len(), 1 + guess.len());
        let logits = LogitsFor::All;
        self.segments.push(Segment { start, len, logits, scale: 1.0, draft: true });
        self.tokens.push(last);
        self.tokens.extend_from_slice(guess);
    }

    /// Gives the last segment another [`Segment::scale`] than 1.
    ///
    /// # Panics
    /// If there is none.
    pub fn set_scale(&mut self, scale: f32) {
        self.segments.last_mut().expect("a segment").scale = scale;
    }

    /// Removes all segments and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.segments.clear();
    }

    /// All tokens, segment after segment.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The segments.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Positions in the batch that get logits, in order.
    pub fn logit_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.segments.iter().flat_map(|s| s.start + s.len - s.num_logits()..s.start + s.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_rows_follow_the_segments() {
        let mut batch = Batch::single(&[5, 6, 7], LogitsFor::Last);
        batch.push(&[8], LogitsFor::None);
        batch.push(&[9, 10], LogitsFor::All);
        batch.push_draft(11, &[12, 13]);
        assert_eq!(batch.tokens(), [5, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(batch.logit_rows().collect::<Vec<_>>(), [2, 4, 5, 6, 7, 8]);
    }
}
