//! What the cut rule asks about the end of the section's text: newline, sentence, whole character.
//!
//! The last 16 bytes are kept in one integer, so each byte costs O(1) and each question O(1).
//! Bytes that are not valid UTF-8 never end a sentence and never count as an unfinished character.

/// Closing quotes and brackets that may follow the mark of a sentence (one of them).
const CLOSERS: &str = "\"')]}”’»」』）］｝】》〉";
/// Marks that end a sentence.
const MARKS: &str = ".!?。！？";

/// The end of a growing byte string.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TextTail {
    /// Last 16 bytes, newest in the lowest byte; zeros before the beginning.
    last: u128,
    /// A newline was seen and only blanks since.
    line_end: bool,
}

impl TextTail {
    pub(super) fn push(&mut self, byte: u8) {
        self.last = self.last << 8 | u128::from(byte);
        self.line_end = byte == b'\n' || self.line_end && (byte == b' ' || byte == b'\t');
    }

    /// The last byte is a newline.
    pub(super) fn ends_in_newline(&self) -> bool {
        self.last as u8 == b'\n'
    }

    /// The text ends in a newline plus optional blanks (spaces and tabs).
    pub(super) fn at_line_end(&self) -> bool {
        self.line_end
    }

    /// The text ends in the first bytes of a UTF-8 character whose rest is missing.
    pub(super) fn mid_char(&self) -> bool {
        let byte = |back: u32| (self.last >> (8 * back)) as u8;
        let continuations = (0..3).take_while(|&i| byte(i) & 0xC0 == 0x80).count();
        let missing = match byte(continuations as u32) {
            0xC2..=0xDF => 1,
            0xE0..=0xEF => 2,
            0xF0..=0xF4 => 3,
            _ => 0,
        };
        continuations < missing
    }

    /// The text ends in a sentence mark, optionally followed by one closing quote or bracket, and
    /// the character before the mark is not a digit (ASCII or full-width).
    pub(super) fn ends_sentence(&self) -> bool {
        let bytes = self.last.to_be_bytes();
        let (mut c, mut start) = char_before(&bytes, bytes.len());
        if CLOSERS.contains(c) {
            (c, start) = char_before(&bytes, start);
        }
        let (before, _) = char_before(&bytes, start);
        MARKS.contains(c) && !before.is_ascii_digit() && !('０'..='９').contains(&before)
    }
}

/// The character that ends at `end` and where it starts; invalid bytes give U+FFFD, one byte each.
fn char_before(bytes: &[u8], end: usize) -> (char, usize) {
    (1..=4.min(end))
        .find_map(|width| {
            let c = std::str::from_utf8(&bytes[end - width..end]).ok()?.chars().next()?;
            Some((c, end - width))
        })
        .unwrap_or((char::REPLACEMENT_CHARACTER, end.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::TextTail;

    fn tail(text: &[u8]) -> TextTail {
        let mut tail = TextTail::default();
        text.iter().for_each(|&b| tail.push(b));
        tail
    }

    #[test]
    fn sentences() {
        for yes in [
            "so.",
            "So!",
            "what?",
            "he said \"so.\"",
            "(so.)",
            "好。",
            "好！」",
            "か？）",
            ".",
            "a...",
        ] {
            assert!(tail(yes.as_bytes()).ends_sentence(), "{yes}");
        }
        for no in ["", "so", "3.", "3.\"", "３。", "so. ", "so.\"\"", "so,", "so.\n", "v1.", "\""]
        {
            assert!(!tail(no.as_bytes()).ends_sentence(), "{no}");
        }
        assert!(!tail(b"so.\xe3\x80").ends_sentence());
    }

    #[test]
    fn line_ends() {
        for (text, line_end, newline) in [
            ("a\n", true, true),
            ("a\n \t", true, false),
            ("a\n x", false, false),
            ("", false, false),
            (" ", false, false),
            ("a\r\n", true, true),
        ] {
            assert_eq!(tail(text.as_bytes()).at_line_end(), line_end, "{text:?}");
            assert_eq!(tail(text.as_bytes()).ends_in_newline(), newline, "{text:?}");
        }
    }

    #[test]
    fn unfinished_characters() {
        for whole in ["a", "é", "€", "😀", ""] {
            assert!(!tail(whole.as_bytes()).mid_char(), "{whole}");
            for cut in 1..whole.len() {
                assert!(tail(&whole.as_bytes()[..cut]).mid_char(), "{whole} cut at {cut}");
            }
        }
        // Stray continuation bytes and bytes that UTF-8 never uses are not waited for.
        for stray in [&b"\x80"[..], b"a\x80\x80", b"\xff", b"\xc0", b"\x80\x80\x80\x80"] {
            assert!(!tail(stray).mid_char(), "{stray:?}");
        }
    }
}
