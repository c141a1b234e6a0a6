//! Python's JSON dialect made JSON: for `config.json` only, which Python writers fill with the bare
//! words `Infinity`, `-Infinity` and `NaN`.
//!
//! - `Infinity` and `-Infinity` become ± the largest finite f64, which every reader of such a limit
//!   takes as "no limit".
//! - `NaN` becomes the string `"NaN"`: no number of a config may be NaN, and a string where a
//!   number belongs is an error that shows the word. `null` would read as "absent".
//!
//! Text inside strings stays as it is; so does everything else, right or wrong: judging the rest is
//! the strict parser's work, whose default depth limit (128) also stays.

use std::borrow::Cow;

/// The replacement of each bare word; 1.7976931348623157e308 is `f64::MAX`.
const WORDS: [(&str, &str); 2] = [("Infinity", "1.7976931348623157e308"), ("NaN", "\"NaN\"")];

/// `text` with the bare words `Infinity`, `-Infinity` and `NaN` replaced by JSON values.
/// Time is linear in the text; line numbers stay.
pub fn relax_json(text: &str) -> Cow<'_, str> {
    let mut relaxed = String::new();
    let mut copied = 0;
    let mut position = 0;
    while position < text.len() {
        let rest = &text.as_bytes()[position..];
        match rest[0] {
            b'"' => position += string_len(rest),
            b if is_word(b) => {
                let len = rest.iter().position(|&b| !is_word(b)).unwrap_or(rest.len());
                let word = &rest[..len];
                if let Some((_, json)) = WORDS.iter().find(|(name, _)| name.as_bytes() == word) {
                    relaxed.push_str(&text[copied..position]);
                    relaxed.push_str(json);
                    copied = position + len;
                }
                position += len;
            }
            _ => position += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    relaxed.push_str(&text[copied..]);
    Cow::Owned(relaxed)
}

/// Bytes of the string literal that `bytes` begins with; all of them if it never ends.
fn string_len(bytes: &[u8]) -> usize {
    let mut position = 1;
    while position < bytes.len() {
        match bytes[position] {
            b'\\' => position += 2,
            b'"' => return position + 1,
            _ => position += 1,
        }
    }
    bytes.len()
}

/// Whether a byte can be part of a bare word; bytes of non-ASCII characters count, so that cuts
/// fall between characters.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bare_words_become_values() {
        let text = r#"{"a": [0.0, Infinity], "b":-Infinity,"c": NaN, "d": "Infinity \" NaN"}"#;
        let value: serde_json::Value = serde_json::from_str(&relax_json(text)).unwrap();
        assert_eq!(value["a"][1], f64::MAX);
        assert_eq!(value["b"], -f64::MAX);
        assert_eq!(value["c"], "NaN");
        assert_eq!(value["d"], "Infinity \" NaN");
    }

    #[test]
    fn the_rest_stays() {
        for text in ["", "{\"a\": 1}", "Infinityx", "xNaN", "\"Infinity", "\"\\", "[1e5, é]"] {
            assert!(matches!(relax_json(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_passes(text in "[\"\\\\NaInfty,é \\[\\]-]{0,40}") {
            let relaxed = relax_json(&text);
            prop_assert!(relaxed.len() >= text.len());
        }

        #[test]
        fn json_stays_as_it_is(words in proptest::collection::vec(".{0,12}", 0..8)) {
            let text = serde_json::to_string(&words).unwrap();
            prop_assert_eq!(relax_json(&text), text.as_str());
        }
    }
}
