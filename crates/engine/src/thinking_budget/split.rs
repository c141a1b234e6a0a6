//! Reading bytes: the matchers move, bytes are released into phases, tokens are counted.
//!
//! Bytes that may be the beginning of a tag are held back; `held` is always the longest prefix of a
//! tag that matters in the current state and that the text ends in.

use super::{EndedBy, Phase, Runs, SEPARATOR_NEWLINES, State, ThinkingBudget};

/// What one token touched, while its bytes are read.
#[derive(Default)]
pub(super) struct Touched {
    pub(super) runs: Runs,
    /// Section offset of the token's first byte inside the section.
    pub(super) section_start: Option<usize>,
    /// Section offset of the tag that ended the section in this token, and that tag's phase.
    pub(super) ended_at: Option<(usize, Phase)>,
}

impl ThinkingBudget {
    /// Moves the matchers of the section by one byte of its text.
    pub(super) fn advance_section(&mut self, byte: u8) {
        self.tail.push(byte);
        self.close_state = self.vocab.close.step(self.close_state, byte);
        // Inserted text is never a tool call, not even the beginning of one.
        if self.tools && self.state == State::Thinking {
            self.tool_state = self.vocab.tool_open.step(self.tool_state, byte);
        }
    }

    pub(super) fn section_byte(&mut self, byte: u8, touched: &mut Touched) {
        if touched.section_start.is_none() {
            touched.section_start = Some(self.section_len);
            if self.state == State::Thinking {
                self.used += 1;
                self.starts.push_back(self.section_len);
            }
        }
        self.section_len += 1;
        self.advance_section(byte);
        let unreleased = self.held + 1;
        if self.close_state == self.vocab.close.len() {
            self.end_section(Phase::Tag, self.vocab.close.len(), unreleased, touched);
        } else if self.tool_state == self.vocab.tool_open.len() {
            self.end_section(Phase::Tool, self.vocab.tool_open.len(), unreleased, touched);
        } else {
            self.held = self.close_state.max(self.tool_state);
            self.release(Phase::Thinking, unreleased - self.held, &mut touched.runs);
        }
    }

    /// The section ends with a tag of `len` bytes whose last byte was just read.
    pub(super) fn end_section(
        &mut self,
        phase: Phase,
        len: usize,
        unreleased: usize,
        touched: &mut Touched,
    ) {
        self.release(Phase::Thinking, unreleased - len, &mut touched.runs);
        self.release(phase, len, &mut touched.runs);
        let tag_start = self.section_len - len;
        touched.ended_at = Some((tag_start, phase));
        if self.state == State::Thinking {
            let tokens = self.starts.iter().filter(|&&start| start >= tag_start).count() as u32;
            self.used -= tokens;
            if phase == Phase::Tag {
                self.tag_tokens += tokens;
                self.ended_by = Some(EndedBy::Natural);
            } else {
                self.ended_by = Some(EndedBy::ToolCall);
            }
        }
        (self.open_state, self.close_state, self.tool_state, self.held) = (0, 0, 0, 0);
        self.separator_left = SEPARATOR_NEWLINES;
        self.state = if phase == Phase::Tag { State::Answer } else { State::Tool };
    }

    pub(super) fn answer_byte(&mut self, byte: u8, touched: &mut Touched) {
        if self.separator_left > 0 {
            if byte == b'\n' {
                self.separator_left -= 1;
                touched.runs.add(Phase::Tag, 1);
                return;
            }
            self.separator_left = 0;
        }
        let unreleased = self.held + 1;
        self.open_state = self.vocab.open.step(self.open_state, byte);
        if self.tools {
            self.tool_state = self.vocab.tool_open.step(self.tool_state, byte);
        }
        let opened = self.open_state == self.vocab.open.len();
        if opened && self.state == State::Before {
            self.release(Phase::Answer, unreleased - self.open_state, &mut touched.runs);
            self.release(Phase::Tag, self.open_state, &mut touched.runs);
            (self.open_state, self.tool_state, self.held) = (0, 0, 0);
            self.state = State::Thinking;
        } else if self.tool_state == self.vocab.tool_open.len() {
            self.release(Phase::Answer, unreleased - self.tool_state, &mut touched.runs);
            self.release(Phase::Tool, self.tool_state, &mut touched.runs);
            (self.tool_state, self.held) = (0, 0);
            self.state = State::Tool;
        } else {
            self.reopened |= opened;
            // After a section a think tag is plain text: nothing waits for it.
            let open = if self.state == State::Before { self.open_state } else { 0 };
            self.held = open.max(self.tool_state);
            self.release(Phase::Answer, unreleased - self.held, &mut touched.runs);
        }
    }

    /// Releases `len` bytes; those that belong to the prompt are nobody's output.
    pub(super) fn release(&mut self, phase: Phase, len: usize, runs: &mut Runs) {
        let of_prompt = len.min(self.held_of_prompt);
        self.held_of_prompt -= of_prompt;
        runs.add(phase, len - of_prompt);
    }

    pub(super) fn sampled_phase(&self, touched: &Touched) -> Phase {
        match (touched.section_start, touched.ended_at) {
            (Some(_), None) => Phase::Thinking,
            (Some(start), Some((tag_start, _))) if start < tag_start => Phase::Thinking,
            (Some(_), Some((_, phase))) => phase,
            (None, _) if self.state == State::Tool => Phase::Tool,
            (None, _) if touched.runs.has(Phase::Tag) && !touched.runs.has(Phase::Answer) => {
                if self.held > 0 { Phase::Answer } else { Phase::Tag }
            }
            (None, _) => Phase::Answer,
        }
    }
}
