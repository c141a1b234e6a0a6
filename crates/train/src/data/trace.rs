//! Where a trace is cut, and what the engine would insert there.
//!
//! A cut falls between two tokens of the trace: at the last one before a random budget that ends
//! in a newline, or (by chance, and where there is no such token) at the budget itself, moved back
//! to the end of a character. What follows is what the engine forces when a budget ends thinking.

use super::draw::Draws;
use hybra_tokenizer::{ForcedClose, Tokenizer};

/// A random cut of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Tokens allowed, 1 to one less than the trace has.
    pub(super) budget: usize,
    /// Tokens kept, 1 to `budget`.
    pub(super) kept: usize,
}

/// Numbers for one turn. All are drawn always, so that settings do not shift later ones.
pub(super) struct Chance {
    /// Decides between off, cut and whole.
    pub(super) mode: f64,
    budget: f64,
    mid_step: f64,
}

impl Chance {
    pub(super) fn draw(draws: &mut Draws) -> Self {
        Self { mode: draws.share(), budget: draws.share(), mid_step: draws.share() }
    }

    /// Cuts the trace whose text is the first `trace_len` bytes of `ids`, or not when it has no
    /// place for a cut.
    pub(super) fn cut(
        &self,
        tokenizer: &Tokenizer,
        ids: &[u32],
        trace_len: usize,
        p_mid_step: f64,
    ) -> Option<Cut> {
        let mut ends = Vec::new();
        let mut text = Vec::new();
        for &id in ids {
            text.extend_from_slice(tokenizer.token_bytes(id));
            if text.len() > trace_len {
                break;
            }
            ends.push(text.len());
        }
        let most = ends.len().checked_sub(1).filter(|&most| most > 0)?;
        let budget = 1 + ((self.budget * most as f64) as usize).min(most - 1);
        let at_line_end = |&kept: &usize| text[..ends[kept - 1]].ends_with(b"\n");
        let line = (1..=budget).rev().find(at_line_end).filter(|_| self.mid_step >= p_mid_step);
        let whole = |&kept: &usize| std::str::from_utf8(&text[..ends[kept - 1]]).is_ok();
        let kept = line.or_else(|| (1..=budget).rev().find(whole))?;
        Some(Cut { budget, kept })
    }
}

/// The ids that the engine forces after `text`, the bytes of a thinking section so far.
pub(super) fn forced<'a>(close: &'a ForcedClose, tag: &str, text: &[u8]) -> &'a [u32] {
    let half = (1..=close.partial.len()).rev().find(|&j| text.ends_with(&tag.as_bytes()[..j]));
    match half {
        Some(len) => &close.partial[len - 1],
        None if text.ends_with(b"\n") => &close.after_newline,
        None => &close.mid_line,
    }
}
