//! Control strings in foreign text: they stay text.
//!
//! A prompt is one string, and a tokenizer turns every `<SPECIAL_11>` in it into a control token,
//! whoever wrote it. Here text from users, tools and clients is *marked* before it enters the
//! template: each character that could begin or end a control string is replaced by a private-use
//! character that occurs nowhere in the request. Templates see strings of the same length with the
//! same letters and whitespace, so flag words, `strip` and slices work as ever. After rendering the
//! characters are put back and their positions are known. Whatever control string then covers such
//! a position was not written by the template alone, however it came together (a whole string, the
//! joint of two pieces, or the gap left by a removed word), and the text is cut inside it.
//! [`Rendered::segments`] are encoded one by one, so no tokenizer sees the whole string; the
//! pieces join to exactly the same text.
//!
//! Assistant content keeps `<think>` and `</think>` unmarked: templates strip old traces by them.
//! A name or JSON string that equals the inner word of a control string is marked too, because XML
//! tool formats print `<` + name + `>`.
//!
//! Limits: control strings of one character cannot be cut, and those that both begin and end with
//! a letter or digit are only protected where they occur whole in one piece.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::TemplateError;

/// Opening think tag of the family.
pub(crate) const THINK_OPEN: &str = "<think>";
/// Closing think tag of the family.
pub(crate) const THINK_CLOSE: &str = "</think>";

/// Control strings whether or not they are tokens of the vocabulary.
const TEXT_CONTROLS: [&str; 8] = [
    THINK_OPEN,
    THINK_CLOSE,
    "<TOOLCALL>",
    "</TOOLCALL>",
    "<TOOL_RESPONSE>",
    "</TOOL_RESPONSE>",
    "<AVAILABLE_TOOLS>",
    "</AVAILABLE_TOOLS>",
];

/// All control strings of a model: its added tokens, the think tags and the tool tags.
#[derive(Debug, Clone)]
pub struct ControlStrings {
    /// Control string → is it a special token (a role marker, an end of turn, …).
    strings: HashMap<Box<str>, bool>,
    /// Distinct lengths in bytes, longest first.
    lengths: Vec<usize>,
    /// First bytes that occur.
    first: [bool; 256],
    /// Characters at the ends of control strings; always marked.
    edges: BTreeSet<char>,
    /// Control strings without such a character; marked at their first one.
    edgeless: HashSet<Box<str>>,
    /// Control strings without their outer punctuation.
    cores: HashSet<Box<str>>,
}

impl ControlStrings {
    /// `added` are the added tokens with their special flag. Tokens of one character or of
    /// whitespace are vocabulary, not control.
    pub fn new<'a>(added: impl IntoIterator<Item = (&'a str, bool)>) -> Self {
        let mut strings: HashMap<Box<str>, bool> =
            TEXT_CONTROLS.iter().map(|&s| (s.into(), false)).collect();
        for (token, special) in added {
            if token.chars().nth(1).is_some() && !token.trim().is_empty() {
                strings.insert(token.into(), special);
            }
        }
        let mut first = [false; 256];
        let mut edges = BTreeSet::new();
        let mut edgeless = HashSet::new();
        for string in strings.keys() {
            first[usize::from(string.as_bytes()[0])] = true;
            let ends = [string.chars().next(), string.chars().next_back()];
            let found: Vec<char> = ends.into_iter().flatten().filter(|&c| is_edge(c)).collect();
            if found.is_empty() && string.starts_with(is_markable) {
                edgeless.insert(string.clone());
            }
            edges.extend(found);
        }
        let lengths: BTreeSet<usize> = strings.keys().map(|s| s.len()).collect();
        let cores = strings.keys().map(|s| core(s)).filter(|s| !s.is_empty()).map(Box::from);
        Self {
            cores: cores.collect(),
            lengths: lengths.into_iter().rev().collect(),
            first,
            edges,
            edgeless,
            strings,
        }
    }

    /// Longest control string that starts at byte `at`: its length and special flag.
    pub(crate) fn match_at(&self, text: &str, at: usize) -> Option<(usize, bool)> {
        if !self.first[usize::from(*text.as_bytes().get(at)?)] {
            return None;
        }
        self.lengths.iter().find_map(|&len| {
            let special = self.strings.get(text.get(at..at + len)?)?;
            Some((len, *special))
        })
    }

    /// Is the string, without outer punctuation, the inner word of a control string?
    fn is_core(&self, text: &str) -> bool {
        self.cores.contains(core(text))
    }

    /// All characters that [`Marker`] may have to replace.
    fn markable(&self) -> BTreeSet<char> {
        let firsts = self.edgeless.iter().chain(&self.cores).filter_map(|s| s.chars().next());
        self.edges.iter().copied().chain(firsts).collect()
    }

    /// Is the start of `rest` a control string that can only be marked as a whole?
    fn starts_edgeless(&self, rest: &str) -> bool {
        let possible = !self.edgeless.is_empty() && self.first[usize::from(rest.as_bytes()[0])];
        possible
            && self
                .lengths
                .iter()
                .any(|&len| rest.get(..len).is_some_and(|piece| self.edgeless.contains(piece)))
    }

    /// Positions at which `text` must be cut so that no piece holds a control string that covers
    /// one of the `foreign` byte offsets (both ascending).
    fn cuts(&self, text: &str, foreign: &[usize]) -> Vec<usize> {
        let mut cuts = Vec::new();
        let longest = self.lengths.first().copied().unwrap_or(0);
        let mut ahead = foreign;
        for start in 0..text.len() {
            ahead = &ahead[ahead.partition_point(|&p| p < start)..];
            let Some(&mark) = ahead.first() else { break };
            if mark >= start + longest || !self.first[usize::from(text.as_bytes()[start])] {
                continue;
            }
            for &len in self.lengths.iter().take_while(|&&len| start + len > mark) {
                if text.get(start..start + len).is_some_and(|s| self.strings.contains_key(s)) {
                    // Beside the mark, so that a genuine neighbour stays whole.
                    let after = mark + text[mark..].chars().next().map_or(0, char::len_utf8);
                    cuts.push(if after < start + len { after } else { mark });
                }
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

/// Punctuation that templates and JSON treat like any other character, so it may be replaced.
fn is_edge(c: char) -> bool {
    is_markable(c) && !c.is_alphanumeric()
}

fn is_markable(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | '"' | '\'' | '\\')
}

fn core(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

/// Who wrote a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// Message text of a user, system or tool turn.
    Foreign,
    /// Message text of an assistant turn: think tags stay visible to the template.
    Assistant,
    /// Names, JSON keys and JSON strings of tools, calls and arguments.
    Name,
}

/// Replaces characters of foreign text by private-use ones, and back.
pub(crate) struct Marker<'a> {
    controls: &'a ControlStrings,
    to: HashMap<char, char>,
    back: HashMap<char, char>,
}

impl<'a> Marker<'a> {
    /// `used` are the private-use characters that the request and the template hold.
    pub(crate) fn new(
        controls: &'a ControlStrings,
        used: &HashSet<char>,
    ) -> Result<Self, TemplateError> {
        let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
        let mut free = private.filter(|c| !used.contains(c));
        let mut to = HashMap::new();
        for c in controls.markable() {
            to.insert(c, free.next().ok_or(TemplateError::PrivateCharacters)?);
        }
        let back = to.iter().map(|(&c, &p)| (p, c)).collect();
        Ok(Self { controls, to, back })
    }

    /// Adds the supplementary private-use characters of `text` to `used`.
    pub(crate) fn collect_private(text: &str, used: &mut HashSet<char>) {
        // They are the only ones whose UTF-8 begins with 0xF3 or 0xF4.
        if text.bytes().any(|b| b >= 0xF3) {
            used.extend(text.chars().filter(|&c| c >= '\u{F0000}'));
        }
    }

    /// The text as the template shall see it.
    pub(crate) fn mark(&self, text: &str, author: Author) -> String {
        let flag_word = author == Author::Foreign && text.contains("/think");
        let mut whole_word =
            author != Author::Assistant && !flag_word && self.controls.is_core(text);
        let mut out = String::with_capacity(text.len() + 16);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let tag = [THINK_OPEN, THINK_CLOSE].into_iter().find(|tag| rest.starts_with(tag));
            if let (Author::Assistant, Some(tag)) = (author, tag) {
                out.push_str(tag);
                rest = &rest[tag.len()..];
                continue;
            }
            let edge = self.controls.edges.contains(&c);
            let word = whole_word && c.is_alphanumeric();
            whole_word &= !word;
            let marked = edge || word || self.controls.starts_edgeless(rest);
            out.push(if marked { *self.to.get(&c).unwrap_or(&c) } else { c });
            rest = &rest[c.len_utf8()..];
        }
        out
    }

    /// The original characters of template output, without positions (for error messages).
    pub(crate) fn restore(&self, text: &str) -> String {
        text.chars().map(|c| *self.back.get(&c).unwrap_or(&c)).collect()
    }

    /// Template output with the original characters, cut where foreign text completes a control
    /// string.
    pub(crate) fn rendered(&self, text: &str) -> Rendered {
        let mut out = String::with_capacity(text.len());
        let mut foreign = Vec::new();
        for c in text.chars() {
            match self.back.get(&c) {
                Some(&original) => {
                    foreign.push(out.len());
                    out.push(original);
                }
                None => out.push(c),
            }
        }
        let cuts = self.controls.cuts(&out, &foreign);
        Rendered { text: out, foreign, cuts }
    }
}

/// A prompt: its text, and where it must be cut before encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// Byte offsets of marked characters, ascending.
    foreign: Vec<usize>,
    /// Byte offsets of cuts, ascending, inside the text.
    cuts: Vec<usize>,
}

impl Rendered {
    /// The prompt as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The pieces to encode one by one; joined they are [`Self::text`]. One piece when no foreign
    /// text holds a control string.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain([self.text.len()]);
        starts.zip(ends).map(|(start, end)| &self.text[start..end])
    }

    /// True when no character of the range came from a marked position.
    pub(crate) fn is_genuine(&self, start: usize, len: usize) -> bool {
        let next = self.foreign.partition_point(|&p| p < start);
        self.foreign.get(next).is_none_or(|&p| p >= start + len)
    }

    /// Replaces the end of the prompt, when the prompt ends in `old` and no foreign character is
    /// in it. Returns whether it did.
    pub(crate) fn replace_suffix(&mut self, old: &str, new: &str) -> bool {
        let start = self.text.len().wrapping_sub(old.len());
        if !self.text.ends_with(old) || !self.is_genuine(start, old.len()) {
            return false;
        }
        self.truncate(start);
        self.text.push_str(new);
        true
    }

    /// Drops everything from byte `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.text.truncate(len);
        self.foreign.retain(|&p| p < len);
        self.cuts.retain(|&p| p < len);
    }
}

impl From<&str> for Rendered {
    /// Text of one author, encoded as it is.
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), foreign: Vec::new(), cuts: Vec::new() }
    }
}
