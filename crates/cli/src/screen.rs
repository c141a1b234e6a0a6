//! How a reply looks while it is written: thinking dimmed, the answer plain, numbers at the end.
//!
//! Text goes to stdout, everything else to stderr; colours only where stdout is a terminal and
//! `NO_COLOR` is not set.

use anyhow::Result;
use hybra_engine::{EndedBy, FinishEvent, FinishReason, Phase, ReasoningBudget, SpeculationReport};
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
    terminal: bool,
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
            terminal: std::io::stdout().is_terminal(),
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
        let mut text = text.to_owned();
        if self.terminal {
            // Text of a model must not steer the terminal.
            text.retain(|c| !c.is_control() || matches!(c, '\n' | '\t'));
        }
        if self.raw {
            text = text.replace('\n', "\r\n");
        }
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

    /// Where the server splits the text, no tag tells that thinking is over.
    pub(crate) fn close_thinking(&mut self) {
        if self.shown == Some(Phase::Thinking) {
            self.text(Phase::Tag, "</think>");
        }
    }

    /// One line of numbers.
    pub(crate) fn summary(&self, end: &Summary, elapsed: Duration) {
        let line = end.line(elapsed.as_secs_f64().max(1e-9));
        if self.progress { eprintln!("{DIM}{line}{RESET}") } else { eprintln!("{line}") }
    }
}

/// The numbers of a reply.
pub(crate) struct Summary {
    /// `None`: the server does not tell.
    pub(crate) budget: Option<ReasoningBudget>,
    pub(crate) reasoning_tokens: u32,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// It ended at the limit of tokens.
    pub(crate) length: bool,
    pub(crate) speculation: Option<SpeculationReport>,
    /// False where tokens were counted by what a server sent at once.
    pub(crate) exact: bool,
}

impl From<&FinishEvent> for Summary {
    fn from(end: &FinishEvent) -> Self {
        Self {
            budget: Some(end.budget),
            reasoning_tokens: end.reasoning_tokens,
            prompt_tokens: end.prompt_tokens,
            completion_tokens: end.completion_tokens,
            length: end.reason == FinishReason::Length,
            speculation: end.speculation,
            exact: true,
        }
    }
}

impl Summary {
    fn line(&self, seconds: f64) -> String {
        let about = if self.exact { "" } else { "about " };
        let n = self.reasoning_tokens;
        let thought = match self.budget.map(|b| (b, b.ended_by)) {
            None if n == 0 => "thinking not counted by the server".to_owned(),
            None => format!("thought {about}{n}"),
            Some((_, None)) => "did not think".to_owned(),
            Some((_, Some(EndedBy::Off))) => "thinking off".to_owned(),
            Some((budget, Some(by))) => {
                let limit = budget.limit.map_or(String::new(), |l| format!(" of {l}"));
                let tag =
                    if n > budget.used { format!(" ({n} with the tag)") } else { String::new() };
                format!("thought {about}{}{limit}{tag}, {}", budget.used, ended(by))
            }
        };
        let answer = self.completion_tokens.saturating_sub(n as usize);
        let length = if self.length { ", stopped at the limit" } else { "" };
        let rate = (self.prompt_tokens + self.completion_tokens) as f64 / seconds;
        let read = match self.prompt_tokens {
            0 => String::new(),
            read => format!("; read {read}"),
        };
        let guessed = self.speculation.map_or(String::new(), |s| {
            format!("; {} of {} guessed tokens accepted", s.accepted, s.drafted)
        });
        format!("[{thought}; answered {about}{answer}{length}{read}{guessed}; {rate:.0} tok/s]")
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
