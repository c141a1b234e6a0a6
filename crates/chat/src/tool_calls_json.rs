//! A JSON value read byte by byte: where it ends, and whether it can still become one.
//!
//! Accepts exactly the texts of RFC 8259 without surrounding blanks, with at most [`MOST_DEPTH`]
//! levels; a number ends with the byte behind it.

/// Deepest nesting.
const MOST_DEPTH: usize = 128;

/// What a byte did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scan {
    /// It belongs to the value, which goes on.
    More,
    /// It is the value's last.
    End,
    /// The value ended before it.
    Ended,
    /// No JSON value goes on like this.
    Broken,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// A value must begin.
    Value,
    /// A value, or the end of an array.
    ValueOrEnd,
    /// A key must begin.
    Key,
    /// A key, or the end of an object.
    KeyOrEnd,
    Colon,
    /// A comma or the end of what is open.
    Next,
    String,
    Escape,
    /// Digits of `\u` that are missing.
    Hex(u8),
    /// What is missing of `true`, `false` or `null`.
    Literal(&'static [u8]),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// The reader of one value.
#[derive(Clone, Debug)]
pub(crate) struct JsonScanner {
    state: State,
    /// True for an object, false for an array.
    open: Vec<bool>,
    /// The string being read is a key.
    key: bool,
}

impl JsonScanner {
    pub(crate) fn new() -> Self {
        Self { state: State::Value, open: Vec::new(), key: false }
    }

    /// Takes the next byte.
    pub(crate) fn push(&mut self, byte: u8) -> Scan {
        let blank = matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        match self.state {
            State::Value | State::ValueOrEnd if byte == b']' && self.state != State::Value => {
                self.close()
            }
            State::KeyOrEnd if byte == b'}' => self.close(),
            State::Value | State::ValueOrEnd if !blank || self.open.is_empty() => self.begin(byte),
            State::Key | State::KeyOrEnd if byte == b'"' => {
                self.key = true;
                self.to(State::String)
            }
            State::Colon if byte == b':' => self.to(State::Value),
            State::Next if !blank => self.next(byte),
            State::Value
            | State::ValueOrEnd
            | State::Key
            | State::KeyOrEnd
            | State::Colon
            | State::Next => {
                if blank {
                    Scan::More
                } else {
                    Scan::Broken
                }
            }
            State::String => match byte {
                b'"' if self.key => {
                    self.key = false;
                    self.to(State::Colon)
                }
                b'"' => self.end(),
                b'\\' => self.to(State::Escape),
                0..0x20 => Scan::Broken,
                _ => Scan::More,
            },
            State::Escape => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.to(State::String),
                b'u' => self.to(State::Hex(4)),
                _ => Scan::Broken,
            },
            State::Hex(left) if byte.is_ascii_hexdigit() => {
                self.to(if left == 1 { State::String } else { State::Hex(left - 1) })
            }
            State::Hex(_) => Scan::Broken,
            State::Literal(rest) if rest[0] != byte => Scan::Broken,
            State::Literal([_]) => self.end(),
            State::Literal(rest) => self.to(State::Literal(&rest[1..])),
            _ => self.number(byte),
        }
    }

    fn to(&mut self, state: State) -> Scan {
        self.state = state;
        Scan::More
    }

    fn begin(&mut self, byte: u8) -> Scan {
        match byte {
            b'{' | b'[' if self.open.len() == MOST_DEPTH => Scan::Broken,
            b'{' | b'[' => {
                self.open.push(byte == b'{');
                self.to(if byte == b'{' { State::KeyOrEnd } else { State::ValueOrEnd })
            }
            b'"' => self.to(State::String),
            b't' => self.to(State::Literal(b"rue")),
            b'f' => self.to(State::Literal(b"alse")),
            b'n' => self.to(State::Literal(b"ull")),
            b'-' => self.to(State::Minus),
            b'0' => self.to(State::Zero),
            b'1'..=b'9' => self.to(State::Digits),
            _ => Scan::Broken,
        }
    }

    /// What follows a value inside something open.
    fn next(&mut self, byte: u8) -> Scan {
        match (byte, self.open.last()) {
            (b',', Some(true)) => self.to(State::Key),
            (b',', Some(false)) => self.to(State::Value),
            (b'}', Some(true)) | (b']', Some(false)) => self.close(),
            _ => Scan::Broken,
        }
    }

    fn close(&mut self) -> Scan {
        self.open.pop();
        self.end()
    }

    fn end(&mut self) -> Scan {
        self.state = State::Next;
        if self.open.is_empty() { Scan::End } else { Scan::More }
    }

    fn number(&mut self, byte: u8) -> Scan {
        use State::{Digits, Exponent, ExponentDigits, ExponentSign, Fraction, Minus, Point, Zero};
        let state = match (self.state, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Digits, b'0'..=b'9') => Digits,
            (Zero | Digits, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Digits | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            (Zero | Digits | Fraction | ExponentDigits, _) if self.open.is_empty() => {
                return Scan::Ended;
            }
            (Zero | Digits | Fraction | ExponentDigits, _) => {
                self.state = State::Next;
                return self.push(byte);
            }
            _ => return Scan::Broken,
        };
        self.to(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the scanner takes all of `text` as one value.
    fn accepts(text: &str) -> bool {
        let mut scanner = JsonScanner::new();
        for (i, byte) in text.bytes().chain([b' ']).enumerate() {
            match scanner.push(byte) {
                Scan::More => {}
                Scan::End => return i + 1 == text.len(),
                Scan::Ended => return i == text.len(),
                Scan::Broken => return false,
            }
        }
        false
    }

    #[test]
    fn values_and_what_is_none() {
        for text in [
            "0",
            "-0.5e+10",
            "[]",
            "{}",
            "\"a\\u00e9\\n\"",
            "[1, {\"a\" :null}]",
            "true",
            "1E5",
            "1e311",
        ] {
            assert!(accepts(text), "{text}");
        }
        for text in
            ["", "01", "1.", "-", "[1,]", "{\"a\":1,}", "{1:2}", "\"\n\"", "\"\\x\"", "tru", "[}"]
        {
            assert!(!accepts(text), "{text}");
        }
        assert!(!accepts(&"[".repeat(MOST_DEPTH + 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Against the reference parser, on texts of JSON's own pieces.
        #[test]
        fn agrees_with_the_reference(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "\\n", "u00e9", "1", "0", "-", ".5",
            "e3", "true", "null", " ", "\n", "é",
        ]), 0..8)) {
            let text = pieces.concat();
            // Blanks around a value are not the scanner's.
            let bare = text.trim_matches([' ', '\n']) == text;
            // The grammar has no range of numbers.
            let reference = bare && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accepts(&text), reference, "{:?}", text);
        }
    }
}
