//! What a constraint on the answer has to know: where the next token stands, and which tokens would
//! hold both text that it must see and bytes that it must not.

use super::{State, ThinkingBudget};

/// Where the next sampled token stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// In a section or its close tag.
    Section,
    /// In the answer.
    Answer,
    /// Behind the tag of a tool call.
    Tool,
}

impl ThinkingBudget {
    pub(crate) fn place(&self) -> Place {
        match self.state {
            State::Thinking | State::Forcing => Place::Section,
            State::Before | State::Answer => Place::Answer,
            State::Tool => Place::Tool,
        }
    }

    /// Tokens that end a tag and go on with text. `answer`: also those that go on with answer text
    /// behind the close tag, not only those that go on with a tool call.
    pub(crate) fn straddling(&self, answer: bool) -> [&[u32]; 2] {
        let none: &[u32] = &[];
        let close = answer && self.state == State::Thinking;
        let close = if close { self.vocab.close_straddling(self.close_state) } else { none };
        let tool = self.tools && self.state != State::Tool;
        [close, if tool { self.vocab.tool_straddling(self.tool_state) } else { none }]
    }

    /// Tokens of newlines that now would still belong to the close tag; ascending.
    pub(crate) fn blank_lines(&self) -> &[u32] {
        &self.vocab.blank_lines[self.blank_lines_left()]
    }

    /// Other tokens that begin with such a newline.
    pub(crate) fn led_by_newline(&self) -> &[u32] {
        &self.vocab.led_by_newline[self.blank_lines_left()]
    }

    fn blank_lines_left(&self) -> usize {
        if self.state == State::Answer { self.separator_left as usize } else { 0 }
    }
}
