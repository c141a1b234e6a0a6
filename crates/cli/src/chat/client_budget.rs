//! A thinking budget applied by the client, for servers that have none.
//!
//! The engine's own machine ([`ThinkingBudget`]) decides where to cut, from the text that the
//! server streams; so a budget means the same everywhere. A cut drops the stream and goes on from
//! the text so far with the close tag behind it.
//!
//! Invariant: tags never reach the reader, a natural end is never cut, and only the tag itself is
//! taken out of the text.

use anyhow::Result;
use hybra_chat::Reply;
use hybra_engine::{
    BudgetPlan, FinishCause, Insertion, Phase, ReasoningBudget, SequenceId, Step, TagTexts,
    ThinkingBudget, ThinkingConfig, ThinkingVocab, TokenEvent,
};
use std::sync::Arc;

/// The family's tags; a token is a byte here, because the server's vocabulary is not known.
const TAGS: TagTexts<'static> = TagTexts {
    open: b"<think>",
    close: b"</think>",
    tool_open: b"<TOOLCALL>[",
    separator: b"\n\n",
};

/// Splits and cuts the text of one answer.
pub(super) struct ClientBudget {
    machine: ThinkingBudget,
    reply: Reply,
    /// Everything after the prompt: what a continuation starts from.
    pub(super) text: Vec<u8>,
    sampled: usize,
}

impl ClientBudget {
    /// An answer after `prompt`, as the server's template rendered it.
    pub(super) fn new(prompt: &str, plan: BudgetPlan, message: &str) -> Result<Self> {
        let ids = |text: &[u8]| text.iter().copied().map(u32::from).collect::<Vec<_>>();
        let byte = |id: u32| vec![id as u8];
        let end = [TAGS.close, TAGS.separator].concat();
        let rests = (1..TAGS.close.len()).map(|at| ids(&end[at..])).collect();
        let vocab = ThinkingVocab::new(TAGS, rests, 256, byte)?;
        let text = |newline| {
            ids(&Insertion::text(TAGS.close, message.as_bytes(), newline, TAGS.separator))
        };
        let insertion = Insertion::new(&vocab, message.as_bytes(), text(true), text(false), byte)?;
        let start = vocab.start_of(prompt.as_bytes());
        let config = ThinkingConfig { plan, start, ..ThinkingConfig::default() };
        let machine = ThinkingBudget::new(Arc::new(vocab), Arc::new(insertion), config);
        Ok(Self { machine, reply: Reply::default(), text: Vec::new(), sampled: 0 })
    }

    /// Takes streamed text of `tokens` tokens; the engine's rules count each.
    pub(super) fn push(&mut self, text: &str, tokens: usize, show: &mut dyn FnMut(Phase, &str)) {
        self.text.extend_from_slice(text.as_bytes());
        self.sampled += tokens;
        let step = self.machine.push(0, text.as_bytes());
        self.show(step, text.as_bytes(), show);
        // Of an event of several tokens the first has the text, the others only count.
        for _ in 1..tokens {
            if self.cuts() {
                break;
            }
            let step = self.machine.push(0, b"");
            self.show(step, b"", show);
        }
    }

    /// The stream must be dropped here, and [`ClientBudget::cut`] says how the text goes on.
    pub(super) fn cuts(&self) -> bool {
        self.machine.forced_next().is_some()
    }

    /// Appends the message and the close tag.
    pub(super) fn cut(&mut self, show: &mut dyn FnMut(Phase, &str)) {
        while let Some(byte) = self.machine.forced_next() {
            let step = self.machine.push(byte, &[byte as u8]);
            self.text.push(byte as u8);
            self.show(step, &[byte as u8], show);
        }
    }

    /// Tokens that the server generated so far.
    pub(super) fn sampled(&self) -> usize {
        self.sampled
    }

    /// The reader wants the answer now; false if there is no thinking to end.
    pub(super) fn end_now(&mut self) -> bool {
        self.machine.end_now()
    }

    /// The text is over: whatever was held back.
    pub(super) fn finish(
        mut self,
        cause: FinishCause,
        show: &mut dyn FnMut(Phase, &str),
    ) -> (Reply, ReasoningBudget) {
        let runs = self.machine.finish(cause);
        let step = Step { phase: Phase::Answer, forced: false, runs };
        self.show(step, b"", show);
        (self.reply, self.machine.report())
    }

    fn show(&mut self, step: Step, bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        let event = TokenEvent {
            sequence: SequenceId(0),
            token: 0,
            logprob: None,
            top_logprobs: Vec::new(),
            step,
        };
        self.reply.token(&event, bytes, show);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_engine::{EndedBy, ServerBudget, ThinkingParams};

    fn plan(budget: i64) -> BudgetPlan {
        let params = ThinkingParams { budget: Some(budget), ..ThinkingParams::default() };
        BudgetPlan::new(params.resolve(ServerBudget::default()), None)
    }

    fn run(prompt: &str, budget: i64, pieces: &[&str]) -> (Reply, ReasoningBudget, String, bool) {
        let mut client = ClientBudget::new(prompt, plan(budget), "").unwrap();
        let (mut cut, show) = (client.cuts(), &mut |_: Phase, _: &str| {});
        for piece in pieces {
            if cut {
                break;
            }
            client.push(piece, 1, show);
            cut = client.cuts();
        }
        if cut {
            client.cut(show);
        }
        let text = String::from_utf8(client.text.clone()).unwrap();
        let (reply, report) = client.finish(FinishCause::Eos, show);
        (reply, report, text, cut)
    }

    #[test]
    fn cuts_fall_where_the_engine_would_cut() {
        let lines = ["one", " two", "\n", "three", "\n", "four"];
        let (reply, report, text, cut) = run("<think>\n", 4, &lines);
        assert!(cut);
        assert_eq!((report.used, report.ended_by), (5, Some(EndedBy::BudgetNewline)));
        assert_eq!(text, "one two\nthree\n</think>\n\n");
        assert_eq!((reply.reasoning.as_str(), reply.answer.as_str()), ("one two\nthree\n", ""));
    }

    #[test]
    fn a_natural_end_is_not_cut_and_only_the_tag_is_taken_out() {
        let pieces = ["think", " hint", "\n</th", "ink>", "\n\n", "think", " it"];
        let (reply, report, _, cut) = run("<think>\n", 100, &pieces);
        assert!(!cut);
        assert_eq!(reply.reasoning, "think hint\n");
        assert_eq!(reply.answer, "think it");
        assert_eq!(report.ended_by, Some(EndedBy::Natural));
    }

    #[test]
    fn no_budget_at_all_closes_the_section_before_the_first_token() {
        let (_, report, text, cut) = run("<think>\n", 0, &["x"]);
        assert!(cut);
        assert_eq!((report.used, report.ended_by), (0, Some(EndedBy::Off)));
        assert_eq!(text, "</think>\n\n");
        let (reply, report, _, cut) = run("<think></think>", 0, &["x"]);
        assert!(!cut);
        assert_eq!((reply.answer.as_str(), report.used), ("x", 0));
    }

    #[test]
    fn a_section_may_begin_in_the_text() {
        let (reply, report, ..) = run("no tag", 100, &["<think>", "a", "</think>", "b"]);
        assert_eq!((reply.reasoning.as_str(), reply.answer.as_str()), ("a", "b"));
        assert_eq!(report.used, 1);
    }
}
