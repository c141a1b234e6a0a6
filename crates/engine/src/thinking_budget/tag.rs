//! A tag as a byte automaton (Knuth–Morris–Pratt): O(1) amortised per byte, for any split of the
//! tag over tokens.
//!
//! The state is the length of the longest prefix of the tag that the bytes so far end in; it equals
//! the tag's length exactly when the tag has just been completed.

/// Matcher of one tag. The state lives with the caller, so that sequences share the tables.
#[derive(Clone, Debug)]
pub(super) struct Tag {
    text: Vec<u8>,
    /// `fallback[s]`: the longest proper border of the first `s` bytes (0 for s ≤ 1).
    fallback: Vec<u8>,
}

impl Tag {
    /// `text` has 1 to 255 bytes (checked by the caller).
    pub(super) fn new(text: &[u8]) -> Self {
        assert!((1..=255).contains(&text.len()), "tag of {} bytes", text.len());
        let mut tag = Self { text: text.to_vec(), fallback: vec![0; text.len() + 1] };
        let mut border = 0;
        for i in 1..text.len() {
            border = tag.step(border, text[i]);
            tag.fallback[i + 1] = border as u8;
        }
        tag
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// The state after one more byte.
    pub(super) fn step(&self, mut state: usize, byte: u8) -> usize {
        loop {
            if state < self.text.len() && self.text[state] == byte {
                return state + 1;
            }
            if state == 0 {
                return 0;
            }
            state = self.fallback[state] as usize;
        }
    }

    /// Whether `bytes`, read from `state`, complete the tag at any point.
    pub(super) fn completes(&self, state: usize, bytes: &[u8]) -> bool {
        self.rest_behind(state, bytes).is_some()
    }

    /// What of `bytes`, read from `state`, is behind the point where they complete the tag.
    pub(super) fn rest_behind<'b>(&self, mut state: usize, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let last = bytes.iter().position(|&byte| {
            state = self.step(state, byte);
            state == self.text.len()
        });
        last.map(|at| &bytes[at + 1..])
    }
}

#[cfg(test)]
mod tests {
    use super::Tag;

    #[test]
    fn state_is_the_longest_suffix_that_is_a_prefix() {
        // Tags with borders of every kind, over all strings of length 7 on a small alphabet.
        for tag in ["aab", "aabaa", "abab", "aaaa", "</t>"] {
            let automaton = Tag::new(tag.as_bytes());
            let alphabet: &[u8] = if tag.starts_with('<') { b"</t>" } else { b"ab" };
            for code in 0..alphabet.len().pow(7) {
                let text: Vec<u8> = (0..7)
                    .map(|i| alphabet[code / alphabet.len().pow(i) % alphabet.len()])
                    .collect();
                let mut state = 0;
                for end in 1..=text.len() {
                    state = automaton.step(state, text[end - 1]);
                    let expected = (0..=tag.len())
                        .rev()
                        .find(|&n| text[..end].ends_with(&tag.as_bytes()[..n]))
                        .unwrap();
                    assert_eq!(state, expected, "{tag} on {:?}", &text[..end]);
                }
            }
        }
    }

    #[test]
    fn completion_is_seen_inside_and_across_tokens() {
        let tag = Tag::new(b"</think>");
        assert!(tag.completes(0, b"x</think>y"));
        assert!(tag.completes(7, b">\n"));
        assert!(!tag.completes(6, b">\n"));
        assert!(tag.completes(1, b"<</think>"));
        assert_eq!(tag.rest_behind(6, b"k>\n{"), Some(&b"\n{"[..]));
        assert_eq!(tag.rest_behind(7, b"k>"), None);
    }
}
