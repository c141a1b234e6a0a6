//! How a reply looks while it is written: thinking dimmed, the answer plain, numbers at the end.
//!
//! Text goes to stdout, everything else to stderr; colours only where stdout is a terminal and
//! `NO_COLOR` is not set.

use anyhow::Result;
use hybra_engine::{EndedBy, FinishEvent, FinishReason, Phase};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// The place a reply is written to.
pub(crate) struct Screen {
    quiet: bool,
    hide_thinking: bool,
    colour: bool,
    progress: bool,
    shown: Option<Phase>,
    at_line_start: bool,
    started: Instant,
    /// The terminal is in raw mode: lines need a carriage return.
    pub(crate) raw: bool,
}

impl Screen {
    /// `quiet` writes nothing (for `--json`); `hide_thinking` only the answer.
    pub(crate) fn new(quiet: bool, hide_thinking: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            quiet,
            hide_thinking,
            colour: std::io::stdout().is_terminal() && !plain,
            progress: std::io::stderr().is_terminal(),
            shown: None,
            at_line_start: true,
            started: Instant::now(),
            raw: false,
        }
    }

    /// Progress of a long prompt.
    pub(crate) fn prefill(&mut self, done: usize, total: usize) {
        if self.progress && total > 256 && done < total {
            let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            let left = (total - done) as f64 / rate.max(1e-9);
            eprint!("\r\x1b[Kreading {done}/{total} tokens, {rate:.0} tok/s, {left:.0} s left");
        } else if self.progress && total > 256 && self.shown.is_none() {
            eprint!("\r\x1b[K");
        }
    }

    /// Text of a phase.
    pub(crate) fn text(&mut self, phase: Phase, text: &str) {
        let reasoning = matches!(phase, Phase::Thinking | Phase::Tag);
        if self.quiet || self.hide_thinking && reasoning {
            return;
        }
        if phase == Phase::Tag {
            return self.tag(text);
        }
        if self.shown != Some(phase) {
            if reasoning && self.shown.is_none() {
                self.write("<think>\n", true);
            }
            self.shown = Some(phase);
        }
        self.write(text, reasoning);
    }

    /// The close tag stands on its own line, however the model wrote it.
    fn tag(&mut self, text: &str) {
        if text.contains("</think>") {
            if !self.at_line_start {
                self.write("\n", true);
            }
            self.write("</think>\n", true);
            self.shown = Some(Phase::Tag);
        }
    }

    /// Shows the tokens thought so far, and the budget, in the terminal's title.
    pub(crate) fn title(&self, thought: usize, budget: Option<i64>) {
        if self.colour {
            let limit = budget.filter(|b| *b >= 0).map_or(String::new(), |b| format!("/{b}"));
            print!("\x1b]0;hybra: thinking {thought}{limit}\x07");
        }
    }

    fn write(&mut self, text: &str, dim: bool) {
        self.at_line_start = text.ends_with('\n');
        let text = &if self.raw { text.replace('\n', "\r\n") } else { text.to_owned() };
        if self.colour && dim {
            print!("{DIM}{text}{RESET}");
        } else {
            print!("{text}");
        }
    }

    /// Makes what was written visible.
    pub(crate) fn flush(&self) -> Result<()> {
        Ok(std::io::stdout().flush()?)
    }

    /// Ends the reply with a line end.
    pub(crate) fn end(&mut self) -> Result<()> {
        if !self.quiet && !self.at_line_start {
            self.write("\n", false);
        }
        self.flush()
    }

    /// One line of numbers.
    pub(crate) fn summary(&self, end: &FinishEvent, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let thought = match (end.budget.ended_by, end.reasoning_tokens) {
            (None, _) => "did not think".to_owned(),
            (Some(EndedBy::Off), _) => "thinking off".to_owned(),
            (Some(by), n) => {
                let limit = end.budget.limit.map_or(String::new(), |l| format!(" of {l}"));
                format!("thought {}{limit} ({n} with the tag), {}", end.budget.used, ended(by))
            }
        };
        let answer = end.completion_tokens - end.reasoning_tokens as usize;
        let length = if end.reason == FinishReason::Length { ", stopped at the limit" } else { "" };
        let rate = (end.prompt_tokens + end.completion_tokens) as f64 / seconds;
        let read = end.prompt_tokens;
        let guessed = end.speculation.map_or(String::new(), |s| {
            format!("; {} of {} guessed tokens accepted", s.accepted, s.drafted)
        });
        let line = format!(
            "[{thought}; answered {answer}{length}; read {read}{guessed}; {rate:.0} tok/s]"
        );
        if self.progress { eprintln!("{DIM}{line}{RESET}") } else { eprintln!("{line}") }
    }
}

/// Why thinking ended, in words.
pub(crate) fn ended(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Natural => "ended by itself",
        EndedBy::BudgetNewline => "cut at a newline",
        EndedBy::BudgetSentence => "cut at a sentence end",
        EndedBy::BudgetHard => "cut at the limit",
        EndedBy::ToolCall => "ended by a tool call",
        EndedBy::Client => "ended by you",
        EndedBy::Eos => "ended with the text",
        EndedBy::Stop => "stopped",
        EndedBy::MaxTokens => "out of tokens",
        EndedBy::Off => "off",
    }
}
