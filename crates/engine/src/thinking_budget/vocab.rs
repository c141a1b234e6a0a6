//! The data the state machine works with: tags as bytes, what to insert as token ids, and where a
//! prompt leaves off.
//!
//! A [`ThinkingVocab`] belongs to a model and is shared by its sequences; an [`Insertion`] belongs
//! to a message at the cut (the empty one is shared). Both check on construction that their ids
//! spell exactly what must be inserted, so that forcing them always closes the section.

use super::SEPARATOR_NEWLINES;
use super::tag::Tag;
use crate::error::ThinkingVocabError;
use std::ops::Range;

/// The three texts that switch phases, and what stands behind a close tag.
#[derive(Clone, Copy, Debug)]
pub struct TagTexts<'a> {
    /// `<think>`
    pub open: &'a [u8],
    /// `</think>`
    pub close: &'a [u8],
    /// `<TOOLCALL>[`
    pub tool_open: &'a [u8],
    /// What follows an inserted close tag, as in the model's natural text: a blank line, a newline
    /// or nothing.
    pub separator: &'a [u8],
}

/// Tags of a model, the rest of every half-emitted close tag, and the tokens that complete it.
#[derive(Clone, Debug)]
pub struct ThinkingVocab {
    pub(super) open: Tag,
    pub(super) close: Tag,
    pub(super) tool_open: Tag,
    separator: Vec<u8>,
    /// `rests[j - 1]` spells `close[j..]` and the separator. Empty where the tag is one token:
    /// then its first characters as text are no half-emitted tag.
    rests: Vec<Vec<u32>>,
    /// `completing[j]`: ascending ids of tokens that complete the close tag when `j` bytes of it
    /// are already there.
    completing: Vec<Vec<u32>>,
    /// Those of them with answer text behind the tag.
    close_straddling: Vec<Vec<u32>>,
    /// The same for the tool tag: tokens that complete it and hold more.
    tool_straddling: Vec<Vec<u32>>,
    /// `blank_lines[n]`: tokens of 1 to n newlines and nothing else.
    pub(super) blank_lines: [Vec<u32>; SEPARATOR_NEWLINES as usize + 1],
    /// `led_by_newline[n]`: all other tokens that begin with a newline; empty for n = 0.
    pub(super) led_by_newline: [Vec<u32>; SEPARATOR_NEWLINES as usize + 1],
}

impl ThinkingVocab {
    /// `rests[j - 1]` encodes `close[j..]` followed by the separator, for j = 1 … len(close) − 1;
    /// no `rests` at all means that the close tag is a single token.
    /// `token_bytes` gives the bytes of each id below `vocab_size` (empty where a token has none).
    /// Reads the whole vocabulary once: meant to be called once per model.
    pub fn new<B: AsRef<[u8]>>(
        texts: TagTexts<'_>,
        rests: Vec<Vec<u32>>,
        vocab_size: u32,
        token_bytes: impl Fn(u32) -> B,
    ) -> Result<Self, ThinkingVocabError> {
        let named = [("open", texts.open), ("close", texts.close), ("tool_open", texts.tool_open)];
        if let Some((which, text)) = named.into_iter().find(|(_, t)| !(1..=255).contains(&t.len()))
        {
            return Err(ThinkingVocabError::TagLength { which, len: text.len() });
        }
        let expected = texts.close.len() - 1;
        if !rests.is_empty() && rests.len() != expected {
            return Err(ThinkingVocabError::RestCount { expected, found: rests.len() });
        }
        for (i, ids) in rests.iter().enumerate() {
            let text = [&texts.close[i + 1..], texts.separator].concat();
            check_ids(&format!("rests[{i}]"), ids, &text, &token_bytes)?;
        }
        let close = Tag::new(texts.close);
        let (open, tool_open) = (Tag::new(texts.open), Tag::new(texts.tool_open));
        let vocab = 0..vocab_size;
        let any = |_: &[u8]| true;
        let completing = completing_tokens(&close, vocab.clone(), &token_bytes, any);
        let text = |rest: &[u8]| blank_lines(rest).is_none_or(|n| n > SEPARATOR_NEWLINES as usize);
        let close_straddling = completing_tokens(&close, vocab.clone(), &token_bytes, text);
        let more = |rest: &[u8]| !rest.is_empty();
        let tool_straddling = completing_tokens(&tool_open, vocab.clone(), &token_bytes, more);
        let (blank_lines, led_by_newline) = newline_tokens(vocab, &token_bytes);
        Ok(Self {
            open,
            close,
            tool_open,
            separator: texts.separator.to_vec(),
            rests,
            completing,
            close_straddling,
            tool_straddling,
            blank_lines,
            led_by_newline,
        })
    }

    /// Where a prompt leaves off, from its text after the last role marker: the section is open if
    /// the last open tag has no close tag behind it, and closed if it has one.
    ///
    /// For a chat prompt the rendered suffix is enough, for a raw prompt without role markers give
    /// all of it. Linear in the text.
    pub fn start_of(&self, text: &[u8]) -> Start {
        let Some(opened) = find_last(text, self.open.text()) else { return Start::Absent };
        let section = &text[opened..];
        match find_last(section, self.close.text()) {
            None => Start::Open { tail: section.to_vec() },
            Some(closed) => Start::Closed { tail: section[closed..].to_vec() },
        }
    }

    pub(super) fn rest(&self, prefix_len: usize) -> &[u32] {
        &self.rests[prefix_len - 1]
    }

    /// Whether the first bytes of a close tag can be completed to one.
    pub(super) fn completes_halves(&self) -> bool {
        !self.rests.is_empty()
    }

    pub(super) fn completing(&self, prefix_len: usize) -> &[u32] {
        &self.completing[prefix_len]
    }

    pub(super) fn close_straddling(&self, prefix_len: usize) -> &[u32] {
        &self.close_straddling[prefix_len]
    }

    pub(super) fn tool_straddling(&self, prefix_len: usize) -> &[u32] {
        &self.tool_straddling[prefix_len]
    }
}

/// End of the last occurrence of `needle`.
fn find_last(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).rposition(|window| window == needle).map(|at| at + needle.len())
}

/// Ids per number of bytes of `tag` that are already there, of tokens that complete it and hold
/// behind it what `wanted` says.
fn completing_tokens<B: AsRef<[u8]>>(
    tag: &Tag,
    vocab: Range<u32>,
    token_bytes: &impl Fn(u32) -> B,
    wanted: impl Fn(&[u8]) -> bool,
) -> Vec<Vec<u32>> {
    let mut completing = vec![Vec::new(); tag.len()];
    let last = tag.text()[tag.len() - 1];
    for id in vocab {
        let bytes = token_bytes(id);
        let bytes = bytes.as_ref();
        // Only tokens that hold the tag's last byte can complete it: most are skipped here.
        if bytes.contains(&last) {
            for (state, ids) in completing.iter_mut().enumerate() {
                if tag.rest_behind(state, bytes).is_some_and(&wanted) {
                    ids.push(id);
                }
            }
        }
    }
    completing
}

/// How many newlines `bytes` is, if it is nothing else.
fn blank_lines(bytes: &[u8]) -> Option<usize> {
    bytes.iter().all(|&byte| byte == b'\n').then_some(bytes.len())
}

type NewlineTokens = [Vec<u32>; SEPARATOR_NEWLINES as usize + 1];

fn newline_tokens<B: AsRef<[u8]>>(
    vocab: Range<u32>,
    token_bytes: &impl Fn(u32) -> B,
) -> (NewlineTokens, NewlineTokens) {
    let (mut blank, mut led) = (NewlineTokens::default(), NewlineTokens::default());
    for id in vocab {
        let bytes = token_bytes(id);
        let bytes = bytes.as_ref();
        if bytes.first() == Some(&b'\n') {
            for most in 1..blank.len() {
                let fits = blank_lines(bytes).is_some_and(|n| n <= most);
                if fits { blank[most].push(id) } else { led[most].push(id) }
            }
        }
    }
    (blank, led)
}

fn check_ids<B: AsRef<[u8]>>(
    which: &str,
    ids: &[u32],
    expected: &[u8],
    token_bytes: &impl Fn(u32) -> B,
) -> Result<(), ThinkingVocabError> {
    let found: Vec<u8> = ids.iter().flat_map(|&id| token_bytes(id).as_ref().to_vec()).collect();
    if found == expected {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (which, expected, found) = (which.to_string(), text(expected), text(&found));
    Err(ThinkingVocabError::WrongBytes { which, expected, found })
}

/// What a cut inserts when no part of the tag is there yet: optional message, a newline where the
/// text does not end in one, close tag, separator; each variant encoded as one string.
#[derive(Clone, Debug)]
pub struct Insertion {
    pub(super) after_newline: Vec<u32>,
    pub(super) after_text: Vec<u32>,
    max_len: u32,
}

impl Insertion {
    /// `after_newline` is for a section that ends in a newline, `after_text` for any other. They
    /// encode the text that [`Insertion::text`] gives.
    pub fn new<B: AsRef<[u8]>>(
        vocab: &ThinkingVocab,
        message: &[u8],
        after_newline: Vec<u32>,
        after_text: Vec<u32>,
        token_bytes: impl Fn(u32) -> B,
    ) -> Result<Self, ThinkingVocabError> {
        for tag in [&vocab.open, &vocab.close, &vocab.tool_open] {
            if tag.completes(0, message) {
                let tag = String::from_utf8_lossy(tag.text()).into_owned();
                return Err(ThinkingVocabError::MessageHoldsTag { tag });
            }
        }
        let close = vocab.close.text();
        let variants =
            [("after_newline", &after_newline, true), ("after_text", &after_text, false)];
        for (which, ids, newline) in variants {
            let text = Self::text(close, message, newline, &vocab.separator);
            check_ids(which, ids, &text, &token_bytes)?;
        }
        let lens = vocab.rests.iter().chain([&after_newline, &after_text]).map(Vec::len);
        let max_len = lens.max().unwrap_or(0) as u32;
        Ok(Self { after_newline, after_text, max_len })
    }

    /// The text to encode: `message`, a newline unless the text (`after_newline`: when the message
    /// is empty) ends in one, `close`, separator.
    pub fn text(close: &[u8], message: &[u8], after_newline: bool, separator: &[u8]) -> Vec<u8> {
        let newline = message.last().map_or(after_newline, |&b| b == b'\n');
        [message, if newline { b"" } else { b"\n" }, close, separator].concat()
    }

    /// The most tokens that one cut inserts.
    pub fn max_len(&self) -> u32 {
        self.max_len
    }
}

/// Where generation begins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Start {
    /// No section yet: it begins when the open tag is sampled; text before it is answer.
    #[default]
    Absent,
    /// The prompt left a section open; `tail` is its text after the open tag (not counted).
    Open {
        /// Bytes of the prompt after the last open tag.
        tail: Vec<u8>,
    },
    /// The prompt closed its section (thinking off, or a trace in the prompt).
    Closed {
        /// Bytes of the prompt after the close tag.
        tail: Vec<u8>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab() -> ThinkingVocab {
        let texts = TagTexts {
            open: b"<think>",
            close: b"</think>",
            tool_open: b"<TOOLCALL>[",
            separator: b"\n\n",
        };
        let rests = (1..8).map(|j| "</think>\n\n"[j..].bytes().map(u32::from).collect()).collect();
        ThinkingVocab::new(texts, rests, 256, |id| vec![id as u8]).unwrap()
    }

    #[test]
    fn prompts() {
        let vocab = vocab();
        let open = |tail: &str| Start::Open { tail: tail.into() };
        let closed = |tail: &str| Start::Closed { tail: tail.into() };
        for (text, expected) in [
            ("Assistant\n<think>\n", open("\n")),
            ("Assistant\n<think></think>", closed("")),
            ("no tag", Start::Absent),
            ("</think>", Start::Absent),
            ("<think>a</think>b<think>c", open("c")),
            ("<think>a</think>\n\n", closed("\n\n")),
            ("<think>a</think>b</think>c", closed("c")),
        ] {
            assert_eq!(vocab.start_of(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn completing_tokens_per_state() {
        let vocab = vocab();
        for state in 0..7 {
            assert!(vocab.completing(state).is_empty());
        }
        assert_eq!(vocab.completing(7), [u32::from(b'>')]);
    }

    #[test]
    fn ids_that_do_not_close_the_section_are_refused() {
        let bytes = |id: u32| vec![id as u8];
        let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        let texts = TagTexts { open: b"<t>", close: b"</", tool_open: b"<T[", separator: b"\n\n" };
        let new = |rests| ThinkingVocab::new(texts, rests, 256, bytes);
        assert!(new(vec![]).is_ok(), "a tag of one token has no rests");
        let two = vec![ids("/\n\n"), ids("/\n\n")];
        assert!(matches!(new(two), Err(ThinkingVocabError::RestCount { expected: 1, found: 2 })));
        assert!(matches!(new(vec![ids("/\n")]), Err(ThinkingVocabError::WrongBytes { .. })));
        let no_open = TagTexts { open: b"", ..texts };
        assert_eq!(
            ThinkingVocab::new(no_open, vec![], 256, bytes).unwrap_err(),
            ThinkingVocabError::TagLength { which: "open", len: 0 }
        );

        let vocab = vocab();
        let insertion = |message: &str, newline: &str, text: &str| {
            Insertion::new(&vocab, message.as_bytes(), ids(newline), ids(text), bytes)
        };
        let plain = insertion("", "</think>\n\n", "\n</think>\n\n").unwrap();
        assert_eq!(plain.max_len(), 11);
        let late = "\nTime is up.\n</think>\n\n";
        assert!(insertion("\nTime is up.", late, late).is_ok());
        assert!(insertion("\nTime is up.\n", late, late).is_ok());
        assert!(matches!(
            insertion("", "</think>\n\n", "</think>\n\n"),
            Err(ThinkingVocabError::WrongBytes { which, .. }) if which == "after_text"
        ));
        assert!(matches!(
            insertion("a</think>", "", ""),
            Err(ThinkingVocabError::MessageHoldsTag { tag }) if tag == "</think>"
        ));
    }
}
