//! When the section is cut and what is forced then.

use super::{EndedBy, State, ThinkingBudget};

/// Tokens that a cut waits for the end of a UTF-8 character.
const MAX_CHAR_WAIT: u32 = 3;

/// Which ids are being forced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    AfterNewline,
    AfterText,
    Rest(usize),
}

impl ThinkingBudget {
    pub(super) fn due(&self) -> Option<EndedBy> {
        if self.client_end {
            return Some(EndedBy::Client);
        }
        let (limit, grace, used) = (self.plan.limit?, self.plan.grace, self.used);
        if used >= limit && grace > 0 {
            if self.tail.at_line_end() {
                return Some(EndedBy::BudgetNewline);
            }
            if used - limit >= grace.div_ceil(2) && self.tail.ends_sentence() {
                return Some(EndedBy::BudgetSentence);
            }
        }
        (used >= limit && used - limit >= grace).then_some(EndedBy::BudgetHard)
    }

    /// A cut here would split a character or a tool tag, and may still wait.
    pub(super) fn blocked(&self) -> bool {
        let tool_wait = self.vocab.tool_open.len() as u32;
        self.tail.mid_char() && self.waited < MAX_CHAR_WAIT
            || self.tool_state > 0 && self.waited < tool_wait
    }

    pub(super) fn cut_if_due(&mut self) {
        match self.due() {
            None => {}
            Some(_) if self.blocked() => self.waited += 1,
            Some(cause) => self.cut(cause),
        }
    }

    pub(super) fn cut(&mut self, cause: EndedBy) {
        let off = cause == EndedBy::BudgetHard && self.plan.off;
        self.ended_by = Some(if off { EndedBy::Off } else { cause });
        let half = if self.vocab.completes_halves() { self.close_state } else { 0 };
        let script = match half {
            0 if self.tail.ends_in_newline() => Script::AfterNewline,
            0 => Script::AfterText,
            prefix_len => Script::Rest(prefix_len),
        };
        self.script = Some((script, 0));
        self.state = State::Forcing;
        // From here on only the close tag matters: what waited for a tool tag is section text.
        self.tool_state = 0;
    }

    pub(super) fn script_ids(&self, script: Script) -> &[u32] {
        match script {
            Script::AfterNewline => &self.insertion.after_newline,
            Script::AfterText => &self.insertion.after_text,
            Script::Rest(prefix_len) => self.vocab.rest(prefix_len),
        }
    }

    pub(super) fn take_forced(&mut self, token: u32) -> bool {
        let Some((script, at)) = self.script else { return false };
        let ids = self.script_ids(script);
        assert_eq!(token, ids[at], "token pushed against token forced");
        self.script = (at + 1 < ids.len()).then_some((script, at + 1));
        self.forced += 1;
        true
    }
}
