//! From engine events to text: phases, stop strings and whole characters.
//!
//! Invariant: reasoning, tags, answer and tool text together are all bytes of all tokens before
//! the stop string; a piece never ends inside a character.

use hybra_engine::{FinishEvent, Phase, Runs, StopMatcher, TokenEvent};
use std::collections::VecDeque;

/// Text of a reply, growing token by token.
#[derive(Default)]
pub struct Reply {
    /// Bytes that no phase owns yet.
    held: Vec<u8>,
    stop: StopMatcher,
    stop_in_thinking: bool,
    /// Phases of the bytes that wait in `stop`.
    owed: VecDeque<(Phase, usize)>,
    stopped: bool,
    /// The beginning of a character, and its phase.
    partial: (Phase, Vec<u8>),
    /// Text of the thinking section, inserted messages included.
    pub reasoning: String,
    /// Text for the reader.
    pub answer: String,
    /// Tool calls as the model wrote them.
    pub tool: String,
}

impl Reply {
    /// An empty reply that ends before the first of `stops`, as the engine's sequence does.
    #[must_use]
    pub fn new(stops: &[Vec<u8>], stop_in_thinking: bool) -> Self {
        Self { stop: StopMatcher::new(stops), stop_in_thinking, ..Self::default() }
    }

    /// Takes a token with its `bytes`; `show` gets the text it releases, piece by piece.
    pub fn token(&mut self, event: &TokenEvent, bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        self.held.extend_from_slice(bytes);
        self.release(&event.step.runs, event.step.forced, show);
    }

    /// Takes the end of the sequence.
    pub fn finish(&mut self, end: &FinishEvent, show: &mut dyn FnMut(Phase, &str)) {
        self.release(&end.runs, false, show);
        self.let_go(show);
        self.flush(show);
    }

    /// What waits in the stop strings is text after all.
    fn let_go(&mut self, show: &mut dyn FnMut(Phase, &str)) {
        let mut rest = Vec::new();
        self.stop.finish(|bytes| rest.extend_from_slice(bytes));
        self.released(&rest, show);
    }

    fn release(&mut self, runs: &Runs, forced: bool, show: &mut dyn FnMut(Phase, &str)) {
        let mut held = std::mem::take(&mut self.held);
        runs.drain(&mut held, |phase, bytes| {
            let watched = match phase {
                Phase::Answer | Phase::Tool => true,
                Phase::Thinking => self.stop_in_thinking && !forced,
                Phase::Tag => false,
            };
            match watched {
                _ if self.stopped => {}
                true => self.watch(phase, bytes, show),
                false => {
                    self.let_go(show);
                    self.bytes(phase, bytes, show);
                }
            }
        });
        self.held = held;
    }

    /// Passes bytes through the stop strings.
    fn watch(&mut self, phase: Phase, bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        self.owed.push_back((phase, bytes.len()));
        let (mut stop, mut free) = (std::mem::take(&mut self.stop), Vec::new());
        self.stopped = stop.push(bytes, |bytes| free.extend_from_slice(bytes)).is_some();
        self.stop = stop;
        self.released(&free, show);
    }

    /// Gives bytes that no stop string holds back to their phases.
    fn released(&mut self, mut bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        while !bytes.is_empty() {
            let (phase, owed) = self.owed.pop_front().expect("released bytes were taken before");
            let (now, later) = bytes.split_at(owed.min(bytes.len()));
            if owed > now.len() {
                self.owed.push_front((phase, owed - now.len()));
            }
            self.bytes(phase, now, show);
            bytes = later;
        }
    }

    fn bytes(&mut self, phase: Phase, bytes: &[u8], show: &mut dyn FnMut(Phase, &str)) {
        if phase != self.partial.0 {
            self.flush(show);
            self.partial.0 = phase;
        }
        let mut pending = std::mem::take(&mut self.partial.1);
        pending.extend_from_slice(bytes);
        let whole = whole_characters(&pending);
        let text = String::from_utf8_lossy(&pending[..whole]).into_owned();
        self.partial.1 = pending.split_off(whole);
        self.append(phase, &text, show);
    }

    fn flush(&mut self, show: &mut dyn FnMut(Phase, &str)) {
        let bytes = std::mem::take(&mut self.partial.1);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.append(self.partial.0, &text, show);
    }

    fn append(&mut self, phase: Phase, text: &str, show: &mut dyn FnMut(Phase, &str)) {
        if text.is_empty() {
            return;
        }
        match phase {
            Phase::Thinking => self.reasoning.push_str(text),
            Phase::Answer => self.answer.push_str(text),
            Phase::Tool => self.tool.push_str(text),
            Phase::Tag => {}
        }
        show(phase, text);
    }
}

/// Bytes at the front that no later byte can change: all but the beginning of a character.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for at in (tail..bytes.len()).rev() {
        let need = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return bytes.len(),
        };
        let sound = std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none());
        return if bytes.len() - at < need && sound { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_character_waits() {
        for (bytes, whole) in [
            (&b"abc"[..], 3),
            (b"", 0),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"a😀".as_bytes()[..4], 1),
            (&[b'a', 0xff], 2),
            (&[0x80, 0x80], 2),
            (&[0xe0, 0x80], 2),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }

    #[test]
    fn a_stop_string_may_begin_in_one_phase_and_end_in_the_next() {
        let mut reply = Reply::new(&[b"a<T".to_vec()], false);
        let mut shown = Vec::new();
        let mut show = |phase, text: &str| shown.push((phase, text.to_owned()));
        reply.watch(Phase::Answer, b"xa", &mut show);
        reply.watch(Phase::Tool, b"<", &mut show);
        reply.watch(Phase::Tool, b"[T", &mut show);
        let expected =
            [(Phase::Answer, "x"), (Phase::Answer, "a"), (Phase::Tool, "<"), (Phase::Tool, "[T")];
        assert_eq!(shown, expected.map(|(phase, text)| (phase, text.to_owned())));
        reply.watch(Phase::Tool, b"a<Tz", &mut |_, _| {});
        assert!(reply.stopped);
        assert_eq!(reply.tool, "<[T");
    }
}
