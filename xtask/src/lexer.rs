//! Rust text reduced to code: comments and the contents of literals become spaces.
//!
//! Line breaks stay where they are, so that a line of the result is the same line of the text.
//! It is a lexer for tidy checks, not a parser: it expects text that compiles.

use std::{iter::Peekable, str::Chars};

/// `text` with every comment, string and character literal replaced by spaces.
pub(crate) fn code_of(text: &str) -> String {
    let mut lexer =
        Lexer { rest: text.chars().peekable(), code: String::with_capacity(text.len()) };
    while let Some(c) = lexer.rest.next() {
        match c {
            '/' if lexer.rest.peek() == Some(&'/') => lexer.line_comment(),
            '/' if lexer.rest.peek() == Some(&'*') => lexer.block_comment(),
            '"' => lexer.string(),
            '\'' => lexer.char_or_lifetime(),
            c if is_word(c) => lexer.word(c),
            c => lexer.code.push(c),
        }
    }
    lexer.code
}

/// A piece of code: a word (identifier, keyword or number) or one other visible character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// Line in the file, from 1.
    pub(crate) line: usize,
    /// The word, or the one character.
    pub(crate) text: &'a str,
}

/// The tokens of `code`, which [`code_of`] has made.
pub(crate) fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (line, text) in (1..).zip(code.lines()) {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let len = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            found.push(Token { line, text: &rest[..len] });
            rest = rest[len..].trim_start();
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    code: String,
}

impl Lexer<'_> {
    /// Writes what stands for `c` of a comment or literal.
    fn blank(&mut self, c: char) {
        self.code.push(if c == '\n' { '\n' } else { ' ' });
    }

    /// Blanks the next character and gives it back.
    fn skip(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.blank(c);
        Some(c)
    }

    fn line_comment(&mut self) {
        self.blank('/');
        while self.rest.peek().is_some_and(|&c| c != '\n') {
            self.skip();
        }
    }

    /// Block comments nest.
    fn block_comment(&mut self) {
        self.blank('/');
        self.skip();
        let mut depth = 1;
        while depth > 0 {
            let Some(c) = self.skip() else { return };
            match (c, self.rest.peek()) {
                ('/', Some('*')) => {
                    self.skip();
                    depth += 1;
                }
                ('*', Some('/')) => {
                    self.skip();
                    depth -= 1;
                }
                _ => {}
            }
        }
    }

    /// The opening quote is taken already.
    fn string(&mut self) {
        self.blank('"');
        while let Some(c) = self.skip() {
            match c {
                '\\' => drop(self.skip()),
                '"' => return,
                _ => {}
            }
        }
    }

    /// A quote opens a character if an escape follows or if another quote closes it.
    fn char_or_lifetime(&mut self) {
        let mut ahead = self.rest.clone();
        let (first, second) = (ahead.next(), ahead.next());
        if first == Some('\\') {
            self.blank('\'');
            self.skip();
            self.skip();
            while self.skip().is_some_and(|c| c != '\'') {}
        } else if second == Some('\'') {
            self.blank('\'');
            self.skip();
            self.skip();
        } else {
            self.code.push('\'');
        }
    }

    /// An identifier, keyword or number; `r`, `br` and `cr` may open a raw string.
    fn word(&mut self, first: char) {
        let start = self.code.len();
        self.code.push(first);
        while let Some(c) = self.rest.next_if(|&c| is_word(c)) {
            self.code.push(c);
        }
        if !matches!(&self.code[start..], "r" | "br" | "cr") {
            return;
        }
        let mut ahead = self.rest.clone();
        let mut num_hashes = 0;
        while ahead.next_if_eq(&'#').is_some() {
            num_hashes += 1;
        }
        if ahead.peek() == Some(&'"') {
            self.raw_string(num_hashes);
        }
    }

    /// From the first `#` or quote after the prefix to the quote with as many `#` behind it.
    fn raw_string(&mut self, num_hashes: usize) {
        for _ in 0..=num_hashes {
            self.skip();
        }
        while let Some(c) = self.skip() {
            let mut ahead = self.rest.clone();
            if c == '"' && (0..num_hashes).all(|_| ahead.next() == Some('#')) {
                for _ in 0..num_hashes {
                    self.skip();
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        code_of(text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_are_blanked() {
        assert_eq!(words("a // unsafe\nb /// unsafe \"\nc"), "a b c");
        assert_eq!(words("a /* x /* unsafe */ \" unsafe */ b"), "a b");
        assert_eq!(words("a /* not closed"), "a");
        assert_eq!(words("a /**/ b /***/ c / d"), "a b c / d");
    }

    #[test]
    fn strings_are_blanked() {
        assert_eq!(words(r#"f("unsafe // \" unsafe", b"x", c"y") g"#), "f( , b , c ) g");
        assert_eq!(words(r##"f(r"\", r#"a " unsafe"#, br#""#) g"##), "f(r , r , br ) g");
        assert_eq!(words("r#type \"x\" r"), "r#type r");
        assert_eq!(words("\"ends in backslash \\\\\" unsafe"), "unsafe");
    }

    #[test]
    fn characters_are_told_from_lifetimes() {
        assert_eq!(words(r"f('x', '\'', '\u{41}', '\\', b'{') g"), "f( , , , , b ) g");
        assert_eq!(words("'\"' unsafe '\"'"), "unsafe");
        let lifetimes = "fn f<'a,'b>(x: &'a str) -> &'static str";
        assert_eq!(words(lifetimes), lifetimes);
    }

    #[test]
    fn lines_stay_in_place() {
        let text = "a\n/* 1\n2 */ b\nr\"x\ny\" c\n";
        let code = code_of(text);
        assert_eq!(code.lines().count(), text.lines().count());
        let lines: Vec<_> = tokens(&code).iter().map(|t| (t.line, t.text)).collect();
        assert_eq!(lines, [(1, "a"), (3, "b"), (4, "r"), (5, "c")]);
    }

    #[test]
    fn tokens_are_words_and_single_characters() {
        let texts: Vec<_> = tokens("core::arch{x_1}").iter().map(|t| t.text).collect();
        assert_eq!(texts, ["core", ":", ":", "arch", "{", "x_1", "}"]);
    }
}
