//! The bytes behind every token id: one flat buffer with offsets, shared by everyone who needs it.
//!
//! A byte-level token may hold part of a UTF-8 character; joining the bytes of a sequence of ids
//! and decoding the whole gives the text. Ids without a token (padding) have no bytes.

use std::collections::HashMap;

/// Bytes of all token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// `offsets[id]..offsets[id + 1]` is the range of `id`; length is the number of ids plus one.
    offsets: Vec<usize>,
}

impl TokenBytes {
    /// Builds the table; `pieces[id]` are the bytes of `id`.
    pub fn new<P: AsRef<[u8]>>(pieces: &[P]) -> Self {
        let mut bytes = Vec::with_capacity(pieces.iter().map(|p| p.as_ref().len()).sum());
        let mut offsets = Vec::with_capacity(pieces.len() + 1);
        offsets.push(0);
        for piece in pieces {
            bytes.extend_from_slice(piece.as_ref());
            offsets.push(bytes.len());
        }
        Self { bytes, offsets }
    }

    /// Bytes of `id`; empty for an id that has no token.
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.offsets.get(id + 1) {
            Some(&end) => &self.bytes[self.offsets[id]..end],
            None => &[],
        }
    }

    /// Number of ids, padding included.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// True when there are no ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all ids in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.offsets.windows(2).map(|w| &self.bytes[w[0]..w[1]])
    }
}

/// The printable character that stands for `byte` in a byte-level vocabulary (GPT-2's mapping):
/// printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let direct = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if direct(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !direct(b)).count() as u32;
    char::from_u32(0x100 + rank).expect("U+0100 to U+0143 are characters")
}

/// Inverse of [`byte_to_char`].
pub(crate) fn char_to_byte_map() -> HashMap<char, u8> {
    (0..=255).map(|b| (byte_to_char(b), b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_a_bijection_with_known_points() {
        assert_eq!(char_to_byte_map().len(), 256);
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(b'a'), 'a');
        assert_eq!(byte_to_char(0xAD), '\u{143}');
    }

    #[test]
    fn ranges_and_ids_outside() {
        let table = TokenBytes::new(&[&b"ab"[..], b"", b"\xF0\x9F"]);
        assert_eq!(
            (table.get(0), table.get(1), table.get(2)),
            (&b"ab"[..], &b""[..], &[0xF0, 0x9F][..])
        );
        assert_eq!((table.get(3), table.get(u32::MAX)), (&b""[..], &b""[..]));
        assert_eq!(table.iter().count(), 3);
    }
}
