//! The text in a JSON string, character by character.

/// Decodes a string literal that `JsonScanner` accepts, its quotes included. A surrogate without
/// its partner becomes U+FFFD.
#[derive(Debug, Default)]
pub(crate) struct StringDecoder {
    begun: bool,
    escaped: bool,
    /// Hex digits that are missing, and their value so far.
    hex: (u8, u32),
    /// The first half of a pair.
    high: Option<u32>,
}

impl StringDecoder {
    /// Takes a character of the literal; `text` gets what is decided now.
    pub(crate) fn push(&mut self, c: char, text: &mut String) {
        if self.hex.0 > 0 {
            self.hex = (self.hex.0 - 1, self.hex.1 * 16 + c.to_digit(16).unwrap_or(0));
            if self.hex.0 == 0 {
                self.unit(self.hex.1, text);
            }
            return;
        }
        if self.escaped {
            self.escaped = false;
            match c {
                'u' => self.hex = (4, 0),
                'b' => self.plain('\u{8}', text),
                'f' => self.plain('\u{c}', text),
                'n' => self.plain('\n', text),
                'r' => self.plain('\r', text),
                't' => self.plain('\t', text),
                c => self.plain(c, text),
            }
            return;
        }
        match c {
            '\\' => self.escaped = true,
            '"' if !self.begun => self.begun = true,
            '"' => self.lone(text),
            c => self.plain(c, text),
        }
    }

    fn plain(&mut self, c: char, text: &mut String) {
        self.lone(text);
        text.push(c);
    }

    fn lone(&mut self, text: &mut String) {
        if self.high.take().is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn unit(&mut self, unit: u32, text: &mut String) {
        match (self.high.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                let c = 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00);
                text.push(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            (high, unit) => {
                self.high = high;
                self.lone(text);
                match unit {
                    0xd800..=0xdbff => self.high = Some(unit),
                    unit => text.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
        }
    }
}
