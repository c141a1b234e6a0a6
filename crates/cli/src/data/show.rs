//! A document as text in which tokens and mask can be seen.

use hybra_tokenizer::Tokenizer;
use hybra_train::data::Document;
use std::io::IsTerminal;

/// With or without colours.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    Coloured,
    Plain,
}

/// Backgrounds of learned tokens and greys of masked ones, in turn.
const LEARNED: [&str; 2] = ["\x1b[30;48;5;114m", "\x1b[30;48;5;150m"];
const MASKED: [&str; 2] = ["\x1b[38;5;245m", "\x1b[38;5;240m"];
const RESET: &str = "\x1b[0m";

impl Style {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn of_stdout() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        match std::io::stdout().is_terminal() && !plain {
            true => Self::Coloured,
            false => Self::Plain,
        }
    }

    /// A line above a sample.
    pub(crate) fn title(self, text: &str) -> String {
        match self {
            Self::Coloured => format!("\x1b[1m{text}{RESET}"),
            Self::Plain => text.to_owned(),
        }
    }
}

/// All tokens. A token's newlines are shown as ⏎, the last of them also breaks the line.
pub(crate) fn document(tokenizer: &Tokenizer, document: &Document, style: Style) -> String {
    let mut out = String::new();
    for (at, (&id, &learned)) in document.tokens.iter().zip(&document.mask).enumerate() {
        let bytes = tokenizer.token_bytes(id);
        let text = visible(bytes);
        let shade = at % 2;
        out += &match (style, learned) {
            (Style::Coloured, true) => format!("{}{text}{RESET}", LEARNED[shade]),
            (Style::Coloured, false) => format!("{}{text}{RESET}", MASKED[shade]),
            (Style::Plain, true) => format!("[{text}]"),
            (Style::Plain, false) => format!("{text}│"),
        };
        if bytes.ends_with(b"\n") {
            out.push('\n');
        }
    }
    out.truncate(out.trim_end_matches('\n').len());
    out
}

/// Text without control characters; parts of characters in hexadecimal.
fn visible(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    };
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\n' => out.push('⏎'),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybra_train::data::{Source, train_bpe};

    #[test]
    fn tokens_and_mask_can_be_seen() {
        let generator = Box::new(|_| serde_json::json!({ "text": "an an an" }));
        let source = Source::generated("text", "1", generator);
        let files = train_bpe(source.records(1, &[]), 277).unwrap();
        let tokenizer = files.tokenizer().unwrap();
        let mut tokens = tokenizer.encode("an\nb\té", false).unwrap();
        tokens.push(12);
        let mask = vec![false, false, true, true, true, false, true];
        let found = Document { tokens, mask, ..Document::default() };
        assert_eq!(
            document(&tokenizer, &found, Style::Plain),
            "an│⏎│\n[b][\\t][\\xc3]\\xa9│[<SPECIAL_12>]"
        );
        let coloured = document(&tokenizer, &found, Style::Coloured);
        assert!(coloured.starts_with("\x1b[38;5;245man\x1b[0m\x1b[38;5;240m⏎\x1b[0m\n"));
        assert!(coloured.contains("\x1b[30;48;5;114mb\x1b[0m"), "{coloured:?}");
    }
}
